// SPDX-License-Identifier: Apache-2.0
/* Rows of numbers, stored in float32, float16 or bfloat16 and read as float32. */

#ifndef LONGMEM_ROWS_H
#define LONGMEM_ROWS_H

#include "instruction_set.h"
#include "params.h"
#include "widen_float16.h"

static inline int64_t dtype_bytes(int dtype) { return dtype == FLOAT32 ? 4 : 2; }

static inline const void *row_address(const row_matrix *rows, int64_t id) {
    return (const char *)rows->first + id * rows->stride * dtype_bytes(rows->dtype);
}

/* FLOAT_LANES numbers of a row, from column `column`. */
static inline f32x8 widen_lanes(const void *row, int64_t column, int dtype) {
    if (dtype == FLOAT32)
        return load_floats((const float *)row + column);
    const uint16_t *source = (const uint16_t *)row + column;
    if (dtype == FLOAT16)
        return widen_float16s(source);
    u16x8 narrow;
    f32x8 wide;
    memcpy(&narrow, source, sizeof narrow);
    const u32x8 bits = __builtin_convertvector(narrow, u32x8) << 16;
    memcpy(&wide, &bits, sizeof wide);
    return wide;
}

static inline float widen_one(const void *row, int64_t column, int dtype) {
    if (dtype == FLOAT32)
        return ((const float *)row)[column];
    const uint16_t bits = ((const uint16_t *)row)[column];
    if (dtype == FLOAT16)
        return widen_float16(bits);
    const uint32_t wide = (uint32_t)bits << 16;
    float value;
    memcpy(&value, &wide, sizeof value);
    return value;
}

/* Copy the first `width` numbers of a row as float32, and fill with zeros up to `padded`. */
static inline void copy_padded(const void *row, int dtype, int64_t width, int64_t padded, float *copy) {
    int64_t column = 0;
    for (; column + FLOAT_LANES <= width; column += FLOAT_LANES) {
        const f32x8 wide = widen_lanes(row, column, dtype);
        memcpy(copy + column, &wide, sizeof wide);
    }
    for (; column < width; column++)
        copy[column] = widen_one(row, column, dtype);
    memset(copy + width, 0, (padded - width) * sizeof *copy);
}

static inline void prefetch_row(const void *row, int64_t num_bytes) {
    for (int64_t byte = 0; byte < num_bytes; byte += 64)
        __builtin_prefetch((const char *)row + byte);
}

#endif
