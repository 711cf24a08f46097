// SPDX-License-Identifier: Apache-2.0
/* Rotary positions of bfloat16 queries and keys in one pass; torch makes five operations of them, each through memory.
   Products and sums are rounded to bfloat16 where torch rounds them, so that the bits are the same; what is denormal is
   zero. */

#include "bfloat16_set.h"
#include "params.h"

#if defined(LONGMEM_BF16)

#include "bfloat16_lanes.h"

static inline __m512 product(__m512 numbers, __m512 factors) { return rounded(_mm512_mul_ps(numbers, factors)); }

static inline void store(uint16_t *output, __mmask16 inside, __m512 numbers) {
    _mm256_mask_storeu_epi16(output, inside, (__m256i)_mm512_cvtneps_pbh(numbers));
}

void longmem_rotate(const rotation_params *params, int64_t first, int64_t last) {
    const int64_t half = params->dim / 2;
    for (int64_t each = first; each < last; each++) {
        const int64_t batch = each / params->tokens, token = each % params->tokens;
        const int64_t in_tables = batch * params->table_batch + token * params->table_token;
        for (int64_t at = 0; at < half; at += LANES) {
            const __mmask16 inside = inside_of(half - at);
            const __m512 cos = load_bfloat16s(params->cos + in_tables + at, inside);
            const __m512 sin = load_bfloat16s(params->sin + in_tables + at, inside);
            const __m512 cos_behind = load_bfloat16s(params->cos + in_tables + half + at, inside);
            const __m512 sin_behind = load_bfloat16s(params->sin + in_tables + half + at, inside);
            for (int64_t head = 0; head < params->heads; head++) {
                const uint16_t *row = params->rows + batch * params->row_batch + head * params->row_head +
                                      token * params->row_token + at;
                uint16_t *output = params->output + batch * params->output_batch + head * params->output_head +
                                   token * params->output_token + at;
                const __m512 before = load_bfloat16s(row, inside), behind = load_bfloat16s(row + half, inside);
                store(output, inside, _mm512_sub_ps(product(before, cos), product(behind, sin)));
                store(output + half, inside, _mm512_add_ps(product(behind, cos_behind), product(before, sin_behind)));
            }
        }
    }
}

#else

void longmem_rotate(const rotation_params *params, int64_t first, int64_t last) { (void)params, (void)first, (void)last; }

#endif
