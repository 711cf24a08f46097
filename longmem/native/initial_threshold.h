// SPDX-License-Identifier: Apache-2.0
/* Estimates of the threshold that queries start with.

   A query has no threshold until it has k candidates, and the thresholds of the first keys are low. So a sample of the
   panels is searched first. In each column of the sampled panels, the key with the greatest int8 sum represents the
   others. The estimate is a float32 product that somewhat more than k of all keys should reach. Where fewer than k
   reach it, it was too high, and the query is searched again without one. */

#ifndef LONGMEM_INITIAL_THRESHOLD_H
#define LONGMEM_INITIAL_THRESHOLD_H

#include "scan.h"

/* Every `step`-th panel is sampled. The estimate is the product of rank `rank` in the sample. */
typedef struct {
    int64_t step, rank;
} sampling_plan;

enum { MIN_STEP = 16, MIN_SAMPLED_PANELS = 16, MIN_KEYS_PER_HIT = 64 };

/* Of the top k, a 1/step sample contains k / step in expectation, with a standard deviation of at most its root. The
   rank is the mean plus three standard deviations, which fails for about 1% of the queries. */
static inline sampling_plan plan_sampling(int64_t k, int64_t num_keys) {
    const int64_t num_full_panels = num_keys / PANEL_KEYS;
    sampling_plan plan = {MIN_STEP, PANEL_KEYS};
    for (;; plan.step++) {
        const float expected = (float)k / (float)plan.step;
        plan.rank = (int64_t)ceilf(expected + 3 * sqrtf(expected));
        /* numbers of panels have 16 bits */
        if (2 * plan.rank <= PANEL_KEYS && num_full_panels / plan.step < UINT16_MAX)
            return plan;
    }
}

static void estimate_threshold(const topk_params *params, sampling_plan plan, candidate_list *candidates,
                               const column_maxima *maxima) {
    const signed_sum_vector *sums = (const signed_sum_vector *)maxima->sums;
    float scores[PANEL_KEYS];
    int64_t size = 0;
    for (int column = 0; column < PANEL_KEYS; column++)
        scores[column] = sums[column / SUM_LANES][column % SUM_LANES];
    const float least = kth_best(scores, PANEL_KEYS, 2 * plan.rank);
    for (int column = 0; column < PANEL_KEYS && size < 2 * plan.rank; column++)
        if (sums[column / SUM_LANES][column % SUM_LANES] >= least) {
            const int64_t panel = maxima->panels[column / SUM_LANES][column % SUM_LANES] * plan.step;
            const float score = key_product(params, candidates->query, panel * PANEL_KEYS + column);
            if (!isnan(score))
                scores[size++] = score;
        }
    if (size < plan.rank)
        return;
    candidates->threshold = kth_best(scores, size, plan.rank);
    candidates->guess = candidates->threshold + 2 * candidates->margin;
}

/* Return whether there are enough keys for estimates. */
static int estimate_thresholds(const topk_params *params, candidate_list **queue, const key_panels *panels,
                               arena *scratch, const scan_buffers *buffers) {
    const sketch_shape shape = padded_shape(params->sketch_width);
    const sampling_plan plan = plan_sampling(params->k, params->num_keys);
    const int64_t num_tiles = count_tiles(params->num_queries);
    if (params->num_keys < MIN_SAMPLED_PANELS * plan.step * PANEL_KEYS ||
        params->num_keys < MIN_KEYS_PER_HIT * params->k ||
        !(params->largest_norm > 0 && params->largest_norm < INFINITY))
        return 0;
    column_maxima *maxima = arena_alloc(scratch, num_tiles * TILE_QUERIES * sizeof *maxima);
    if (scratch->out_of_memory)
        return 0;
    const signed_sum_t least_sum = SUM_BITS == 16 ? INT16_MIN : INT32_MIN;
    for (int64_t entry = 0; entry < num_tiles * TILE_QUERIES; entry++)
        for (int part = 0; part < PANEL_VECTORS; part++)
            maxima[entry].sums[part] = (sum_vector)((signed_sum_vector){0} + least_sum);
    fill_tiles(shape, queue, params->num_queries, buffers);
    for (int64_t sampled = 0; (sampled * plan.step + 1) * PANEL_KEYS <= params->num_keys; sampled++) {
        const int64_t panel = sampled * plan.step;
        const uint8_t *values = panels->values + panel * panel_bytes(shape);
        /* sums of different panels have different scales: bring them to that of the largest norm */
        const float ratio = KEY_LIMIT / (panels->bounds[panel].inverse_scale * params->largest_norm);
        const float factor = ratio < 1 ? ratio : 1;
        for (int64_t tile = 0; tile < num_tiles; tile++)
            raise_maxima(get_tile(shape, tile, buffers), values, shape, factor, (sum_t)sampled,
                         maxima + tile * TILE_QUERIES);
    }
    for (int64_t entry = 0; entry < params->num_queries; entry++)
        estimate_threshold(params, plan, queue[entry], maxima + entry);
    return 1;
}

#endif
