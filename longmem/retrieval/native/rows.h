/* Rows of numbers as they are kept, in float32 or in a type of half its length, and read as float32. */

#ifndef LONGMEM_ROWS_H
#define LONGMEM_ROWS_H

#include <stdint.h>
#include <string.h>
#if defined(__F16C__)
#include <immintrin.h>
#endif

enum { FLOATS = 8, FLOAT32 = 0, FLOAT16 = 1, BFLOAT16 = 2 };

typedef float floats __attribute__((vector_size(4 * FLOATS)));
typedef int32_t numbers __attribute__((vector_size(4 * FLOATS)));
typedef uint32_t bits_of_floats __attribute__((vector_size(4 * FLOATS)));
typedef uint16_t halves __attribute__((vector_size(2 * FLOATS)));

/* Rows begin `stride` numbers after each other. */
typedef struct {
    const void *first;
    int64_t stride;
    int kind;
} rows;

static inline int64_t bytes_of(int kind) { return kind == FLOAT32 ? 4 : 2; }

static inline const void *row_of(const rows *of, int64_t id) {
    return (const char *)of->first + id * of->stride * bytes_of(of->kind);
}

static inline floats load(const float *from) {
    floats to;
    memcpy(&to, from, sizeof to);
    return to;
}

static inline float widened_half(uint16_t half) {
    /* exponents are moved by a product, which makes subnormal numbers right too; infinity and NaN are never stored */
    const uint32_t bits = (uint32_t)(half & 0x7fff) << 13;
    float value;
    memcpy(&value, &bits, sizeof value);
    value *= 0x1p112f;
    return half & 0x8000 ? -value : value;
}

/* FLOATS numbers of a row. */
static inline floats widened(const void *row, int64_t at, int kind) {
    if (kind == FLOAT32)
        return load((const float *)row + at);
    const uint16_t *from = (const uint16_t *)row + at;
    floats wide;
    if (kind == BFLOAT16) {
        halves narrow;
        memcpy(&narrow, from, sizeof narrow);
        const bits_of_floats bits = __builtin_convertvector(narrow, bits_of_floats) << 16;
        memcpy(&wide, &bits, sizeof wide);
        return wide;
    }
#if defined(__F16C__)
    return (floats)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)from));
#else
    for (int lane = 0; lane < FLOATS; lane++)
        wide[lane] = widened_half(from[lane]);
    return wide;
#endif
}

static inline float widened_one(const void *row, int64_t at, int kind) {
    if (kind == FLOAT32)
        return ((const float *)row)[at];
    const uint16_t bits = ((const uint16_t *)row)[at];
    if (kind == FLOAT16)
        return widened_half(bits);
    const uint32_t wide = (uint32_t)bits << 16;
    float value;
    memcpy(&value, &wide, sizeof value);
    return value;
}

/* The first `width` numbers, and zeros up to `padded`. */
static inline void copy_padded(const void *row, int kind, int64_t width, int64_t padded, float *to) {
    int64_t at = 0;
    for (; at + FLOATS <= width; at += FLOATS) {
        const floats wide = widened(row, at, kind);
        memcpy(to + at, &wide, sizeof wide);
    }
    for (; at < width; at++)
        to[at] = widened_one(row, at, kind);
    memset(to + width, 0, (padded - width) * sizeof *to);
}

/* Into the cache, before they are needed. */
static inline void fetch(const void *row, int64_t bytes) {
    for (int64_t at = 0; at < bytes; at += 64)
        __builtin_prefetch((const char *)row + at);
}

#endif
