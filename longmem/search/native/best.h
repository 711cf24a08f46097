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

/* A candidate's score is its float32 product. */
typedef struct {
    float score;
    int64_t id;
} candidate;

typedef struct {
    int64_t row, k, size;
    candidate *candidates; /* best first; room for `most_candidates(k)` */
    float threshold;       /* a bound or float32 product below this cannot belong to the k best */
    float margin;          /* by how much float32 bounds and products can be too low, and products too high */
    float guess;           /* keys with products up to this may have been passed over */
} best;

/* Some more than k: float32 cannot tell which of those that are nearly equal is the k-th. */
static inline int64_t most_candidates(int64_t k) { return k + 16; }

/* Add a candidate to the others, of which there are fewer than the most, and forget those that cannot be among the k
   best any more. */
static inline void add(best *to, candidate found) {
    candidate *all = to->candidates;
    int64_t place = to->size++;
    for (; place && all[place - 1].score < found.score; place--)
        all[place] = all[place - 1];
    all[place] = found;
    if (to->size < to->k)
        return;
    /* the k best are at least this good by true products, and another margin less by float32 products */
    const float least = all[to->k - 1].score - 2 * to->margin, below = least - 0x1p-22f * fabsf(least);
    to->threshold = below > to->threshold ? below : to->threshold;
    while (to->size > to->k && all[to->size - 1].score < to->threshold)
        to->size--;
}

/* The k best of the candidates into `hits`, best first; returns how many there are. A product that is not a number is
   not among them. */
static int64_t rank(const best *of, const float *query, const float *keys, int64_t key_stride, int64_t dim, hit *hits) {
    int64_t size = 0;
    for (int64_t each = 0; each < of->size; each++) {
        const int64_t id = of->candidates[each].id;
        const hit found = {precise_product(query, keys + id * key_stride, dim), id};
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
