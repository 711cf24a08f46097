// SPDX-License-Identifier: Apache-2.0
/* Vectors of numbers, which the compiler maps to registers of any width. */

#ifndef LONGMEM_VECTORS_H
#define LONGMEM_VECTORS_H

#include <stdint.h>
#include <string.h>

#define ALWAYS_INLINE static inline __attribute__((always_inline))

/* Lanes of f32x8. */
enum { FLOAT_LANES = 8 };

typedef float f32x8 __attribute__((vector_size(32)));
typedef float f32x4 __attribute__((vector_size(16)));
typedef double f64x4 __attribute__((vector_size(32)));
typedef int32_t i32x8 __attribute__((vector_size(32)));
typedef uint32_t u32x8 __attribute__((vector_size(32)));
typedef uint64_t u64x4 __attribute__((vector_size(32)));
typedef uint16_t u16x8 __attribute__((vector_size(16)));

static inline f32x8 load_floats(const float *source) {
    f32x8 values;
    memcpy(&values, source, sizeof values);
    return values;
}

static inline f32x8 absolute(f32x8 values) { return (f32x8)((i32x8)values & INT32_MAX); }

static inline float sum_lanes(f32x8 values) {
    f32x4 halves[2];
    memcpy(halves, &values, sizeof halves);
    const f32x4 four = halves[0] + halves[1];
    return (four[0] + four[2]) + (four[1] + four[3]);
}

#endif
