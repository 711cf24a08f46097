/* The k best keys of one query, found in two steps: candidates by float32 products, and the best of them by products in
   double precision, equal ones the older key first. */

#ifndef LONGMEM_BEST_H
#define LONGMEM_BEST_H

#include <math.h>
#include <stdint.h>

#include "products.h"

typedef struct {
    double score;
    int64_t id;
} hit;

static inline int worse(hit a, hit b) { return a.score < b.score || (a.score == b.score && a.id > b.id); }

/* Candidates are in no order, and scores are float32 products that are numbers. Ids are short, because the candidates
   of all queries should stay in the cache: memory has fewer than 2^31 chunks. */
typedef struct {
    int64_t row, k, size;
    float *scores;   /* room for `most_candidates(k)` */
    int32_t *ids;    /* the same */
    float threshold; /* a bound or float32 product below this cannot belong to the k best */
    float margin;    /* by how much float32 bounds and products can be too low, and products too high */
    float guess;     /* keys with products up to this may have been passed over */
} best;

/* Some more than k, so that they are seldom thinned out, and because float32 cannot tell which of those that are nearly
   equal is the k-th. */
static inline int64_t most_candidates(int64_t k) { return (k + k / 2 + 8) / FLOATS * FLOATS + FLOATS; }

/* Whole numbers in the order of the floats whose bits they are made of. */
static inline numbers in_order(floats values) {
    const numbers bits = (numbers)values;
    return bits ^ (bits >> 31 & INT32_MAX);
}

/* The least of some whole numbers that is not below `floor`; INT32_MAX where none is. */
static inline int32_t least_from(int32_t floor, const float *scores, int64_t whole) {
    numbers least = (numbers){0} + INT32_MAX;
    for (int64_t each = 0; each < whole; each += FLOATS) {
        const numbers keys = in_order(load(scores + each)), lower = (keys >= floor) & (keys < least);
        least = (keys & lower) | (least & ~lower);
    }
    int32_t found = least[0];
    for (int lane = 1; lane < FLOATS; lane++)
        found = least[lane] < found ? least[lane] : found;
    return found;
}

/* How many of them are not below `floor`. */
static inline int64_t count_from(int32_t floor, const float *scores, int64_t whole) {
    numbers minus = {0};
    for (int64_t each = 0; each < whole; each += FLOATS)
        minus += in_order(load(scores + each)) >= floor;
    int64_t count = 0;
    for (int lane = 0; lane < FLOATS; lane++)
        count -= minus[lane];
    return count;
}

/* The k-th best of `size` scores, k at most `size`; there is room for whole vectors of them. Halves the range of whole
   numbers that it can be in until k are above the middle, or only equal ones are left: no branch depends on one score.
*/
static inline float kth_best(float *scores, int64_t size, int64_t k) {
    const int64_t whole = (size + FLOATS - 1) / FLOATS * FLOATS;
    for (int64_t each = size; each < whole; each++)
        scores[each] = -INFINITY;
    numbers most = in_order(load(scores));
    for (int64_t each = FLOATS; each < whole; each += FLOATS) {
        const numbers keys = in_order(load(scores + each)), larger = keys > most;
        most = (keys & larger) | (most & ~larger);
    }
    /* at least k are not below `low`, and fewer than k are above `high` */
    int64_t low = least_from(INT32_MIN, scores, whole), high = INT32_MIN;
    for (int lane = 0; lane < FLOATS; lane++)
        high = most[lane] > high ? most[lane] : high;
    while (low < high) {
        const int64_t middle = low + (high - low + 1) / 2, count = count_from((int32_t)middle, scores, whole);
        if (count >= k)
            low = middle;
        else
            high = middle - 1;
        if (count == k)
            low = high = least_from((int32_t)middle, scores, whole);
    }
    const int32_t bits = (int32_t)low ^ ((int32_t)low >> 31 & INT32_MAX);
    float found;
    memcpy(&found, &bits, sizeof found);
    return found;
}

/* Forget the candidates that cannot be among the k best. */
static inline void thin_out(best *of) {
    if (of->size < of->k)
        return;
    /* the k best are at least this good by true products, and another margin less by float32 products */
    const float least = kth_best(of->scores, of->size, of->k) - 2 * of->margin, below = least - 0x1p-22f * fabsf(least);
    of->threshold = below > of->threshold ? below : of->threshold;
    int64_t kept = 0;
    for (int64_t each = 0; each < of->size; each++) {
        of->scores[kept] = of->scores[each], of->ids[kept] = of->ids[each];
        kept += of->scores[each] >= of->threshold;
    }
    of->size = kept;
}

/* The k best of the candidates into `hits`, best first; returns how many there are. A product that is not a number is
   not among them. */
static int64_t rank(best *of, const float *query, const rows *keys, int64_t dim, hit *hits) {
    enum { AHEAD = 4 };
    int64_t size = 0;
    thin_out(of);
    for (int64_t each = 0; each < of->size; each++) {
        if (each + AHEAD < of->size)
            fetch(row_of(keys, of->ids[each + AHEAD]), dim * bytes_of(keys->kind));
        const int64_t id = of->ids[each];
        const hit found = {precise_product(query, keys, id, dim), id};
        if (isnan(found.score) || (size == of->k && !worse(hits[size - 1], found)))
            continue;
        int64_t place = size < of->k ? size++ : size - 1;
        for (; place && worse(hits[place - 1], found); place--)
            hits[place] = hits[place - 1];
        hits[place] = found;
    }
    return size;
}

#endif
