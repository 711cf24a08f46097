/* Exact top-k by inner product, with bounds that spare most of the work. See `native_search.py` for the method.

   For COLS keys at a time (a panel, which stays in the first-level cache) and ROWS queries at a time (whose sums stay
   in registers), upper bounds of all inner products are made from short sketches of queries and keys. Only a pair
   whose bound reaches the worst of the query's k best is looked at in full: first in float32, then, if that is not
   less either, summed in double precision. So selection reads no score that it throws away from memory, and the k
   best are those of double precision; equal ones go to the older key. */

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#if defined(__AVX__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
enum { LANES = 16, ROWS = 12 };
#elif defined(__AVX__)
enum { LANES = 8, ROWS = 6 };
#else
enum { LANES = 4, ROWS = 6 };
#endif
enum { COLS = 2 * LANES };

typedef float floats __attribute__((vector_size(LANES * sizeof(float))));
typedef float floats4 __attribute__((vector_size(16)));
typedef double doubles4 __attribute__((vector_size(32)));

static inline floats load(const float *from) {
    floats to;
    memcpy(&to, from, sizeof to);
    return to;
}

/* One bit for each lane that is at least the threshold. */
static inline uint32_t at_least(floats values, float threshold) {
#if defined(__AVX512F__)
    return _mm512_cmp_ps_mask((__m512)values, _mm512_set1_ps(threshold), _CMP_GE_OQ);
#elif defined(__AVX__)
    return (uint32_t)_mm256_movemask_ps(_mm256_cmp_ps((__m256)values, _mm256_set1_ps(threshold), _CMP_GE_OQ));
#else
    uint32_t bits = 0;
    for (int lane = 0; lane < LANES; lane++)
        bits |= (uint32_t)(values[lane] >= threshold) << lane;
    return bits;
#endif
}

static float product(const float *a, const float *b, int64_t dim) {
    floats low = {0}, high = {0};
    int64_t i = 0;
    for (; i + COLS <= dim; i += COLS) {
        low += load(a + i) * load(b + i);
        high += load(a + i + LANES) * load(b + i + LANES);
    }
    low += high;
    float sum = 0;
    for (int lane = 0; lane < LANES; lane++)
        sum += low[lane];
    for (; i < dim; i++)
        sum += a[i] * b[i];
    return sum;
}

/* The same order of summation on every machine. */
static double precise_product(const float *a, const float *b, int64_t dim) {
    enum { STRIPES = 4, STEP = 4 * STRIPES };
    doubles4 sums[STRIPES] = {0};
    int64_t i = 0;
    for (; i + STEP <= dim; i += STEP)
        for (int stripe = 0; stripe < STRIPES; stripe++) {
            floats4 left, right;
            memcpy(&left, a + i + 4 * stripe, sizeof left);
            memcpy(&right, b + i + 4 * stripe, sizeof right);
            sums[stripe] += __builtin_convertvector(left, doubles4) * __builtin_convertvector(right, doubles4);
        }
    const doubles4 all = (sums[0] + sums[1]) + (sums[2] + sums[3]);
    double sum = (all[0] + all[1]) + (all[2] + all[3]);
    for (; i < dim; i++)
        sum += (double)a[i] * b[i];
    return sum;
}

typedef struct {
    double score;
    int64_t id;
} hit;

static inline int worse(hit a, hit b) { return a.score < b.score || (a.score == b.score && a.id > b.id); }

/* The best hits of one query so far: once there are k, a heap with the worst on top. */
typedef struct {
    int64_t row;
    hit *hits;
    int64_t size, k;
    double guess;    /* the k best must all be better than this, or it was too high */
    float threshold; /* a bound below this cannot belong to the k best */
    float margin;    /* what float32 bounds and products can be too low by */
} best;

typedef struct {
    const float *queries, *query_sketches, *keys, *key_sketches;
    int64_t key_stride, sketch_stride, dim, width;
} problem;

/* Keys to look at: those of `ids`, or the first `size` where it is NULL. */
typedef struct {
    const int64_t *ids;
    int64_t size;
} list;

static inline int64_t id_of(list keys, int64_t place) { return keys.ids ? keys.ids[place] : place; }

/* Room for the sketches of all queries, tile by tile, and of one panel of keys. */
typedef struct {
    float *packed, *panel;
} room;

static room make_room(int64_t num_queries, int64_t width) {
    return (room){malloc((num_queries + ROWS) * width * sizeof(float)), malloc(COLS * width * sizeof(float))};
}

static void leave(room in) { free(in.packed), free(in.panel); }

static void sink(hit *hits, int64_t size, int64_t at) {
    hit moving = hits[at];
    for (int64_t child; (child = 2 * at + 1) < size; at = child) {
        if (child + 1 < size && worse(hits[child + 1], hits[child]))
            child++;
        if (!worse(hits[child], moving))
            break;
        hits[at] = hits[child];
    }
    hits[at] = moving;
}

static void heapify(best *query) {
    for (int64_t at = query->size / 2; at-- > 0;)
        sink(query->hits, query->size, at);
}

static void offer(best *query, hit found) {
    if (query->size < query->k) {
        query->hits[query->size++] = found;
        if (query->size < query->k)
            return;
        heapify(query);
    } else if (worse(query->hits[0], found)) {
        query->hits[0] = found;
        sink(query->hits, query->k, 0);
    } else {
        return;
    }
    query->threshold = nextafterf((float)query->hits[0].score - query->margin, -INFINITY);
}

/* Offer the keys of every panel `first`, `first + step`, ... to the queries, but for each `skip`-th (0: none). */
static void scan(const problem *of, best **queue, int64_t num_queries, list keys, int64_t step, int64_t skip, room in) {
    const int64_t num_tiles = (num_queries + ROWS - 1) / ROWS, width = of->width;
    for (int64_t slot = 0; slot < num_tiles * ROWS; slot++)
        for (int64_t w = 0; w < width; w++)
            in.packed[(slot / ROWS * width + w) * ROWS + slot % ROWS] =
                slot < num_queries ? of->query_sketches[queue[slot]->row * width + w] : 0;
    for (int64_t number = 0; number * COLS < keys.size; number += step) {
        if (skip && number % skip == 0)
            continue;
        const int64_t first = number * COLS, cols = keys.size - first < COLS ? keys.size - first : COLS;
        for (int64_t col = 0; col < COLS; col++)
            for (int64_t w = 0; w < width; w++)
                in.panel[w * COLS + col] =
                    col < cols ? of->key_sketches[id_of(keys, first + col) * of->sketch_stride + w] : 0;
        for (int64_t tile = 0; tile < num_tiles; tile++) {
            floats low[ROWS] = {0}, high[ROWS] = {0};
            const float *sketch = in.packed + tile * width * ROWS;
            for (int64_t w = 0; w < width; w++, sketch += ROWS) {
                const floats left = load(in.panel + w * COLS), right = load(in.panel + w * COLS + LANES);
                for (int row = 0; row < ROWS; row++) {
                    low[row] += sketch[row] * left;
                    high[row] += sketch[row] * right;
                }
            }
            for (int row = 0; row < ROWS && tile * ROWS + row < num_queries; row++) {
                best *query = queue[tile * ROWS + row];
                uint32_t passing =
                    at_least(low[row], query->threshold) | at_least(high[row], query->threshold) << LANES;
                if (cols < COLS)
                    passing &= (1u << cols) - 1;
                for (; passing; passing &= passing - 1) {
                    const int64_t id = id_of(keys, first + __builtin_ctz(passing));
                    const float *asked = of->queries + query->row * of->dim, *key = of->keys + id * of->key_stride;
                    if (product(asked, key, of->dim) >= query->threshold)
                        offer(query, (hit){precise_product(asked, key, of->dim), id});
                }
            }
        }
    }
}

/* Best first, into the first columns of a row of ids and scores. */
static void write_hits(best *query, int64_t slots, int64_t *ids, float *scores) {
    /* fewer than k only where no more were looked at, or products are not numbers */
    if (query->size < query->k)
        heapify(query);
    for (int64_t slot = query->size; slot-- > 0;) {
        ids[query->row * slots + slot] = query->hits[0].id;
        scores[query->row * slots + slot] = (float)query->hits[0].score;
        query->hits[0] = query->hits[slot];
        sink(query->hits, slot, 0);
    }
}

/* Queries [num_queries, dim] and keys [num_keys, dim] (rows `key_stride` apart); their sketches have `width` columns,
   and the inner product of two sketches is at least that of query and key, up to `margins` of the query. Writes the k
   best, best first, into the first k of `slots` columns of ids and scores; k is at most num_keys, and a product that is
   not a number is never among them. Returns 0, or 1 when memory is short.

   Until a query has k hits it has no threshold, and those of the first keys are low. So a sample of the keys is looked
   at first, and a score that about twice k keys should reach is taken for the threshold of all others. Where fewer
   than k exceed it, the guess was too high, and that query starts again without one. */
int longmem_top_k(const float *queries, const float *query_sketches, const float *margins, int64_t num_queries,
                  const float *keys, int64_t key_stride, const float *key_sketches, int64_t sketch_stride,
                  int64_t num_keys, int64_t dim, int64_t width, int64_t k, int64_t slots, int64_t *ids,
                  float *scores) {
    enum { SAMPLED = 8, SAFETY = 2 };
    const problem of = {queries, query_sketches, keys, key_sketches, key_stride, sketch_stride, dim, width};
    const list all_keys = {NULL, num_keys};
    room in = make_room(num_queries, width);
    best *all = malloc(num_queries * sizeof *all), **queue = malloc(num_queries * sizeof *queue);
    hit *hits = malloc(num_queries * k * sizeof *hits);
    if (!in.packed || !in.panel || !all || !queue || !hits) {
        leave(in), free(all), free(queue), free(hits);
        return 1;
    }
    const int64_t k_of_sample = (SAFETY * k + SAMPLED - 1) / SAMPLED;
    const int guess = num_keys >= 8 * SAMPLED * k;
    for (int64_t row = 0; row < num_queries; row++) {
        all[row] = (best){row, hits + row * k, 0, guess ? k_of_sample : k, -INFINITY, -INFINITY, margins[row]};
        queue[row] = all + row;
    }
    if (guess) {
        scan(&of, queue, num_queries, all_keys, SAMPLED, 0, in);
        for (int64_t row = 0; row < num_queries; row++) {
            all[row].k = k;
            if (all[row].size)
                all[row].guess = all[row].hits[0].score;
        }
    }
    scan(&of, queue, num_queries, all_keys, 1, guess ? SAMPLED : 0, in);
    int64_t num_again = 0;
    for (int64_t row = 0; row < num_queries; row++)
        if (all[row].size < k || all[row].hits[0].score <= all[row].guess) {
            all[row].size = 0, all[row].threshold = -INFINITY;
            queue[num_again++] = all + row;
        }
    if (num_again)
        scan(&of, queue, num_again, all_keys, 1, 0, in);
    for (int64_t row = 0; row < num_queries; row++)
        write_hits(all + row, slots, ids, scores);
    leave(in), free(all), free(queue), free(hits);
    return 0;
}

/* The same among the keys of some cells only. Cell c holds the keys `members[bounds[c]]` to `members[bounds[c + 1] - 1]`,
   and a query looks into the `num_probes` different cells of its row of `probes`. It finds fewer than k where they hold
   fewer. All queries of a cell are served together, so its keys are read once. */
int longmem_top_k_in_cells(const float *queries, const float *query_sketches, const float *margins,
                           int64_t num_queries, const float *keys, int64_t key_stride, const float *key_sketches,
                           int64_t sketch_stride, int64_t dim, int64_t width, int64_t k, int64_t slots,
                           const int64_t *members, const int64_t *bounds, int64_t num_cells, const int64_t *probes,
                           int64_t num_probes, int64_t *ids, float *scores) {
    const problem of = {queries, query_sketches, keys, key_sketches, key_stride, sketch_stride, dim, width};
    room in = make_room(num_queries, width);
    best *all = malloc(num_queries * sizeof *all), **queue = malloc(num_queries * num_probes * sizeof *queue);
    hit *hits = malloc(num_queries * k * sizeof *hits);
    int64_t *ends = calloc(num_cells + 1, sizeof *ends);
    if (!in.packed || !in.panel || !all || !queue || !hits || !ends) {
        leave(in), free(all), free(queue), free(hits), free(ends);
        return 1;
    }
    for (int64_t row = 0; row < num_queries; row++)
        all[row] = (best){row, hits + row * k, 0, k, -INFINITY, -INFINITY, margins[row]};
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
                 (list){members + bounds[cell], bounds[cell + 1] - bounds[cell]}, 1, 0, in);
    for (int64_t row = 0; row < num_queries; row++)
        write_hits(all + row, slots, ids, scores);
    leave(in), free(all), free(queue), free(hits), free(ends);
    return 0;
}
