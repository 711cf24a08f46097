/* Inner products of two vectors, in float32 and in double precision. */

#ifndef LONGMEM_PRODUCTS_H
#define LONGMEM_PRODUCTS_H

#include <stdint.h>
#include <string.h>

enum { FLOATS = 8 };

typedef float floats __attribute__((vector_size(4 * FLOATS)));
typedef int32_t numbers __attribute__((vector_size(4 * FLOATS)));
typedef float floats4 __attribute__((vector_size(16)));
typedef double doubles4 __attribute__((vector_size(32)));

static inline floats load(const float *from) {
    floats to;
    memcpy(&to, from, sizeof to);
    return to;
}

static inline float sum_of(floats values) {
    floats4 halves[2];
    memcpy(halves, &values, sizeof halves);
    const floats4 four = halves[0] + halves[1];
    return (four[0] + four[2]) + (four[1] + four[3]);
}

/* Into the cache, before they are needed. */
static inline void fetch(const float *row, int64_t dim) {
    for (int64_t i = 0; i < dim; i += 16)
        __builtin_prefetch(row + i);
}

static inline float product(const float *a, const float *b, int64_t dim) {
    floats low = {0}, high = {0};
    int64_t i = 0;
    for (; i + 2 * FLOATS <= dim; i += 2 * FLOATS) {
        low += load(a + i) * load(b + i);
        high += load(a + i + FLOATS) * load(b + i + FLOATS);
    }
    float sum = sum_of(low + high);
    for (; i < dim; i++)
        sum += a[i] * b[i];
    return sum;
}

/* The same order of summation on every machine. */
static double precise_product(const float *a, const float *b, int64_t dim) {
    enum { STRIPES = 4, STEP = 4 * STRIPES };
    doubles4 sums[STRIPES] = {0};
    int64_t i = 0;
    for (; i + STEP <= dim; i += STEP)
        for (int stripe = 0; stripe < STRIPES; stripe++) {
            floats4 left, right;
            memcpy(&left, a + i + 4 * stripe, sizeof left);
            memcpy(&right, b + i + 4 * stripe, sizeof right);
            sums[stripe] += __builtin_convertvector(left, doubles4) * __builtin_convertvector(right, doubles4);
        }
    const doubles4 all = (sums[0] + sums[1]) + (sums[2] + sums[3]);
    double sum = (all[0] + all[1]) + (all[2] + all[3]);
    for (; i < dim; i++)
        sum += (double)a[i] * b[i];
    return sum;
}

#endif
