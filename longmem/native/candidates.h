// SPDX-License-Identifier: Apache-2.0
/* The k best keys of one query, found in two steps. Float32 products select candidates; double-precision products rank
   them, equal ones by age: the older key first. */

#ifndef LONGMEM_CANDIDATES_H
#define LONGMEM_CANDIDATES_H

#include <math.h>
#include <stdint.h>

#include "products.h"

typedef struct {
    double score;
    int64_t id;
} hit;

static inline int is_worse(hit a, hit b) { return a.score < b.score || (a.score == b.score && a.id > b.id); }

/* Candidates of one query, in no order. Scores are float32 products, never NaN. Ids have 32 bits so that the candidates
   of all queries stay in the cache; a memory has fewer than 2^31 chunks. */
typedef struct {
    int64_t query, k, size;
    float *scores;   /* [max_candidates(k)] */
    int32_t *ids;    /* [max_candidates(k)] */
    float threshold; /* a key with a lower bound or float32 product cannot be among the k best */
    float margin;    /* largest error of a float32 bound or product */
    float guess;     /* keys with products up to this may have been skipped */
} candidate_list;

/* More than k, so that pruning is rare, and because float32 cannot tell which of several nearly equal candidates is the
   k-th. */
static inline int64_t max_candidates(int64_t k) { return (k + k / 2 + 8) / FLOAT_LANES * FLOAT_LANES + FLOAT_LANES; }

/* Integers that order like the floats whose bits they are made of. */
static inline i32x8 ordered_bits(f32x8 values) {
    const i32x8 bits = (i32x8)values;
    return bits ^ (bits >> 31 & INT32_MAX);
}

/* Return the least ordered bits that are at least `bottom`, or INT32_MAX if there are none. `padded` is a multiple of
   FLOAT_LANES. */
static inline int32_t least_above(int32_t bottom, const float *scores, int64_t padded) {
    i32x8 least = (i32x8){0} + INT32_MAX;
    for (int64_t i = 0; i < padded; i += FLOAT_LANES) {
        const i32x8 bits = ordered_bits(load_floats(scores + i)), lower = (bits >= bottom) & (bits < least);
        least = (bits & lower) | (least & ~lower);
    }
    int32_t found = least[0];
    for (int lane = 1; lane < FLOAT_LANES; lane++)
        found = least[lane] < found ? least[lane] : found;
    return found;
}

/* Count the scores whose ordered bits are at least `bottom`. */
static inline int64_t count_above(int32_t bottom, const float *scores, int64_t padded) {
    i32x8 negative_counts = {0};
    for (int64_t i = 0; i < padded; i += FLOAT_LANES)
        negative_counts += ordered_bits(load_floats(scores + i)) >= bottom;
    int64_t count = 0;
    for (int lane = 0; lane < FLOAT_LANES; lane++)
        count -= negative_counts[lane];
    return count;
}

/* Return the k-th best of `size` scores, 1 <= k <= size; `scores` has room for a multiple of FLOAT_LANES. Bisects the
   range of ordered bits until k scores are above the middle or only equal ones are left: no branch depends on a single
   score. */
static inline float kth_best(float *scores, int64_t size, int64_t k) {
    const int64_t padded = (size + FLOAT_LANES - 1) / FLOAT_LANES * FLOAT_LANES;
    for (int64_t i = size; i < padded; i++)
        scores[i] = -INFINITY;
    i32x8 most = ordered_bits(load_floats(scores));
    for (int64_t i = FLOAT_LANES; i < padded; i += FLOAT_LANES) {
        const i32x8 bits = ordered_bits(load_floats(scores + i)), greater = bits > most;
        most = (bits & greater) | (most & ~greater);
    }
    /* invariant: at least k scores are not below `low`, and fewer than k are above `high` */
    int64_t low = least_above(INT32_MIN, scores, padded), high = INT32_MIN;
    for (int lane = 0; lane < FLOAT_LANES; lane++)
        high = most[lane] > high ? most[lane] : high;
    while (low < high) {
        const int64_t middle = low + (high - low + 1) / 2, count = count_above((int32_t)middle, scores, padded);
        if (count >= k)
            low = middle;
        else
            high = middle - 1;
        if (count == k)
            low = high = least_above((int32_t)middle, scores, padded);
    }
    const int32_t bits = (int32_t)low ^ ((int32_t)low >> 31 & INT32_MAX);
    float found;
    memcpy(&found, &bits, sizeof found);
    return found;
}

/* Drop the candidates that cannot be among the k best, and raise the threshold. The k best have an exact product of at
   least the k-th best float32 product minus one margin; their own float32 products may be another margin lower. */
static inline void prune(candidate_list *list) {
    if (list->size < list->k)
        return;
    const float least = kth_best(list->scores, list->size, list->k) - 2 * list->margin;
    const float rounded_down = least - 0x1p-22f * fabsf(least);
    list->threshold = rounded_down > list->threshold ? rounded_down : list->threshold;
    int64_t kept = 0;
    for (int64_t i = 0; i < list->size; i++) {
        list->scores[kept] = list->scores[i], list->ids[kept] = list->ids[i];
        kept += list->scores[i] >= list->threshold;
    }
    list->size = kept;
}

/* Write the k best candidates to `hits`, best first, and return their number. A NaN product is never a hit. */
static int64_t rank(candidate_list *list, const float *query, const row_matrix *keys, int64_t dim, hit *hits) {
    enum { PREFETCH_DISTANCE = 4 };
    int64_t size = 0;
    prune(list);
    for (int64_t i = 0; i < list->size; i++) {
        if (i + PREFETCH_DISTANCE < list->size)
            prefetch_row(row_address(keys, list->ids[i + PREFETCH_DISTANCE]), dim * dtype_bytes(keys->dtype));
        const int64_t id = list->ids[i];
        const hit found = {double_product(query, keys, id, dim), id};
        if (isnan(found.score) || (size == list->k && !is_worse(hits[size - 1], found)))
            continue;
        int64_t position = size < list->k ? size++ : size - 1;
        for (; position && is_worse(hits[position - 1], found); position--)
            hits[position] = hits[position - 1];
        hits[position] = found;
    }
    return size;
}

#endif
