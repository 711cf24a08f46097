// SPDX-License-Identifier: Apache-2.0
/* Exponentials of 16 numbers at a time, for AVX-512. */

#ifndef LONGMEM_EXPONENTIAL_H
#define LONGMEM_EXPONENTIAL_H

#include <immintrin.h>
#include <math.h>
#include <stdint.h>

enum { LANES = 16 };

/* Return 2 to the power of each lane, at most 2^0; relative error below 2^-22. Minus infinity gives zero. */
static inline __m512 exp2_of(__m512 power) {
    /* the second operand is returned where one is NaN */
    power = _mm512_max_ps(_mm512_set1_ps(-150.0f), power);
    const __m512 whole = _mm512_roundscale_ps(power, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    const __m512 part = _mm512_sub_ps(power, whole);
    __m512 sum = _mm512_set1_ps(0.00133335581f);
    sum = _mm512_fmadd_ps(sum, part, _mm512_set1_ps(0.00961812911f));
    sum = _mm512_fmadd_ps(sum, part, _mm512_set1_ps(0.0555041087f));
    sum = _mm512_fmadd_ps(sum, part, _mm512_set1_ps(0.240226507f));
    sum = _mm512_fmadd_ps(sum, part, _mm512_set1_ps(0.693147181f));
    sum = _mm512_fmadd_ps(sum, part, _mm512_set1_ps(1.0f));
    return _mm512_scalef_ps(sum, whole);
}

#endif
