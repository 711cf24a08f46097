// SPDX-License-Identifier: Apache-2.0
/* Int8 inner products with AVX2: 32 products an instruction, sums of 16 bits. See `instruction_set.h`. */

#include <immintrin.h>

#include "int8_sums16.h"

enum { SUM_LANES = 16, PANEL_VECTORS = 2, TILE_QUERIES = 6 };
typedef sum_t sum_vector __attribute__((vector_size(32)));
typedef signed_sum_t signed_sum_vector __attribute__((vector_size(32)));

static inline sum_vector add_products(sum_vector sums, sum_vector keys, int32_t group) {
    return sums + (sum_vector)_mm256_maddubs_epi16((__m256i)keys, _mm256_set1_epi32(group));
}

static inline sum_vector scale_sums(sum_vector sums, float factor) {
    return (sum_vector)_mm256_mulhrs_epi16((__m256i)sums, _mm256_set1_epi16((int16_t)(factor * INT16_MAX)));
}

static inline uint64_t mask_greater(const sum_vector sums[PANEL_VECTORS], signed_sum_t limit) {
    const __m256i limits = _mm256_set1_epi16(limit);
    const __m256i bytes =
        _mm256_packs_epi16(_mm256_cmpgt_epi16((__m256i)sums[0], limits), _mm256_cmpgt_epi16((__m256i)sums[1], limits));
    return (uint32_t)_mm256_movemask_epi8(_mm256_permute4x64_epi64(bytes, 0xd8));
}
