// SPDX-License-Identifier: Apache-2.0
/* Float32 vectors on any processor. See `instruction_set.h`. */

#include "widen_float16.h"

static inline f32x8 larger(f32x8 a, f32x8 b) {
    const i32x8 first = a > b;
    return (f32x8)(((i32x8)a & first) | ((i32x8)b & ~first));
}

static inline f32x8 smaller(f32x8 a, f32x8 b) {
    const i32x8 first = a < b;
    return (f32x8)(((i32x8)a & first) | ((i32x8)b & ~first));
}

static inline f32x8 widen_float16s(const uint16_t *source) {
    f32x8 wide;
    for (int lane = 0; lane < FLOAT_LANES; lane++)
        wide[lane] = widen_float16(source[lane]);
    return wide;
}
