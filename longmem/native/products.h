// SPDX-License-Identifier: Apache-2.0
/* Inner products of queries and rows, in float32 and in double precision. */

#ifndef LONGMEM_PRODUCTS_H
#define LONGMEM_PRODUCTS_H

#include "rows.h"

ALWAYS_INLINE float float_product_dtype(const float *query, const void *row, int64_t dim, int dtype) {
    f32x8 low = {0}, high = {0};
    int64_t i = 0;
    for (; i + 2 * FLOAT_LANES <= dim; i += 2 * FLOAT_LANES) {
        low += load_floats(query + i) * widen_lanes(row, i, dtype);
        high += load_floats(query + i + FLOAT_LANES) * widen_lanes(row, i + FLOAT_LANES, dtype);
    }
    float sum = sum_lanes(low + high);
    for (; i < dim; i++)
        sum += query[i] * widen_one(row, i, dtype);
    return sum;
}

/* The order of summation is the same on every machine. */
ALWAYS_INLINE double double_product_dtype(const float *query, const void *row, int64_t dim, int dtype) {
    enum { STRIPES = 4, STEP = 4 * STRIPES };
    f64x4 sums[STRIPES] = {0};
    int64_t i = 0;
    for (; i + STEP <= dim; i += STEP)
        for (int stripe = 0; stripe < STRIPES; stripe += 2) {
            f32x4 left[2], right[2];
            const f32x8 wide = widen_lanes(row, i + 4 * stripe, dtype);
            memcpy(left, query + i + 4 * stripe, sizeof left);
            memcpy(right, &wide, sizeof right);
            for (int half = 0; half < 2; half++)
                sums[stripe + half] +=
                    __builtin_convertvector(left[half], f64x4) * __builtin_convertvector(right[half], f64x4);
        }
    const f64x4 all = (sums[0] + sums[1]) + (sums[2] + sums[3]);
    double sum = (all[0] + all[1]) + (all[2] + all[3]);
    for (; i < dim; i++)
        sum += (double)query[i] * widen_one(row, i, dtype);
    return sum;
}

/* The loop is compiled once for each dtype: a test of the dtype inside it would cost more than the product. */
static inline float float_product(const float *query, const row_matrix *rows, int64_t id, int64_t dim) {
    const void *row = row_address(rows, id);
    return rows->dtype == FLOAT32   ? float_product_dtype(query, row, dim, FLOAT32)
           : rows->dtype == FLOAT16 ? float_product_dtype(query, row, dim, FLOAT16)
                                    : float_product_dtype(query, row, dim, BFLOAT16);
}

static double double_product(const float *query, const row_matrix *rows, int64_t id, int64_t dim) {
    const void *row = row_address(rows, id);
    return rows->dtype == FLOAT32   ? double_product_dtype(query, row, dim, FLOAT32)
           : rows->dtype == FLOAT16 ? double_product_dtype(query, row, dim, FLOAT16)
                                    : double_product_dtype(query, row, dim, BFLOAT16);
}

#endif
