/* Inner products of queries and rows, in float32 and in double precision. */

#ifndef LONGMEM_PRODUCTS_H
#define LONGMEM_PRODUCTS_H

#include "rows.h"

#define INLINE static inline __attribute__((always_inline))

typedef float floats4 __attribute__((vector_size(16)));
typedef double doubles4 __attribute__((vector_size(32)));

static inline float sum_of(floats values) {
    floats4 pair[2];
    memcpy(pair, &values, sizeof pair);
    const floats4 four = pair[0] + pair[1];
    return (four[0] + four[2]) + (four[1] + four[3]);
}

INLINE float product_of_kind(const float *a, const void *b, int64_t dim, int kind) {
    floats low = {0}, high = {0};
    int64_t i = 0;
    for (; i + 2 * FLOATS <= dim; i += 2 * FLOATS) {
        low += load(a + i) * widened(b, i, kind);
        high += load(a + i + FLOATS) * widened(b, i + FLOATS, kind);
    }
    float sum = sum_of(low + high);
    for (; i < dim; i++)
        sum += a[i] * widened_one(b, i, kind);
    return sum;
}

/* The same order of summation on every machine. */
INLINE double precise_product_of_kind(const float *a, const void *b, int64_t dim, int kind) {
    enum { STRIPES = 4, STEP = 4 * STRIPES };
    doubles4 sums[STRIPES] = {0};
    int64_t i = 0;
    for (; i + STEP <= dim; i += STEP)
        for (int pair = 0; pair < STRIPES; pair += 2) {
            floats4 left[2], right[2];
            const floats wide = widened(b, i + 4 * pair, kind);
            memcpy(left, a + i + 4 * pair, sizeof left);
            memcpy(right, &wide, sizeof right);
            for (int of_pair = 0; of_pair < 2; of_pair++)
                sums[pair + of_pair] += __builtin_convertvector(left[of_pair], doubles4) *
                                        __builtin_convertvector(right[of_pair], doubles4);
        }
    const doubles4 all = (sums[0] + sums[1]) + (sums[2] + sums[3]);
    double sum = (all[0] + all[1]) + (all[2] + all[3]);
    for (; i < dim; i++)
        sum += (double)a[i] * widened_one(b, i, kind);
    return sum;
}

/* One loop for each kind: a test of the kind inside of it would cost more than the product. */
static inline float product(const float *query, const rows *of, int64_t id, int64_t dim) {
    const void *row = row_of(of, id);
    return of->kind == FLOAT32   ? product_of_kind(query, row, dim, FLOAT32)
           : of->kind == FLOAT16 ? product_of_kind(query, row, dim, FLOAT16)
                                 : product_of_kind(query, row, dim, BFLOAT16);
}

static double precise_product(const float *query, const rows *of, int64_t id, int64_t dim) {
    const void *row = row_of(of, id);
    return of->kind == FLOAT32   ? precise_product_of_kind(query, row, dim, FLOAT32)
           : of->kind == FLOAT16 ? precise_product_of_kind(query, row, dim, FLOAT16)
                                 : precise_product_of_kind(query, row, dim, BFLOAT16);
}

#endif
