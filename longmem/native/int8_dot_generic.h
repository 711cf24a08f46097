// SPDX-License-Identifier: Apache-2.0
/* Int8 inner products on any processor, with sums of 16 bits. See `instruction_set.h`. */

#include "int8_sums16.h"

enum { SUM_LANES = 8, PANEL_VECTORS = 2, TILE_QUERIES = 6 };
typedef sum_t sum_vector __attribute__((vector_size(16)));
typedef signed_sum_t signed_sum_vector __attribute__((vector_size(16)));

static inline sum_vector add_products(sum_vector sums, sum_vector keys, int32_t group) {
    return sums + (keys & 0xff) * (uint16_t)(int8_t)group + (keys >> 8) * (uint16_t)(int8_t)(group >> 8);
}

static inline sum_vector scale_sums(sum_vector sums, float factor) {
    sum_vector scaled;
    for (int lane = 0; lane < SUM_LANES; lane++)
        scaled[lane] = (uint16_t)(((int16_t)sums[lane] * (int16_t)(factor * INT16_MAX) + (1 << 14)) >> 15);
    return scaled;
}

static inline uint64_t mask_greater(const sum_vector sums[PANEL_VECTORS], signed_sum_t limit) {
    uint64_t mask = 0;
    for (int key = 0; key < PANEL_VECTORS * SUM_LANES; key++)
        mask |= (uint64_t)((signed_sum_t)sums[key / SUM_LANES][key % SUM_LANES] > limit) << key;
    return mask;
}
