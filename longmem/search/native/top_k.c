/* Exact top-k by inner product, with bounds that spare most of the work. See `native_search.py` for the method.

   For COLS keys at a time (a panel, which stays in the first-level cache) and ROWS queries at a time (a tile, whose
   sums stay in registers), upper bounds of all inner products are made from short sketches of queries and keys, in
   whole numbers of eight bits (`bounds.h`). Only a pair whose bound reaches what the query's k best imply is looked at
   in full: its float32 product makes it a candidate or not, and the candidates that are left in the end are ranked in
   double precision (`best.h`). So selection reads no score that it throws away from memory, and the k best are those of
   double precision; equal ones go to the older key. */

#include <stdlib.h>

#include "best.h"
#include "bounds.h"

typedef struct {
    const float *queries, *query_sketches, *keys, *key_sketches;
    int64_t num_queries, key_stride, sketch_stride, dim, width, k, slots;
} problem;

/* Keys to look at: those of `ids`, or the first `size` where it is NULL. */
typedef struct {
    const int64_t *ids;
    int64_t size;
} list;

static inline int64_t id_of(list keys, int64_t place) { return keys.ids ? keys.ids[place] : place; }

/* The coded sketches of all queries; room for as many of them tile by tile, and for a panel of keys. */
typedef struct {
    coded_queries coded;
    tile *tiles;
    int32_t *pairs;
    uint16_t *starts, *codes;
    float *rows;
    candidate *estimates;
    hit *hits;
} workspace;

static void leave(workspace in) {
    free(in.coded.pairs), free(in.coded.starts), free(in.coded.bounds);
    free(in.tiles), free(in.pairs), free(in.starts), free(in.codes), free(in.rows);
    free(in.estimates), free(in.hits);
}

static void copy_padded(const float *from, int64_t width, int64_t padded, float *to) {
    memcpy(to, from, width * sizeof *to);
    memset(to + width, 0, (padded - width) * sizeof *to);
}

/* Returns 0, or 1 when memory is short. */
static int prepare(const problem *of, workspace *in) {
    const shape sketch = shape_of(of->width);
    const int64_t width = sketch.width, blocks = sketch.blocks, tiles = of->num_queries / ROWS + 1;
    *in = (workspace){
        {malloc(of->num_queries * width / 2 * sizeof(int32_t)), malloc(of->num_queries * blocks * sizeof(uint16_t)),
         malloc(of->num_queries * sizeof(query_bounds))},
        aligned_alloc(_Alignof(tile), tiles * sizeof(tile)),
        calloc(tiles * ROWS * width / 2, sizeof(int32_t)),
        calloc(tiles * ROWS * blocks, sizeof(uint16_t)),
        malloc(COLS * width / 2 * sizeof(uint16_t)),
        malloc(COLS * width * sizeof(float)),
        malloc(most_candidates(of->k) * sizeof(candidate)),
        malloc(of->k * sizeof(hit)),
    };
    if (!in->coded.pairs || !in->coded.starts || !in->coded.bounds || !in->tiles || !in->pairs || !in->starts ||
        !in->codes || !in->rows || !in->estimates || !in->hits)
        return 1;
    memset(in->tiles, 0, tiles * sizeof(tile));
    for (int64_t row = 0; row < of->num_queries; row++) {
        copy_padded(of->query_sketches + row * of->width, of->width, width, in->rows);
        code_query(in->rows, sketch, in->coded, row);
    }
    return 0;
}

/* Code the keys of a panel. */
static panel_bounds put_panel(const problem *of, shape sketch, list keys, int64_t first, const workspace *in) {
    for (int64_t col = 0; col < COLS; col++) {
        float *row = in->rows + col * sketch.width;
        if (first + col < keys.size)
            copy_padded(of->key_sketches + id_of(keys, first + col) * of->sketch_stride, of->width, sketch.width, row);
        else
            memset(row, 0, sketch.width * sizeof *row);
    }
    return code_panel(in->rows, sketch.width, in->codes);
}

static int64_t rank_all(const problem *of, const best *query, hit *hits) {
    return rank(query, of->queries + query->row * of->dim, of->keys, of->key_stride, of->dim, hits);
}

/* Make a key a candidate if its product allows. Returns whether that raised the threshold. */
static int look(const problem *of, best *query, int64_t id, const workspace *in) {
    const float *sketch = of->query_sketches + query->row * of->width;
    /* tighter than whole numbers, and still in the cache */
    if (of->width < of->dim && product(sketch, of->key_sketches + id * of->sketch_stride, of->width) < query->threshold)
        return 0;
    const float *asked = of->queries + query->row * of->dim, *key = of->keys + id * of->key_stride;
    float score = product(asked, key, of->dim);
    /* sums may be too large for float32 on the way */
    if (isnan(score))
        score = (float)precise_product(asked, key, of->dim);
    if (!(score >= query->threshold))
        return 0;
    add(query, (candidate){score, id});
    if (query->size == most_candidates(query->k)) {
        /* more nearly equal ones than there is room for */
        query->size = rank_all(of, query, in->hits);
        for (int64_t each = 0; each < query->size; each++)
            query->candidates[each] = (candidate){(float)in->hits[each].score, in->hits[each].id};
    }
    return 1;
}

/* Make a key a candidate by the score that its bound is made of. */
static void estimate(best *query, int64_t id, float score) {
    add(query, (candidate){score, id});
    query->size = query->size < query->k ? query->size : query->k;
}

/* Offer the keys of the coded panel to the queries of a tile, `num_queries` at most ROWS. */
static inline __attribute__((always_inline)) void compare(const problem *of, shape sketch, list keys, int64_t first,
                                                          panel_bounds panel, int64_t number, best **queries,
                                                          int64_t num_queries, int only_estimate,
                                                          const workspace *in) {
    const int64_t cols = keys.size - first;
    const uint64_t present = cols < COLS ? ((uint64_t)1 << cols) - 1 : UINT64_MAX;
    tile *with = in->tiles + number;
    words low[ROWS], high[ROWS];
    int16_t limits[VECTORS * FLOATS];
    uint64_t passing[ROWS];
    set_limits(with, panel, sketch, limits);
    multiply(in->pairs + number * sketch.width / 2 * ROWS, in->starts + number * sketch.blocks * ROWS, in->codes,
             sketch, low, high);
    for (int place = 0; place < ROWS; place++)
        passing[place] = greater(low[place], high[place], limits[place]) & present;
    for (int place = 0; place < num_queries; place++)
        for (; passing[place]; passing[place] &= passing[place] - 1) {
            best *query = queries[place];
            const query_bounds bounds = in->coded.bounds[query->row];
            const int col = __builtin_ctzll(passing[place]);
            const int64_t id = id_of(keys, first + col);
            if (only_estimate) {
                const int16_t sum = (int16_t)(col < LANES ? low[place][col] : high[place][col - LANES]);
                estimate(query, id, (float)sum * (float)(1 << sketch.lost_bits) * bounds.scale / panel.inverse);
                set_query(with, place, without_rests(bounds), query->threshold);
            } else if (look(of, query, id, in)) {
                set_query(with, place, bounds, query->threshold);
            }
        }
}

/* Offer the keys of each `step`-th panel to the queries. */
static void scan(const problem *of, best **queue, int64_t num_queries, list keys, int64_t step, int only_estimate,
                 const workspace *in) {
    const shape sketch = shape_of(of->width);
    const int64_t num_tiles = (num_queries + ROWS - 1) / ROWS, pairs = sketch.width / 2, blocks = sketch.blocks;
    for (int64_t slot = 0; slot < num_queries; slot++) {
        const int64_t number = slot / ROWS, place = slot % ROWS, row = queue[slot]->row;
        for (int64_t pair = 0; pair < pairs; pair++)
            in->pairs[(number * pairs + pair) * ROWS + place] = in->coded.pairs[row * pairs + pair];
        for (int64_t block = 0; block < blocks; block++)
            in->starts[(number * blocks + block) * ROWS + place] = in->coded.starts[row * blocks + block];
        const query_bounds bounds = in->coded.bounds[row];
        set_query(in->tiles + number, place, only_estimate ? without_rests(bounds) : bounds, queue[slot]->threshold);
    }
    for (int64_t first = 0; first < keys.size; first += step * COLS) {
        const panel_bounds panel = put_panel(of, sketch, keys, first, in);
        for (int64_t number = 0; number < num_tiles; number++) {
            const int64_t left = num_queries - number * ROWS;
            compare(of, sketch, keys, first, panel, number, queue + number * ROWS, left < ROWS ? left : ROWS,
                    only_estimate, in);
        }
    }
}

/* From estimates to a threshold: the score of the `k_of_sample`-th of them by true products. Then forget them. */
static void guess_threshold(const problem *of, best *query, int64_t k_of_sample, const workspace *in) {
    const int64_t size = query->size;
    memcpy(in->estimates, query->candidates, size * sizeof *in->estimates);
    query->k = k_of_sample, query->size = 0, query->threshold = -INFINITY;
    for (int64_t each = 0; each < size; each++)
        look(of, query, in->estimates[each].id, in);
    query->k = of->k, query->size = 0;
    query->guess = query->threshold + 2 * query->margin;
}

/* Into the first columns of a row of ids and scores. */
static void write_hits(const problem *of, int64_t row, const hit *hits, int64_t size, int64_t *ids, float *scores) {
    for (int64_t slot = 0; slot < size; slot++) {
        ids[row * of->slots + slot] = hits[slot].id;
        scores[row * of->slots + slot] = (float)hits[slot].score;
    }
}

/* Queries [num_queries, dim] and keys [num_keys, dim] (rows `key_stride` apart); their sketches have `width` columns,
   and the inner product of two sketches is at least that of query and key, up to `margins` of the query. Writes the k
   best, best first, into the first k of `slots` columns of ids and scores; k is at least 1 and at most num_keys, and a
   product that is not a number is never among them. Returns 0, or 1 when memory is short.

   Until a query has k candidates it has no threshold, and those of the first keys are low. So the bounds of a sample of
   the keys are looked at first, and a score that about twice k keys should reach is where all queries begin. Where
   fewer than k exceed it, the guess was too high, and that query starts again without one. */
int longmem_top_k(const float *queries, const float *query_sketches, const float *margins, int64_t num_queries,
                  const float *keys, int64_t key_stride, const float *key_sketches, int64_t sketch_stride,
                  int64_t num_keys, int64_t dim, int64_t width, int64_t k, int64_t slots, int64_t *ids,
                  float *scores) {
    enum { SAMPLED = 8, SAFETY = 2 };
    const problem of = {queries, query_sketches, keys, key_sketches, num_queries, key_stride, sketch_stride, dim, width,
                        k, slots};
    const list all_keys = {NULL, num_keys};
    workspace in;
    const int short_of_memory = prepare(&of, &in);
    best *all = malloc(num_queries * sizeof *all), **queue = malloc(num_queries * sizeof *queue);
    candidate *candidates = malloc(num_queries * most_candidates(k) * sizeof *candidates);
    if (short_of_memory || !all || !queue || !candidates) {
        leave(in), free(all), free(queue), free(candidates);
        return 1;
    }
    const int64_t k_of_sample = (SAFETY * k + SAMPLED - 1) / SAMPLED;
    const int guess = num_keys >= 8 * SAMPLED * k;
    for (int64_t row = 0; row < num_queries; row++) {
        all[row] = (best){row, guess ? SAFETY * k_of_sample : k, 0, candidates + row * most_candidates(k), -INFINITY,
                          margins[row], -INFINITY};
        queue[row] = all + row;
    }
    if (guess) {
        scan(&of, queue, num_queries, all_keys, SAMPLED, 1, &in);
        for (int64_t row = 0; row < num_queries; row++)
            guess_threshold(&of, all + row, k_of_sample, &in);
    }
    scan(&of, queue, num_queries, all_keys, 1, 0, &in);
    int64_t num_again = 0;
    for (int64_t row = 0; row < num_queries; row++) {
        const int64_t size = rank_all(&of, all + row, in.hits);
        if (!guess || (size == k && in.hits[k - 1].score > all[row].guess)) {
            write_hits(&of, row, in.hits, size, ids, scores);
        } else {
            all[row].size = 0, all[row].threshold = -INFINITY;
            queue[num_again++] = all + row;
        }
    }
    if (num_again)
        scan(&of, queue, num_again, all_keys, 1, 0, &in);
    for (int64_t each = 0; each < num_again; each++) {
        const int64_t size = rank_all(&of, queue[each], in.hits);
        write_hits(&of, queue[each]->row, in.hits, size, ids, scores);
    }
    leave(in), free(all), free(queue), free(candidates);
    return 0;
}

/* The same among the keys of some cells only. Cell c holds the keys `members[bounds[c]]` to
   `members[bounds[c + 1] - 1]`, and a query looks into the `num_probes` different cells of its row of `probes`. It finds
   fewer than k where they hold fewer. All queries of a cell are served together, so its keys are read once. */
int longmem_top_k_in_cells(const float *queries, const float *query_sketches, const float *margins,
                           int64_t num_queries, const float *keys, int64_t key_stride, const float *key_sketches,
                           int64_t sketch_stride, int64_t dim, int64_t width, int64_t k, int64_t slots,
                           const int64_t *members, const int64_t *bounds, int64_t num_cells, const int64_t *probes,
                           int64_t num_probes, int64_t *ids, float *scores) {
    const problem of = {queries, query_sketches, keys, key_sketches, num_queries, key_stride, sketch_stride, dim, width,
                        k, slots};
    workspace in;
    const int short_of_memory = prepare(&of, &in);
    best *all = malloc(num_queries * sizeof *all), **queue = malloc(num_queries * num_probes * sizeof *queue);
    candidate *candidates = malloc(num_queries * most_candidates(k) * sizeof *candidates);
    int64_t *ends = calloc(num_cells + 1, sizeof *ends);
    if (short_of_memory || !all || !queue || !candidates || !ends) {
        leave(in), free(all), free(queue), free(candidates), free(ends);
        return 1;
    }
    for (int64_t row = 0; row < num_queries; row++)
        all[row] = (best){row, k, 0, candidates + row * most_candidates(k), -INFINITY, margins[row], -INFINITY};
    /* the queries of each cell, side by side: cell c has those from ends[c - 1] to ends[c] */
    for (int64_t at = 0; at < num_queries * num_probes; at++)
        ends[probes[at] + 1]++;
    for (int64_t cell = 0; cell < num_cells; cell++)
        ends[cell + 1] += ends[cell];
    for (int64_t at = 0; at < num_queries * num_probes; at++)
        queue[ends[probes[at]]++] = all + at / num_probes;
    for (int64_t cell = 0, first = 0; cell < num_cells; first = ends[cell++])
        if (ends[cell] > first)
            scan(&of, queue + first, ends[cell] - first,
                 (list){members + bounds[cell], bounds[cell + 1] - bounds[cell]}, 1, 0, &in);
    for (int64_t row = 0; row < num_queries; row++)
        write_hits(&of, row, in.hits, rank_all(&of, all + row, in.hits), ids, scores);
    leave(in), free(all), free(queue), free(candidates), free(ends);
    return 0;
}
