/* Read retrieved rows where they lie: products with them, and weighted sums of them. What torch does in three passes
   (copy the rows, widen them, multiply) is one here, and no array of tokens × heads × retrieved × dim is ever made. */

#include <stdint.h>
#include <string.h>
#if defined(__F16C__)
#include <immintrin.h>
#endif

enum { LANES = 8, FLOAT32 = 0, FLOAT16 = 1, BFLOAT16 = 2, AHEAD = 8 };

typedef float floats __attribute__((vector_size(4 * LANES)));
typedef uint32_t words __attribute__((vector_size(4 * LANES)));
typedef uint16_t halves __attribute__((vector_size(2 * LANES)));

static inline float narrow(uint16_t half) {
    /* exponents are moved by a product, which makes subnormal numbers right too; infinity and NaN are never stored */
    const uint32_t bits = (uint32_t)(half & 0x7fff) << 13;
    float value;
    memcpy(&value, &bits, sizeof value);
    value *= 0x1p112f;
    return half & 0x8000 ? -value : value;
}

static inline floats widened(const void *row, int64_t at, int kind) {
    floats wide;
    if (kind == FLOAT32) {
        memcpy(&wide, (const float *)row + at, sizeof wide);
        return wide;
    }
    const uint16_t *from = (const uint16_t *)row + at;
    if (kind == BFLOAT16) {
        halves narrow_ones;
        memcpy(&narrow_ones, from, sizeof narrow_ones);
        const words bits = __builtin_convertvector(narrow_ones, words) << 16;
        memcpy(&wide, &bits, sizeof wide);
        return wide;
    }
#if defined(__F16C__)
    return (floats)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)from));
#else
    for (int lane = 0; lane < LANES; lane++)
        wide[lane] = narrow(from[lane]);
    return wide;
#endif
}

static inline float widened_one(const void *row, int64_t at, int kind) {
    if (kind == FLOAT32)
        return ((const float *)row)[at];
    const uint16_t bits = ((const uint16_t *)row)[at];
    if (kind == FLOAT16)
        return narrow(bits);
    const uint32_t wide = (uint32_t)bits << 16;
    float value;
    memcpy(&value, &wide, sizeof value);
    return value;
}

static inline const char *row_of(const void *rows, int64_t row, int64_t dim, int kind) {
    return (const char *)rows + row * dim * (kind == FLOAT32 ? 4 : 2);
}

static inline __attribute__((always_inline)) void products(const float *query, const int64_t *ids, const void *rows,
                                                           int64_t num_ids, int64_t dim, int kind, float *out) {
    for (int64_t n = 0; n < num_ids; n++) {
        if (n + AHEAD < num_ids)
            __builtin_prefetch(row_of(rows, ids[n + AHEAD], dim, kind));
        const void *row = row_of(rows, ids[n], dim, kind);
        floats sums = {0};
        int64_t i = 0;
        for (; i + LANES <= dim; i += LANES) {
            floats asked;
            memcpy(&asked, query + i, sizeof asked);
            sums += asked * widened(row, i, kind);
        }
        float sum = 0;
        for (int lane = 0; lane < LANES; lane++)
            sum += sums[lane];
        for (; i < dim; i++)
            sum += query[i] * widened_one(row, i, kind);
        out[n] = sum;
    }
}

static inline __attribute__((always_inline)) void mixture(const float *weights, const int64_t *ids, const void *rows,
                                                          int64_t num_ids, int64_t dim, int kind, float *out) {
    memset(out, 0, dim * sizeof *out);
    for (int64_t n = 0; n < num_ids; n++) {
        if (n + AHEAD < num_ids)
            __builtin_prefetch(row_of(rows, ids[n + AHEAD], dim, kind));
        const void *row = row_of(rows, ids[n], dim, kind);
        const float weight = weights[n];
        int64_t i = 0;
        for (; i + LANES <= dim; i += LANES) {
            floats sum;
            memcpy(&sum, out + i, sizeof sum);
            sum += weight * widened(row, i, kind);
            memcpy(out + i, &sum, sizeof sum);
        }
        for (; i < dim; i++)
            out[i] += weight * widened_one(row, i, kind);
    }
}

/* `rows` of KV head j begin `head_stride` bytes after those of j - 1; `group` query heads read one KV head. For
   queries [tokens, heads, dim] and ids [tokens, heads, num_ids] the products are [tokens, heads, num_ids]; for weights
   of that shape the mixtures are [tokens, heads, dim]. `kind`: 0 float32, 1 float16, 2 bfloat16. */
void longmem_products(const float *queries, const int64_t *ids, const void *rows, int64_t head_stride, int64_t tokens,
                      int64_t heads, int64_t group, int64_t num_ids, int64_t dim, int kind, float *out) {
    for (int64_t at = 0; at < tokens * heads; at++) {
        const void *of_head = (const char *)rows + at % heads / group * head_stride;
        const float *query = queries + at * dim;
        if (kind == FLOAT32)
            products(query, ids + at * num_ids, of_head, num_ids, dim, FLOAT32, out + at * num_ids);
        else if (kind == FLOAT16)
            products(query, ids + at * num_ids, of_head, num_ids, dim, FLOAT16, out + at * num_ids);
        else
            products(query, ids + at * num_ids, of_head, num_ids, dim, BFLOAT16, out + at * num_ids);
    }
}

void longmem_mixtures(const float *weights, const int64_t *ids, const void *rows, int64_t head_stride, int64_t tokens,
                      int64_t heads, int64_t group, int64_t num_ids, int64_t dim, int kind, float *out) {
    for (int64_t at = 0; at < tokens * heads; at++) {
        const void *of_head = (const char *)rows + at % heads / group * head_stride;
        const float *weight = weights + at * num_ids;
        if (kind == FLOAT32)
            mixture(weight, ids + at * num_ids, of_head, num_ids, dim, FLOAT32, out + at * dim);
        else if (kind == FLOAT16)
            mixture(weight, ids + at * num_ids, of_head, num_ids, dim, FLOAT16, out + at * dim);
        else
            mixture(weight, ids + at * num_ids, of_head, num_ids, dim, BFLOAT16, out + at * dim);
    }
}
