// SPDX-License-Identifier: Apache-2.0
/* Exponentials of 16 numbers at a time, for AVX-512. */

#ifndef LONGMEM_EXPONENTIAL_H
#define LONGMEM_EXPONENTIAL_H

#include <immintrin.h>
#include <math.h>
#include <stdint.h>

enum { LANES = 16 };

/* Return 2 to the power of each lane; relative error below 2^-18. Zero gives 1, minus infinity 0. */
static inline __m512 exp2_of(__m512 power) {
    /* what is above the whole number below the power; scalef uses that whole number */
    const __m512 part = _mm512_reduce_ps(power, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
    __m512 sum = _mm512_set1_ps(0.0134266885f);
    sum = _mm512_fmadd_ps(sum, part, _mm512_set1_ps(0.0522424653f));
    sum = _mm512_fmadd_ps(sum, part, _mm512_set1_ps(0.241280213f));
    sum = _mm512_fmadd_ps(sum, part, _mm512_set1_ps(0.693044841f));
    sum = _mm512_fmadd_ps(sum, part, _mm512_set1_ps(1.0f));
    return _mm512_scalef_ps(sum, power);
}

#endif
