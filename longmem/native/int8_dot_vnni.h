// SPDX-License-Identifier: Apache-2.0
/* Int8 inner products with AVX-512 VNNI: 64 products an instruction, sums of 32 bits. See `instruction_set.h`.

   A sum of 2^16 products of two bytes fits into 32 bits, so a block has 2^16 columns and quantised values may have
   eight bits and any norm. */

#include <immintrin.h>
#include <math.h>

#include "vectors.h"

typedef uint32_t sum_t;
typedef int32_t signed_sum_t;

enum { SUM_BITS = 32, GROUP = 4, QUERY_LIMIT = 127, BLOCK = 1 << 16 };
static const float RADIUS = INFINITY;
/* The greatest float32 below 2^31 is 2^31 - 2^7. */
static const float LEAST_LIMIT = INT32_MIN, GREATEST_LIMIT = 0x1p31f - 0x1p7f;

enum { SUM_LANES = 16, PANEL_VECTORS = 4, TILE_QUERIES = 6 };
typedef sum_t sum_vector __attribute__((vector_size(64)));
typedef signed_sum_t signed_sum_vector __attribute__((vector_size(64)));

static inline int32_t repeat_group(uint32_t group) { return (int32_t)group; }

static inline void interleave_keys(const f32x8 biased[4], uint8_t *values, int64_t stride) {
    __m128i keys[4];
    for (int key = 0; key < 4; key++)
        keys[key] = _mm256_cvtepi32_epi8((__m256i)biased[key]);
    const __m128i front = _mm_unpacklo_epi32(keys[0], keys[1]), back = _mm_unpacklo_epi32(keys[2], keys[3]);
    _mm_storeu_si128((__m128i *)values, _mm_unpacklo_epi64(front, back));
    _mm_storeu_si128((__m128i *)(values + stride), _mm_unpackhi_epi64(front, back));
}

static inline sum_vector add_products(sum_vector sums, sum_vector keys, int32_t group) {
    return (sum_vector)_mm512_dpbusd_epi32((__m512i)sums, (__m512i)keys, _mm512_set1_epi32(group));
}

static inline sum_vector scale_sums(sum_vector sums, float factor) {
    const __m512 wide = _mm512_cvtepi32_ps((__m512i)sums);
    return (sum_vector)_mm512_cvtps_epi32(_mm512_mul_ps(wide, _mm512_set1_ps(factor)));
}

static inline uint64_t mask_greater(const sum_vector sums[PANEL_VECTORS], signed_sum_t limit) {
    const __m512i limits = _mm512_set1_epi32(limit);
    uint64_t mask = 0;
    for (int part = 0; part < PANEL_VECTORS; part++)
        mask |= (uint64_t)_mm512_cmpgt_epi32_mask((__m512i)sums[part], limits) << part * SUM_LANES;
    return mask;
}
