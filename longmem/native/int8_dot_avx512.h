// SPDX-License-Identifier: Apache-2.0
/* Int8 inner products with AVX-512 BW: 64 products an instruction, sums of 16 bits. See `instruction_set.h`. */

#include <immintrin.h>

#include "int8_sums16.h"

enum { SUM_LANES = 32, PANEL_VECTORS = 2, TILE_QUERIES = 12 };
typedef sum_t sum_vector __attribute__((vector_size(64)));
typedef signed_sum_t signed_sum_vector __attribute__((vector_size(64)));

static inline sum_vector add_products(sum_vector sums, sum_vector keys, int32_t group) {
    return sums + (sum_vector)_mm512_maddubs_epi16((__m512i)keys, _mm512_set1_epi32(group));
}

static inline sum_vector scale_sums(sum_vector sums, float factor) {
    return (sum_vector)_mm512_mulhrs_epi16((__m512i)sums, _mm512_set1_epi16((int16_t)(factor * INT16_MAX)));
}

static inline uint64_t mask_greater(const sum_vector sums[PANEL_VECTORS], signed_sum_t limit) {
    const __m512i limits = _mm512_set1_epi16(limit);
    return (uint64_t)_mm512_cmpgt_epi16_mask((__m512i)sums[0], limits) |
           (uint64_t)_mm512_cmpgt_epi16_mask((__m512i)sums[1], limits) << SUM_LANES;
}
