// SPDX-License-Identifier: Apache-2.0
/* Products with retrieved rows, and weighted sums of them, read where they are stored. Torch makes three passes (copy
   the rows, widen them, multiply); here it is one, and no array of tokens × heads × retrieved × dim is allocated. */

#include "params.h"
#include "products.h"

enum { PREFETCH_DISTANCE = 8 };

static inline void prefetch_ahead(const row_matrix *rows, const int64_t *ids, int64_t index, int64_t num_ids) {
    if (index + PREFETCH_DISTANCE < num_ids)
        __builtin_prefetch(row_address(rows, ids[index + PREFETCH_DISTANCE]));
}

/* Rows of the KV head of a query head. */
static inline row_matrix head_rows(const gather_params *params, int64_t head) {
    const int64_t skipped = head / params->group_size * params->head_stride;
    row_matrix rows = params->rows;
    rows.first = (const char *)rows.first + skipped * dtype_bytes(rows.dtype);
    return rows;
}

void longmem_products(const gather_params *params) {
    const int64_t num_ids = params->num_ids, dim = params->dim;
    for (int64_t item = 0; item < params->num_tokens * params->num_heads; item++) {
        const row_matrix rows = head_rows(params, item % params->num_heads);
        const float *query = params->input + item * dim;
        const int64_t *ids = params->ids + item * num_ids;
        float *products = params->output + item * num_ids;
        for (int64_t i = 0; i < num_ids; i++) {
            prefetch_ahead(&rows, ids, i, num_ids);
            products[i] = float_product(query, &rows, ids[i], dim);
        }
    }
}

ALWAYS_INLINE void mixture_dtype(const float *weights, const int64_t *ids, const row_matrix *rows, int64_t num_ids,
                                 int64_t dim, int dtype, float *sums) {
    memset(sums, 0, dim * sizeof *sums);
    for (int64_t i = 0; i < num_ids; i++) {
        prefetch_ahead(rows, ids, i, num_ids);
        const void *row = row_address(rows, ids[i]);
        const float weight = weights[i];
        int64_t column = 0;
        for (; column + FLOAT_LANES <= dim; column += FLOAT_LANES) {
            const f32x8 sum = load_floats(sums + column) + weight * widen_lanes(row, column, dtype);
            memcpy(sums + column, &sum, sizeof sum);
        }
        for (; column < dim; column++)
            sums[column] += weight * widen_one(row, column, dtype);
    }
}

void longmem_mixtures(const gather_params *params) {
    const int64_t num_ids = params->num_ids, dim = params->dim;
    for (int64_t item = 0; item < params->num_tokens * params->num_heads; item++) {
        const row_matrix rows = head_rows(params, item % params->num_heads);
        const float *weights = params->input + item * num_ids;
        const int64_t *ids = params->ids + item * num_ids;
        float *sums = params->output + item * dim;
        if (rows.dtype == FLOAT32)
            mixture_dtype(weights, ids, &rows, num_ids, dim, FLOAT32, sums);
        else if (rows.dtype == FLOAT16)
            mixture_dtype(weights, ids, &rows, num_ids, dim, FLOAT16, sums);
        else
            mixture_dtype(weights, ids, &rows, num_ids, dim, BFLOAT16, sums);
    }
}
