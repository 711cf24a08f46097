// SPDX-License-Identifier: Apache-2.0
/* Weights of attention: exponentials of one row's scores, with a running maximum and sum. */

#ifndef LONGMEM_ATTENTION_WEIGHTS_H
#define LONGMEM_ATTENTION_WEIGHTS_H

#include "exponential.h"

/* Running maximum of the scores, and sum of the weights, of each row. */
typedef struct {
    float maximum, sum;
} row_total;

/* Weights of 16 scores, relative to that of the maximum; those outside of `sees` are zero. */
static inline __m512 weights_of(const float *scores, __mmask16 sees, __m512 scale, __m512 maximum) {
    const __m512 power = _mm512_mul_ps(_mm512_sub_ps(_mm512_loadu_ps(scores), maximum), scale);
    return _mm512_maskz_mov_ps(sees, exp2_of(power));
}

/* Turn `count` scores (a multiple of 32) into bfloat16 weights. Only the first `own` are seen, none where it is negative;
   `scale` is positive. Return the factor of what was summed before. */
static inline float weigh_row(
    const float *scores, int64_t own, int64_t count, float scale, row_total *total, uint16_t *weights
) {
    const int64_t seen = own < 0 ? 0 : own < count ? own : count, whole = seen - seen % LANES;
    const __mmask16 rest = (__mmask16)((1u << (seen - whole)) - 1);
    __m512 largest = _mm512_set1_ps(-INFINITY);
    for (int64_t at = 0; at < whole; at += LANES) largest = _mm512_max_ps(largest, _mm512_loadu_ps(scores + at));
    if (rest) largest = _mm512_mask_max_ps(largest, rest, largest, _mm512_loadu_ps(scores + whole));
    const float before = total->maximum, highest = _mm512_reduce_max_ps(largest);
    const float maximum = seen && highest > before ? highest : before;
    const __m512 shift = _mm512_set1_ps(maximum), factor = _mm512_set1_ps(scale);
    __m512 sum = _mm512_setzero_ps();
    int64_t at = 0;
    for (; at + 2 * LANES <= whole; at += 2 * LANES) {
        const __m512 low = weights_of(scores + at, 0xffff, factor, shift);
        const __m512 high = weights_of(scores + at + LANES, 0xffff, factor, shift);
        sum = _mm512_add_ps(_mm512_add_ps(sum, low), high);
        _mm512_storeu_si512(weights + at, (__m512i)_mm512_cvtne2ps_pbh(high, low));
    }
    if (at < seen) {
        const __m512 low = weights_of(scores + at, at < whole ? 0xffff : rest, factor, shift);
        const __m512 high = weights_of(scores + at + LANES, at < whole ? rest : 0, factor, shift);
        sum = _mm512_add_ps(_mm512_add_ps(sum, low), high);
        _mm512_storeu_si512(weights + at, (__m512i)_mm512_cvtne2ps_pbh(high, low));
        at += 2 * LANES;
    }
    for (; at < count; at += 2 * LANES) _mm512_storeu_si512(weights + at, _mm512_setzero_si512());
    const float correction = exp2f((before - maximum) * scale);
    total->maximum = maximum;
    total->sum = total->sum * correction + _mm512_reduce_add_ps(sum);
    return correction;
}

#endif
