// SPDX-License-Identifier: Apache-2.0
/* Rows of bfloat16 numbers, 16 at a time, for AVX-512 BF16. */

#ifndef LONGMEM_BFLOAT16_LANES_H
#define LONGMEM_BFLOAT16_LANES_H

#include "exponential.h"

/* Lanes that lie within a row of which `left` numbers are left. */
static inline __mmask16 inside_of(int64_t left) { return left >= LANES ? 0xffff : (__mmask16)((1u << left) - 1); }

static inline __m512 widened(__m256i numbers) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(numbers), 16));
}

static inline __m512 rounded(__m512 numbers) {
    return widened((__m256i)_mm512_cvtneps_pbh(numbers));
}

/* Numbers from `row` on; zero outside of `inside`, where nothing is read. */
static inline __m512 load_bfloat16s(const uint16_t *row, __mmask16 inside) {
    return widened(_mm256_maskz_loadu_epi16(inside, row));
}

#endif
