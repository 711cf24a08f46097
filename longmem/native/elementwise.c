// SPDX-License-Identifier: Apache-2.0
/* Norms and gated activations of bfloat16 rows in one pass; torch makes seven and two, each through memory. Results are
   rounded to bfloat16 where torch rounds them. */

#include "bfloat16_set.h"
#include "params.h"

#if defined(LONGMEM_BF16)

#include "bfloat16_lanes.h"

/* Numbers `at` to `at + 15` of a row; zero outside of `inside`. */
static inline __m512 load_row(const uint16_t *row, int64_t at, __mmask16 inside) {
    return load_bfloat16s(row + at, inside);
}

static inline void store_row(uint16_t *row, int64_t at, __mmask16 inside, __m512 numbers) {
    _mm256_mask_storeu_epi16(row + at, inside, (__m256i)_mm512_cvtneps_pbh(numbers));
}

void longmem_rms_norm(const rms_norm_params *params, int64_t first, int64_t last) {
    const int64_t width = params->width;
    for (int64_t each = first; each < last; each++) {
        const uint16_t *row = params->rows + each * width;
        __m512 squares = _mm512_setzero_ps();
        for (int64_t at = 0; at < width; at += LANES) {
            const __m512 numbers = load_row(row, at, inside_of(width - at));
            squares = _mm512_fmadd_ps(numbers, numbers, squares);
        }
        const __m512 scale = _mm512_set1_ps(1.0f / sqrtf(_mm512_reduce_add_ps(squares) / width + params->epsilon));
        for (int64_t at = 0; at < width; at += LANES) {
            const __mmask16 inside = inside_of(width - at);
            const __m512 normed = rounded(_mm512_mul_ps(load_row(row, at, inside), scale));
            const __m512 weighted = _mm512_mul_ps(load_row(params->weight, at, inside), normed);
            store_row(params->output + each * width, at, inside, weighted);
        }
    }
}

void longmem_silu_product(const silu_product_params *params, int64_t first, int64_t last) {
    for (int64_t at = first; at < last; at += LANES) {
        const __mmask16 inside = inside_of(last - at);
        const __m512 gate = load_row(params->gates, at, inside), one = _mm512_set1_ps(1.0f);
        const __m512 power = exp2_of(_mm512_mul_ps(gate, _mm512_set1_ps(-1.44269504f)));
        const __m512 active = rounded(_mm512_div_ps(gate, _mm512_add_ps(one, power)));
        store_row(params->output, at, inside, _mm512_mul_ps(active, load_row(params->factors, at, inside)));
    }
}

#else

void longmem_rms_norm(const rms_norm_params *params, int64_t first, int64_t last) { (void)params, (void)first, (void)last; }

void longmem_silu_product(const silu_product_params *params, int64_t first, int64_t last) {
    (void)params, (void)first, (void)last;
}

#endif
