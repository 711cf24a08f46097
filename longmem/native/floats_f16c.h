// SPDX-License-Identifier: Apache-2.0
/* Float32 vectors on x86 processors that convert float16 (F16C, which includes AVX). See `instruction_set.h`. */

#include <immintrin.h>

#include "vectors.h"

static inline f32x8 larger(f32x8 a, f32x8 b) { return (f32x8)_mm256_max_ps((__m256)a, (__m256)b); }

static inline f32x8 smaller(f32x8 a, f32x8 b) { return (f32x8)_mm256_min_ps((__m256)a, (__m256)b); }

static inline f32x8 widen_float16s(const uint16_t *source) {
    return (f32x8)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)source));
}
