// SPDX-License-Identifier: Apache-2.0
/* Log-probabilities of one token a row, from bfloat16 logits: nothing of the vocabulary's size is written. */

#include "bfloat16_set.h"
#include "params.h"

#if defined(LONGMEM_BF16)

#include <string.h>

#include "bfloat16_lanes.h"

/* Logits `at` to `at + 15` of a row; those outside of `inside` are minus infinity. */
static inline __m512 load_logits(const uint16_t *row, __mmask16 inside) {
    return _mm512_mask_mov_ps(_mm512_set1_ps(-INFINITY), inside, load_bfloat16s(row, inside));
}

void longmem_logprobs(const logprobs_params *params, int64_t first, int64_t last) {
    const float log2_e = 1.44269504f, ln_2 = 0.693147181f;
    for (int64_t each = first; each < last; each++) {
        const uint16_t *row = params->logits + each * params->stride;
        __m512 largest = _mm512_set1_ps(-INFINITY);
        for (int64_t at = 0; at < params->vocabulary; at += LANES)
            /* the second operand is returned where one is NaN: it is left to the sum */
            largest = _mm512_max_ps(load_logits(row + at, inside_of(params->vocabulary - at)), largest);
        const float maximum = _mm512_reduce_max_ps(largest);
        __m512 sum = _mm512_setzero_ps();
        for (int64_t at = 0; at < params->vocabulary; at += LANES) {
            const __m512 logits = load_logits(row + at, inside_of(params->vocabulary - at));
            const __m512 power = _mm512_mul_ps(_mm512_sub_ps(logits, _mm512_set1_ps(maximum)), _mm512_set1_ps(log2_e));
            sum = _mm512_add_ps(sum, exp2_of(power));
        }
        const uint32_t bits = (uint32_t)row[params->targets[each]] << 16;
        float target;
        memcpy(&target, &bits, sizeof target);
        params->output[each] = target - maximum - ln_2 * log2f(_mm512_reduce_add_ps(sum));
    }
}

#else

void longmem_logprobs(const logprobs_params *params, int64_t first, int64_t last) {
    (void)params, (void)first, (void)last;
}

#endif
