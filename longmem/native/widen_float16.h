// SPDX-License-Identifier: Apache-2.0
/* One float16 number as float32. */

#ifndef LONGMEM_WIDEN_FLOAT16_H
#define LONGMEM_WIDEN_FLOAT16_H

#include "vectors.h"

static inline float widen_float16(uint16_t half) {
    /* A multiplication corrects the exponent, which is exact for subnormal numbers too. Infinity and NaN are never
       stored. */
    const uint32_t bits = (uint32_t)(half & 0x7fff) << 13;
    float value;
    memcpy(&value, &bits, sizeof value);
    value *= 0x1p112f;
    return half & 0x8000 ? -value : value;
}

#endif
