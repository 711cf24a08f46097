/* Exact top-k by inner product, with bounds that spare most of the work. See `native_search.py` for the method.

   Bounds and float32 products decide what is looked at (`scan.h`), with a threshold that is guessed to begin with
   (`sample.h`); the candidates that are left in the end are ranked in double precision (`best.h`). So the k best are
   those of double precision; equal ones go to the older key. */

#include "sample.h"
#include "scan.h"

/* Into the first columns of a row of ids and scores. */
static void write_hits(const problem *of, int64_t row, const hit *hits, int64_t size, int64_t *ids, float *scores) {
    for (int64_t slot = 0; slot < size; slot++) {
        ids[row * of->slots + slot] = hits[slot].id;
        scores[row * of->slots + slot] = (float)hits[slot].score;
    }
}

/* Room for a search of each query, with no threshold yet. */
static void begin(const problem *of, const float *margins, int64_t queue_size, best **all, best ***queue,
                  workspace *in) {
    *all = room(in, of->num_queries * sizeof **all);
    *queue = room(in, queue_size * sizeof **queue);
    const int64_t most = most_candidates(of->k);
    float *candidate_scores = room(in, of->num_queries * most * sizeof *candidate_scores);
    int32_t *candidate_ids = room(in, of->num_queries * most * sizeof *candidate_ids);
    if (in->short_of_memory)
        return;
    for (int64_t row = 0; row < of->num_queries; row++)
        (*all)[row] = (best){row, of->k, 0, candidate_scores + row * most, candidate_ids + row * most, -INFINITY,
                             margins[row], -INFINITY};
}

/* Keys of a panel, and bytes of its codes where sketches have `width` columns. */
int64_t longmem_panel_keys(void) { return COLS; }
int64_t longmem_panel_bytes(int64_t width) { return codes_of_panel(shape_of(width)); }

/* Code the panels from `first` to `last` of [num_keys, width] sketches (rows `stride` apart; `kind`: 0 float32,
   1 float16, 2 bfloat16), into `codes` [panels, longmem_panel_bytes] and `bounds` [panels, 3]. Returns 0, or 1 when
   memory is short. */
int longmem_code_panels(const void *key_sketches, int64_t stride, int kind, int64_t num_keys, int64_t width,
                        int64_t first, int64_t last, uint8_t *codes, float *bounds) {
    const rows sketches = {key_sketches, stride, kind};
    float *copies = malloc(COLS * shape_of(width).width * sizeof *copies);
    if (!copies)
        return 1;
    code_panels(&sketches, width, (list){NULL, num_keys}, first, last, copies,
                (panels){codes, (panel_bounds *)bounds});
    free(copies);
    return 0;
}

/* Queries [num_queries, dim] and keys [num_keys, dim]; their sketches have `width` columns, and the inner product of
   two sketches is at least that of query and key, up to `margins` of the query. Strides and kinds are as above. `codes`
   and `bounds` are those of all panels; no key or sketch of one is longer than `largest`. Writes the k best, best
   first, into the first k of `slots` columns of ids and scores; k is at least 1 and at most num_keys, and a product
   that is not a number is never among them. Returns 0, or 1 when memory is short. */
int longmem_top_k(const float *queries, const float *query_sketches, const float *margins, int64_t num_queries,
                  const void *keys, int64_t key_stride, int key_kind, const void *key_sketches, int64_t sketch_stride,
                  int sketch_kind, uint8_t *codes, float *bounds, float largest, int64_t num_keys, int64_t dim,
                  int64_t width, int64_t k, int64_t slots, int64_t *ids, float *scores) {
    const panels coded = {codes, (panel_bounds *)bounds};
    const rows of_keys = {keys, key_stride, key_kind}, of_sketches = {key_sketches, sketch_stride, sketch_kind};
    const problem of = {queries, query_sketches, of_keys, of_sketches, num_queries, dim, width, k, slots};
    const list all_keys = {NULL, num_keys};
    workspace in = prepare(&of);
    best *all, **queue;
    begin(&of, margins, num_queries, &all, &queue, &in);
    if (in.short_of_memory) {
        leave(&in);
        return 1;
    }
    for (int64_t row = 0; row < num_queries; row++)
        queue[row] = all + row;
    const int guessed = guess_thresholds(&of, queue, num_keys, coded, largest, &in);
    if (in.short_of_memory) {
        leave(&in);
        return 1;
    }
    scan(&of, queue, num_queries, all_keys, coded, &in);
    int64_t num_again = 0;
    for (int64_t row = 0; row < num_queries; row++) {
        const int64_t size = rank_all(&of, all + row, in.hits);
        if (!guessed || (size == k && in.hits[k - 1].score > all[row].guess)) {
            write_hits(&of, row, in.hits, size, ids, scores);
        } else {
            all[row].size = 0, all[row].threshold = -INFINITY;
            queue[num_again++] = all + row;
        }
    }
    if (num_again)
        scan(&of, queue, num_again, all_keys, coded, &in);
    for (int64_t each = 0; each < num_again; each++) {
        const int64_t size = rank_all(&of, queue[each], in.hits);
        write_hits(&of, queue[each]->row, in.hits, size, ids, scores);
    }
    leave(&in);
    return 0;
}

/* The same among the keys of some cells only. Cell c holds the keys `members[bounds[c]]` to
   `members[bounds[c + 1] - 1]`, and a query looks into the `num_probes` different cells of its row of `probes`. It finds
   fewer than k where they hold fewer. All queries of a cell are served together, so its keys are read once. */
int longmem_top_k_in_cells(const float *queries, const float *query_sketches, const float *margins,
                           int64_t num_queries, const void *keys, int64_t key_stride, int key_kind,
                           const void *key_sketches, int64_t sketch_stride, int sketch_kind, int64_t dim,
                           int64_t width, int64_t k, int64_t slots, const int64_t *members, const int64_t *bounds,
                           int64_t num_cells, const int64_t *probes, int64_t num_probes, int64_t *ids,
                           float *scores) {
    const rows of_keys = {keys, key_stride, key_kind}, of_sketches = {key_sketches, sketch_stride, sketch_kind};
    const problem of = {queries, query_sketches, of_keys, of_sketches, num_queries, dim, width, k, slots};
    workspace in = prepare(&of);
    best *all, **queue;
    begin(&of, margins, num_queries * num_probes, &all, &queue, &in);
    int64_t *ends = room(&in, (num_cells + 1) * sizeof *ends), largest = 0;
    for (int64_t cell = 0; cell < num_cells; cell++)
        largest = bounds[cell + 1] - bounds[cell] > largest ? bounds[cell + 1] - bounds[cell] : largest;
    const shape sketch = shape_of(width);
    const panels coded = {room(&in, num_panels(largest) * codes_of_panel(sketch) * sizeof *coded.codes),
                          room(&in, num_panels(largest) * sizeof *coded.bounds)};
    float *copies = room(&in, COLS * sketch.width * sizeof *copies);
    if (in.short_of_memory) {
        leave(&in);
        return 1;
    }
    /* the queries of each cell, side by side: cell c has those from ends[c - 1] to ends[c] */
    for (int64_t at = 0; at < num_queries * num_probes; at++)
        ends[probes[at] + 1]++;
    for (int64_t cell = 0; cell < num_cells; cell++)
        ends[cell + 1] += ends[cell];
    for (int64_t at = 0; at < num_queries * num_probes; at++)
        queue[ends[probes[at]]++] = all + at / num_probes;
    for (int64_t cell = 0, first = 0; cell < num_cells; first = ends[cell++]) {
        if (ends[cell] == first)
            continue;
        const list of_cell = {members + bounds[cell], bounds[cell + 1] - bounds[cell]};
        code_panels(&of_sketches, width, of_cell, 0, num_panels(of_cell.size), copies, coded);
        scan(&of, queue + first, ends[cell] - first, of_cell, coded, &in);
    }
    for (int64_t row = 0; row < num_queries; row++)
        write_hits(&of, row, in.hits, rank_all(&of, all + row, in.hits), ids, scores);
    leave(&in);
    return 0;
}
