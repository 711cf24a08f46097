// SPDX-License-Identifier: Apache-2.0
/* What the instruction sets with sums of 16 bits share. See `instruction_set.h`.

   A block has BLOCK columns. Its quantised values have a norm of at most RADIUS and what rounding adds to it, which is
   at most 4. Because (RADIUS + 4)² < 2^15, the Cauchy-Schwarz inequality keeps the inner product of two blocks within
   16 bits, even if partial sums wrap around. */

#include "vectors.h"

typedef uint16_t sum_t;
typedef int16_t signed_sum_t;

/* QUERY_LIMIT: largest quantised value of a query. A step adds the products of GROUP values to a sum. */
enum { SUM_BITS = 16, GROUP = 2, QUERY_LIMIT = 64, BLOCK = 64 };
static const float RADIUS = 176;
/* Least and greatest limit of a sum that float32 represents. */
static const float LEAST_LIMIT = INT16_MIN, GREATEST_LIMIT = INT16_MAX;

/* A group of two query values, twice: for an instruction that broadcasts 32 bits. */
static inline int32_t repeat_group(uint32_t group) { return (int32_t)(group * 0x10001u); }

static inline void interleave_keys(const f32x8 biased[4], uint8_t *values, int64_t stride) {
    u64x4 pairs = {0};
    for (int key = 0; key < 4; key++) {
        /* a pair holds two columns; move the second one, from the upper half, next to the first */
        const u64x4 pair = (u64x4)biased[key];
        pairs |= ((pair & 0xff) | (pair >> 24 & 0xff00)) << 16 * key;
    }
    for (int pair = 0; pair < FLOAT_LANES / 2; pair++) {
        const uint64_t four_keys = pairs[pair];
        memcpy(values + pair * stride, &four_keys, sizeof four_keys);
    }
}
