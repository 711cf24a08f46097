// SPDX-License-Identifier: Apache-2.0
/* Queries against keys, panel by panel: which keys can be among the best, and their float32 products.

   Upper bounds of all inner products are made for PANEL_KEYS keys at a time (a panel, which stays in the first-level
   cache) and TILE_QUERIES queries at a time (a tile, whose sums stay in registers), from short sketches of queries and
   keys (`bounds.h`). Only a pair whose bound reaches the threshold of the query gets a float32 product, which decides
   whether the key is a candidate (`candidates.h`). So no rejected score is ever written to memory. */

#ifndef LONGMEM_SCAN_H
#define LONGMEM_SCAN_H

#include "arena.h"
#include "bounds.h"
#include "candidates.h"

/* Keys to scan: those of `ids`, or keys 0 to size - 1 where it is NULL. */
typedef struct {
    const int64_t *ids;
    int64_t size;
} key_list;

static inline int64_t key_id(key_list keys, int64_t index) { return keys.ids ? keys.ids[index] : index; }

static inline int64_t count_panels(int64_t num_keys) { return (num_keys + PANEL_KEYS - 1) / PANEL_KEYS; }

static inline int64_t panel_bytes(sketch_shape shape) { return PANEL_KEYS * shape.width; }

static inline int64_t count_tiles(int64_t num_queries) { return (num_queries + TILE_QUERIES - 1) / TILE_QUERIES; }

/* A key whose bound passes the limit of the query of an entry. */
typedef struct {
    int64_t entry, id;
} passing_pair;

/* Passing pairs whose products are made together. */
enum { PAIR_BATCH = 64 };

/* Working memory of scans. A scan has a queue of candidate lists; an entry is an index into it. */
typedef struct {
    quantised_queries queries; /* of all queries */
    /* of the queries of one scan, entry after entry, in tiles */
    int32_t *groups;
    sum_t *starts;
    query_limits limits;
    int64_t *query_rows;     /* row of the query of each entry */
    float *thresholds;       /* threshold of each entry */
    uint64_t *passing;       /* for each entry, a bit for each key of the panel that passes */
    int32_t *passed_entries; /* entries for which some key passes */
    hit *hits;               /* [k] */
} scan_buffers;

/* Allocate the buffers of a search, and quantise its queries. */
static void prepare_buffers(const topk_params *params, arena *scratch, scan_buffers *buffers) {
    const sketch_shape shape = padded_shape(params->sketch_width);
    const int64_t num_queries = params->num_queries, width = shape.width, num_blocks = shape.num_blocks;
    const int64_t num_entries = count_tiles(num_queries) * TILE_QUERIES + FLOAT_LANES;
    *buffers = (scan_buffers){
        .queries.groups = arena_alloc(scratch, num_queries * width / GROUP * sizeof *buffers->queries.groups),
        .queries.starts = arena_alloc(scratch, num_queries * num_blocks * sizeof *buffers->queries.starts),
        .queries.bounds = arena_alloc(scratch, num_queries * sizeof *buffers->queries.bounds),
        .groups = arena_alloc(scratch, num_entries * width / GROUP * sizeof *buffers->groups),
        .starts = arena_alloc(scratch, num_entries * num_blocks * sizeof *buffers->starts),
        .limits.thresholds = arena_alloc(scratch, num_entries * sizeof *buffers->limits.thresholds),
        .limits.norms = arena_alloc(scratch, num_entries * sizeof *buffers->limits.norms),
        .limits.residuals = arena_alloc(scratch, num_entries * sizeof *buffers->limits.residuals),
        .limits.limits = arena_alloc(scratch, num_entries * sizeof *buffers->limits.limits),
        .query_rows = arena_alloc(scratch, num_entries * sizeof *buffers->query_rows),
        .thresholds = arena_alloc(scratch, num_entries * sizeof *buffers->thresholds),
        .passing = arena_alloc(scratch, num_entries * sizeof *buffers->passing),
        .passed_entries = arena_alloc(scratch, num_entries * sizeof *buffers->passed_entries),
        .hits = arena_alloc(scratch, params->k * sizeof *buffers->hits),
    };
    float *sketch = arena_alloc(scratch, width * sizeof *sketch);
    if (scratch->out_of_memory)
        return;
    for (int64_t query = 0; query < num_queries; query++) {
        const float *unpadded = params->query_sketches + query * params->sketch_width;
        copy_padded(unpadded, FLOAT32, params->sketch_width, width, sketch);
        quantise_query(sketch, shape, buffers->queries, query);
    }
}

/* Quantise the sketches of some panels of a key list. `copies` has room for a panel of padded sketches. */
static void quantise_panels(const row_matrix *key_sketches, int64_t sketch_width, key_list keys, int64_t first_panel,
                            int64_t last_panel, float *copies, key_panels panels) {
    const sketch_shape shape = padded_shape(sketch_width);
    for (int64_t panel = first_panel; panel < last_panel; panel++) {
        const float *sketches[PANEL_KEYS];
        for (int64_t column = 0; column < PANEL_KEYS; column++) {
            const int64_t index = panel * PANEL_KEYS + column;
            float *copy = copies + column * shape.width;
            sketches[column] = copy;
            if (index >= keys.size)
                memset(copy, 0, shape.width * sizeof *copy);
            else if (sketch_width == shape.width && key_sketches->dtype == FLOAT32)
                sketches[column] = row_address(key_sketches, key_id(keys, index));
            else
                copy_padded(row_address(key_sketches, key_id(keys, index)), key_sketches->dtype, sketch_width,
                            shape.width, copy);
        }
        panels.bounds[panel] = quantise_panel(sketches, shape.width, panels.values + panel * panel_bytes(shape));
    }
}

static inline void set_threshold(const scan_buffers *buffers, int64_t entry, float threshold) {
    buffers->thresholds[entry] = threshold;
    set_query_limit(buffers->limits, entry, buffers->queries.bounds[buffers->query_rows[entry]], threshold);
}

/* Arrange the quantised queries of a queue in tiles, and set their thresholds. */
static void fill_tiles(sketch_shape shape, candidate_list **queue, int64_t num_queries, const scan_buffers *buffers) {
    const int64_t num_groups = shape.width / GROUP, num_blocks = shape.num_blocks;
    for (int64_t entry = 0; entry < num_queries; entry++) {
        const int64_t tile = entry / TILE_QUERIES, column = entry % TILE_QUERIES, query = queue[entry]->query;
        for (int64_t group = 0; group < num_groups; group++)
            buffers->groups[(tile * num_groups + group) * TILE_QUERIES + column] =
                buffers->queries.groups[query * num_groups + group];
        for (int64_t block = 0; block < num_blocks; block++)
            buffers->starts[(tile * num_blocks + block) * TILE_QUERIES + column] =
                buffers->queries.starts[query * num_blocks + block];
        buffers->query_rows[entry] = query;
        set_threshold(buffers, entry, queue[entry]->threshold);
    }
}

static inline query_tile get_tile(sketch_shape shape, int64_t tile, const scan_buffers *buffers) {
    return (query_tile){buffers->groups + tile * shape.width / GROUP * TILE_QUERIES,
                        buffers->starts + tile * shape.num_blocks * TILE_QUERIES};
}

/* Product of a query and a key in float32; in double precision where partial sums are too large for float32. */
static inline float key_product(const topk_params *params, int64_t query_row, int64_t id) {
    const float *query = params->queries + query_row * params->dim;
    const float score = float_product(query, &params->keys, id, params->dim);
    return isnan(score) ? (float)double_product(query, &params->keys, id, params->dim) : score;
}

static int64_t rank_candidates(const topk_params *params, candidate_list *candidates, hit *hits) {
    const float *query = params->queries + candidates->query * params->dim;
    return rank(candidates, query, &params->keys, params->dim, hits);
}

static void add_candidate(const topk_params *params, candidate_list *candidates, float score, int64_t id, hit *hits) {
    candidates->scores[candidates->size] = score, candidates->ids[candidates->size++] = (int32_t)id;
    if (candidates->size < max_candidates(candidates->k))
        return;
    prune(candidates);
    if (candidates->size < max_candidates(candidates->k))
        return;
    /* more nearly equal candidates than there is room for: keep the k best of double precision */
    candidates->size = rank_candidates(params, candidates, hits);
    for (int64_t i = 0; i < candidates->size; i++)
        candidates->scores[i] = (float)hits[i].score, candidates->ids[i] = (int32_t)hits[i].id;
}

/* Add the keys whose products reach the thresholds to the candidates. There are at most PAIR_BATCH pairs. All products
   are made before the first one is compared, so that no product waits for a branch. */
static void check_pairs(const topk_params *params, candidate_list **queue, const passing_pair *pairs,
                        int64_t num_pairs, const scan_buffers *buffers) {
    float scores[PAIR_BATCH];
    for (int64_t i = 0; i < num_pairs; i++)
        scores[i] = key_product(params, buffers->query_rows[pairs[i].entry], pairs[i].id);
    for (int64_t i = 0; i < num_pairs; i++) {
        const int64_t entry = pairs[i].entry;
        if (!(scores[i] >= buffers->thresholds[entry]))
            continue;
        add_candidate(params, queue[entry], scores[i], pairs[i].id, buffers->hits);
        if (queue[entry]->threshold > buffers->thresholds[entry])
            set_threshold(buffers, entry, queue[entry]->threshold);
    }
}

/* Check the passing keys of the panel that begins with key `first` of the list, for the first `num_entries` of
   `passed_entries`. */
static void check_panel(const topk_params *params, candidate_list **queue, key_list keys, int64_t first,
                        int64_t num_entries, const scan_buffers *buffers) {
    passing_pair pairs[PAIR_BATCH];
    int64_t num_pairs = 0;
    for (int64_t i = 0; i < num_entries; i++) {
        const int64_t entry = buffers->passed_entries[i];
        const float *sketch = params->query_sketches + buffers->query_rows[entry] * params->sketch_width;
        for (uint64_t left = buffers->passing[entry]; left; left &= left - 1) {
            const int64_t id = key_id(keys, first + __builtin_ctzll(left));
            /* the float32 product of the sketches is a tighter bound than that of int8 */
            if (params->sketch_width < params->dim &&
                float_product(sketch, &params->key_sketches, id, params->sketch_width) < buffers->thresholds[entry])
                continue;
            prefetch_row(row_address(&params->keys, id), params->dim * dtype_bytes(params->keys.dtype));
            pairs[num_pairs++] = (passing_pair){entry, id};
            if (num_pairs == PAIR_BATCH) {
                check_pairs(params, queue, pairs, num_pairs, buffers);
                num_pairs = 0;
            }
        }
    }
    check_pairs(params, queue, pairs, num_pairs, buffers);
}

/* Update the candidates of a queue with the keys of a list, whose panels are given. */
static void scan(const topk_params *params, candidate_list **queue, int64_t num_queries, key_list keys,
                 key_panels panels, const scan_buffers *buffers) {
    const sketch_shape shape = padded_shape(params->sketch_width);
    const int64_t num_tiles = count_tiles(num_queries);
    fill_tiles(shape, queue, num_queries, buffers);
    for (int64_t first = 0, panel = 0; first < keys.size; first += PANEL_KEYS, panel++) {
        const uint8_t *values = panels.values + panel * panel_bytes(shape);
        const int64_t num_left = keys.size - first;
        const uint64_t present = num_left < PANEL_KEYS ? ((uint64_t)1 << num_left) - 1 : UINT64_MAX;
        set_panel_limits(buffers->limits, num_queries, panels.bounds[panel], shape);
        for (int64_t tile = 0, entry = 0; tile < num_tiles; tile++, entry += TILE_QUERIES)
            compare_tile(get_tile(shape, tile, buffers), values, shape, buffers->limits.limits + entry, present,
                         buffers->passing + entry);
        /* branch-free: always write the entry, and count it only if a key passes */
        int64_t num_entries = 0;
        for (int64_t entry = 0; entry < num_queries; entry++) {
            buffers->passed_entries[num_entries] = (int32_t)entry;
            num_entries += buffers->passing[entry] != 0;
        }
        check_panel(params, queue, keys, first, num_entries, buffers);
    }
}

#endif
