/* Read retrieved rows where they lie: products with them, and weighted sums of them. What torch does in three passes
   (copy the rows, widen them, multiply) is one here, and no array of tokens × heads × retrieved × dim is ever made. */

#include "products.h"

enum { AHEAD = 8 };

static inline void fetch_ahead(const rows *of, const int64_t *ids, int64_t at, int64_t num_ids) {
    if (at + AHEAD < num_ids)
        __builtin_prefetch(row_of(of, ids[at + AHEAD]));
}

INLINE void mixture_of_kind(const float *weights, const int64_t *ids, const rows *of, int64_t num_ids, int64_t dim,
                            int kind, float *out) {
    memset(out, 0, dim * sizeof *out);
    for (int64_t n = 0; n < num_ids; n++) {
        fetch_ahead(of, ids, n, num_ids);
        const void *row = row_of(of, ids[n]);
        const float weight = weights[n];
        int64_t i = 0;
        for (; i + FLOATS <= dim; i += FLOATS) {
            const floats sum = load(out + i) + weight * widened(row, i, kind);
            memcpy(out + i, &sum, sizeof sum);
        }
        for (; i < dim; i++)
            out[i] += weight * widened_one(row, i, kind);
    }
}

/* Those of one of the KV heads, which follow each other `head_stride` numbers apart. */
static inline rows of_head(rows all, int64_t head, int64_t head_stride) {
    all.first = (const char *)all.first + head * head_stride * bytes_of(all.kind);
    return all;
}

/* The row i of KV head j begins `i * stride + j * head_stride` numbers behind `first`; `kind`: 0 float32, 1 float16,
   2 bfloat16. `group` query heads read one KV head. For queries [tokens, heads, dim] and ids [tokens, heads, num_ids]
   the products are [tokens, heads, num_ids]; for weights of that shape the mixtures are [tokens, heads, dim]. */
void longmem_products(const float *queries, const int64_t *ids, const void *first, int64_t stride, int64_t head_stride,
                      int kind, int64_t tokens, int64_t heads, int64_t group, int64_t num_ids, int64_t dim,
                      float *out) {
    for (int64_t at = 0; at < tokens * heads; at++) {
        const rows read = of_head((rows){first, stride, kind}, at % heads / group, head_stride);
        for (int64_t n = 0; n < num_ids; n++) {
            fetch_ahead(&read, ids + at * num_ids, n, num_ids);
            out[at * num_ids + n] = product(queries + at * dim, &read, ids[at * num_ids + n], dim);
        }
    }
}

void longmem_mixtures(const float *weights, const int64_t *ids, const void *first, int64_t stride, int64_t head_stride,
                      int kind, int64_t tokens, int64_t heads, int64_t group, int64_t num_ids, int64_t dim,
                      float *out) {
    for (int64_t at = 0; at < tokens * heads; at++) {
        const rows read = of_head((rows){first, stride, kind}, at % heads / group, head_stride);
        const float *with = weights + at * num_ids;
        if (kind == FLOAT32)
            mixture_of_kind(with, ids + at * num_ids, &read, num_ids, dim, FLOAT32, out + at * dim);
        else if (kind == FLOAT16)
            mixture_of_kind(with, ids + at * num_ids, &read, num_ids, dim, FLOAT16, out + at * dim);
        else
            mixture_of_kind(with, ids + at * num_ids, &read, num_ids, dim, BFLOAT16, out + at * dim);
    }
}
