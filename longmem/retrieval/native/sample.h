/* Where the thresholds of queries begin.

   Until a query has k candidates it has no threshold, and those of the first keys are low. So a sample of the keys is
   looked at first: of the keys that have the same place in its panels, the one with the largest sum of codes stands for
   them. The float32 product that only few of these reach should be reached by somewhat more than k of all keys. Where
   it is not, the guess was too high, and that query starts again without one. */

#ifndef LONGMEM_SAMPLE_H
#define LONGMEM_SAMPLE_H

#include "scan.h"

/* Each `step`-th panel, and the place of the guess among the best of the sample. */
typedef struct {
    int64_t step, place;
} sample;

enum { LEAST_STEP = 16, LEAST_PANELS = 16 };

/* With Bernoulli's luck, `step` times fewer keys hold k / step of the k best, give or take the root of that; three
   times the root more are enough but for one query in a hundred. */
static inline sample sample_for(int64_t k, int64_t num_keys) {
    const int64_t num_panels = num_keys / COLS;
    sample of = {LEAST_STEP, COLS};
    for (;; of.step++) {
        const float expected = (float)k / (float)of.step;
        of.place = (int64_t)ceilf(expected + 3 * sqrtf(expected));
        /* numbers of panels have sixteen bits */
        if (2 * of.place <= COLS && num_panels / of.step < UINT16_MAX)
            return of;
    }
}

static void guess_threshold(const problem *of, sample by, best *query, const maxima *met) {
    const signed_words *sums = (const signed_words *)met->sums;
    float scores[COLS];
    int64_t size = 0;
    for (int col = 0; col < COLS; col++)
        scores[col] = sums[col / LANES][col % LANES];
    const float least = kth_best(scores, COLS, 2 * by.place);
    for (int col = 0; col < COLS && size < 2 * by.place; col++)
        if (sums[col / LANES][col % LANES] >= least) {
            const int64_t panel = met->numbers[col / LANES][col % LANES] * by.step;
            const float score = product_of(of, query->row, panel * COLS + col);
            if (!isnan(score))
                scores[size++] = score;
        }
    if (size < by.place)
        return;
    query->threshold = kth_best(scores, size, by.place);
    query->guess = query->threshold + 2 * query->margin;
}

/* `largest` is the norm of the longest key or sketch of one. Returns whether there are enough keys for guesses. */
static int guess_thresholds(const problem *of, best **queue, int64_t num_keys, panels coded, float largest,
                            workspace *in) {
    const shape sketch = shape_of(of->width);
    const sample by = sample_for(of->k, num_keys);
    const int64_t tiles = num_tiles(of->num_queries);
    if (num_keys < LEAST_PANELS * by.step * COLS || num_keys < 64 * of->k || !(largest > 0 && largest < INFINITY))
        return 0;
    maxima *met = room(in, tiles * ROWS * sizeof *met);
    if (in->short_of_memory)
        return 0;
    for (int64_t slot = 0; slot < tiles * ROWS; slot++)
        met[slot].sums[0] = met[slot].sums[1] = (words)((signed_words){0} + INT16_MIN);
    put_queries(sketch, queue, of->num_queries, in);
    for (int64_t number = 0; (number * by.step + 1) * COLS <= num_keys; number++) {
        const uint8_t *codes = coded.codes + number * by.step * codes_of_panel(sketch);
        /* sums of different panels have different scales */
        const float ratio = KEY_LIMIT / (coded.bounds[number * by.step].inverse * largest);
        const float factor = ratio < 1 ? ratio : 1;
        for (int64_t at = 0; at < tiles; at++)
            raise_maxima(tile_of(sketch, at, in), codes, sketch, factor, (word)number, met + at * ROWS);
    }
    for (int64_t slot = 0; slot < of->num_queries; slot++)
        guess_threshold(of, by, queue[slot], met + slot);
    return 1;
}

#endif
