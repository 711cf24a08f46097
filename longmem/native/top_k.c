// SPDX-License-Identifier: Apache-2.0
/* Exact top-k by inner product, with upper bounds that spare most of the work. `exact_native.py` explains the method.

   Bounds and float32 products decide which keys are candidates (`scan.h`), with a threshold that is estimated at first
   (`initial_threshold.h`). Double-precision products rank the candidates (`candidates.h`). So the result is the top k
   of double precision; equal scores go to the older key. */

#include "initial_threshold.h"
#include "params.h"
#include "scan.h"

static void write_hits(const topk_params *params, int64_t query, const hit *hits, int64_t size) {
    for (int64_t slot = 0; slot < size; slot++) {
        params->ids[query * params->num_slots + slot] = hits[slot].id;
        params->scores[query * params->num_slots + slot] = (float)hits[slot].score;
    }
}

/* Allocate an empty candidate list for each query, without a threshold. */
static candidate_list *make_candidates(const topk_params *params, arena *scratch) {
    const int64_t num_queries = params->num_queries, capacity = max_candidates(params->k);
    candidate_list *candidates = arena_alloc(scratch, num_queries * sizeof *candidates);
    float *scores = arena_alloc(scratch, num_queries * capacity * sizeof *scores);
    int32_t *ids = arena_alloc(scratch, num_queries * capacity * sizeof *ids);
    if (scratch->out_of_memory)
        return NULL;
    for (int64_t query = 0; query < num_queries; query++)
        candidates[query] = (candidate_list){.query = query,
                                             .k = params->k,
                                             .scores = scores + query * capacity,
                                             .ids = ids + query * capacity,
                                             .threshold = -INFINITY,
                                             .margin = params->margins[query],
                                             .guess = -INFINITY};
    return candidates;
}

int64_t longmem_panel_keys(void) { return PANEL_KEYS; }
int64_t longmem_panel_bytes(int64_t sketch_width) { return panel_bytes(padded_shape(sketch_width)); }

int longmem_quantise_panels(const quantise_params *params) {
    float *copies = malloc(PANEL_KEYS * padded_shape(params->sketch_width).width * sizeof *copies);
    if (!copies)
        return 1;
    const key_list all_keys = {NULL, params->num_keys};
    quantise_panels(&params->key_sketches, params->sketch_width, all_keys, params->first_panel, params->last_panel,
                    copies, params->panels);
    free(copies);
    return 0;
}

static int search_all_keys(const topk_params *params, const key_panels *panels, arena *scratch) {
    const key_list all_keys = {NULL, params->num_keys};
    const int64_t num_queries = params->num_queries;
    scan_buffers buffers;
    prepare_buffers(params, scratch, &buffers);
    candidate_list *candidates = make_candidates(params, scratch);
    candidate_list **queue = arena_alloc(scratch, num_queries * sizeof *queue);
    if (scratch->out_of_memory)
        return 1;
    for (int64_t query = 0; query < num_queries; query++)
        queue[query] = candidates + query;
    const int estimated = estimate_thresholds(params, queue, panels, scratch, &buffers);
    if (scratch->out_of_memory)
        return 1;
    scan(params, queue, num_queries, all_keys, *panels, &buffers);
    int64_t num_repeated = 0;
    for (int64_t query = 0; query < num_queries; query++) {
        candidate_list *found = candidates + query;
        const int64_t size = rank_candidates(params, found, buffers.hits);
        if (!estimated || (size == params->k && buffers.hits[params->k - 1].score > found->guess)) {
            write_hits(params, query, buffers.hits, size);
        } else {
            found->size = 0, found->threshold = -INFINITY;
            queue[num_repeated++] = found;
        }
    }
    if (num_repeated)
        scan(params, queue, num_repeated, all_keys, *panels, &buffers);
    for (int64_t entry = 0; entry < num_repeated; entry++) {
        const int64_t size = rank_candidates(params, queue[entry], buffers.hits);
        write_hits(params, queue[entry]->query, buffers.hits, size);
    }
    return 0;
}

/* Search all keys, whose panels longmem_quantise_panels made. k is at most the number of keys. */
int longmem_top_k(const topk_params *params, const key_panels *panels) {
    arena scratch = {0};
    const int failed = search_all_keys(params, panels, &scratch);
    arena_free(&scratch);
    return failed;
}

static int search_lists(const topk_params *params, const inverted_lists *lists, arena *scratch) {
    const int64_t num_pairs = params->num_queries * lists->num_probes, num_lists = lists->num_lists;
    scan_buffers buffers;
    prepare_buffers(params, scratch, &buffers);
    candidate_list *candidates = make_candidates(params, scratch);
    candidate_list **queue = arena_alloc(scratch, num_pairs * sizeof *queue);
    int64_t *ends = arena_alloc(scratch, (num_lists + 1) * sizeof *ends), largest = 0;
    for (int64_t list = 0; list < num_lists; list++) {
        const int64_t size = lists->starts[list + 1] - lists->starts[list];
        largest = size > largest ? size : largest;
    }
    const sketch_shape shape = padded_shape(params->sketch_width);
    const key_panels panels = {arena_alloc(scratch, count_panels(largest) * panel_bytes(shape)),
                               arena_alloc(scratch, count_panels(largest) * sizeof *panels.bounds)};
    float *copies = arena_alloc(scratch, PANEL_KEYS * shape.width * sizeof *copies);
    if (scratch->out_of_memory)
        return 1;
    /* counting sort of the queue by list: the queries of list c end up at ends[c - 1] to ends[c] - 1 */
    for (int64_t pair = 0; pair < num_pairs; pair++)
        ends[lists->probes[pair] + 1]++;
    for (int64_t list = 0; list < num_lists; list++)
        ends[list + 1] += ends[list];
    for (int64_t pair = 0; pair < num_pairs; pair++)
        queue[ends[lists->probes[pair]]++] = candidates + pair / lists->num_probes;
    for (int64_t list = 0, first = 0; list < num_lists; first = ends[list++]) {
        if (ends[list] == first)
            continue;
        const int64_t start = lists->starts[list];
        const key_list keys = {lists->members + start, lists->starts[list + 1] - start};
        quantise_panels(&params->key_sketches, params->sketch_width, keys, 0, count_panels(keys.size), copies, panels);
        scan(params, queue + first, ends[list] - first, keys, panels, &buffers);
    }
    for (int64_t query = 0; query < params->num_queries; query++)
        write_hits(params, query, buffers.hits, rank_candidates(params, candidates + query, buffers.hits));
    return 0;
}

/* Search the probed lists of each query. A query has fewer than k hits where they hold fewer keys. All queries of a
   list are searched together, so its keys are read once. */
int longmem_ivf_top_k(const topk_params *params, const inverted_lists *lists) {
    arena scratch = {0};
    const int failed = search_lists(params, lists, &scratch);
    arena_free(&scratch);
    return failed;
}
