// SPDX-License-Identifier: Apache-2.0
/* Upper bounds of inner products from int8 products.

   For a query a and a key b, quantised as scale · (values + residual) each (`quantise.h`), with values A and B,

       a · b  =  s_a s_b (A · B  +  A · residual_b  +  residual_a · b / s_b)
             ≤  s_a s_b (A · B  +  |A| |residual_b|  +  |residual_a| |b| / s_b),

   and A · B is exact. An int8 instruction makes four times as many products as a float32 one. Where sums have 16 bits,
   the sum of a block fits, even if partial sums wrap around. Longer vectors have several blocks, whose sums lose a few
   low bits before they are added. */

#ifndef LONGMEM_BOUNDS_H
#define LONGMEM_BOUNDS_H

#include "quantise.h"

typedef signed_sum_t narrow_limits __attribute__((vector_size(sizeof(sum_t) * FLOAT_LANES)));

/* For each query of a scan: threshold / scale, |values|, |residual|, and the integer limit that follows from them for
   one panel. Padded to whole tiles and whole vectors. */
typedef struct {
    float *thresholds, *norms, *residuals;
    signed_sum_t *limits;
} query_limits;

static inline void set_query_limit(query_limits queries, int64_t entry, query_bounds bounds, float threshold) {
    queries.thresholds[entry] = threshold / bounds.scale;
    queries.norms[entry] = bounds.norm;
    queries.residuals[entry] = bounds.residual;
}

/* Compute the limits for a panel: only keys with greater sums can have products that reach the thresholds.

   The slack is one unit of the sums for 64 columns, plus 2. The first part covers the bits that a block of 64 columns
   drops, or the float32 error in numbers as large as sums of so many products. Of the 2, one covers the float32 error
   in small numbers, and one the rounding towards zero. */
static inline void set_panel_limits(query_limits queries, int64_t num_queries, panel_bounds panel, sketch_shape shape) {
    const float unit = 1.0f / (float)(1 << shape.dropped_bits), slack = (float)((shape.width + 63) / 64 + 2);
    const f32x8 least = (f32x8){0} + LEAST_LIMIT, greatest = (f32x8){0} + GREATEST_LIMIT;
    for (int64_t entry = 0; entry < num_queries; entry += FLOAT_LANES) {
        const f32x8 residuals = load_floats(queries.norms + entry) * panel.residual +
                                load_floats(queries.residuals + entry) * panel.norm;
        const f32x8 exact =
            (load_floats(queries.thresholds + entry) * panel.inverse_scale - residuals) * unit - slack;
        /* NaN becomes the least limit */
        const i32x8 limits = __builtin_convertvector(smaller(larger(exact, least), greatest), i32x8);
        const narrow_limits narrow = __builtin_convertvector(limits, narrow_limits);
        memcpy(queries.limits + entry, &narrow, sizeof narrow);
    }
}

static inline sum_vector load_key_values(const uint8_t *source) {
    sum_vector values;
    memcpy(&values, source, sizeof values);
    return values;
}

/* Quantised values of TILE_QUERIES queries, group by group. */
typedef struct {
    const int32_t *groups;
    const sum_t *starts;
} query_tile;

/* Sum the products of a tile and a panel over one block. */
ALWAYS_INLINE void multiply_block(query_tile tile, const uint8_t *values, int64_t num_groups, int dropped_bits,
                                  sum_vector sums[TILE_QUERIES][PANEL_VECTORS]) {
    for (int query = 0; query < TILE_QUERIES; query++)
        for (int part = 0; part < PANEL_VECTORS; part++)
            sums[query][part] = tile.starts[query] - (sum_vector){0};
    /* do-while tells the compiler that there is at least one group, so that it keeps the sums in registers */
    do {
        sum_vector keys[PANEL_VECTORS];
        for (int part = 0; part < PANEL_VECTORS; part++)
            keys[part] = load_key_values(values + part * sizeof(sum_vector));
        for (int query = 0; query < TILE_QUERIES; query++)
            for (int part = 0; part < PANEL_VECTORS; part++)
                sums[query][part] = add_products(sums[query][part], keys[part], tile.groups[query]);
        tile.groups += TILE_QUERIES, values += PANEL_KEYS * GROUP;
    } while (--num_groups);
    for (int query = 0; query < TILE_QUERIES; query++)
        for (int part = 0; part < PANEL_VECTORS; part++)
            sums[query][part] = (sum_vector)((signed_sum_vector)sums[query][part] >> dropped_bits);
}

/* Sum the products of a tile and a panel over several blocks. */
ALWAYS_INLINE void multiply_blocks(query_tile tile, const uint8_t *values, sketch_shape shape,
                                   sum_vector sums[TILE_QUERIES][PANEL_VECTORS]) {
    const int64_t num_groups = shape.width / GROUP;
    multiply_block(tile, values, BLOCK / GROUP, shape.dropped_bits, sums);
    for (int64_t block = 1; block < shape.num_blocks; block++) {
        const int64_t first = block * BLOCK / GROUP, left = num_groups - first;
        const query_tile rest = {tile.groups + first * TILE_QUERIES, tile.starts + block * TILE_QUERIES};
        sum_vector more[TILE_QUERIES][PANEL_VECTORS];
        multiply_block(rest, values + first * PANEL_KEYS * GROUP, left < BLOCK / GROUP ? left : BLOCK / GROUP,
                       shape.dropped_bits, more);
        for (int query = 0; query < TILE_QUERIES; query++)
            for (int part = 0; part < PANEL_VECTORS; part++)
                sums[query][part] += more[query][part];
    }
}

ALWAYS_INLINE void compare_sums(const sum_vector sums[TILE_QUERIES][PANEL_VECTORS], const signed_sum_t *limits,
                                uint64_t present, uint64_t passing[TILE_QUERIES]) {
    for (int query = 0; query < TILE_QUERIES; query++)
        passing[query] = mask_greater(sums[query], limits[query]) & present;
}

/* Find the present keys of a panel that pass the limit of each query. Not inlined, because the sums need all registers.
   The two kinds of sums have separate code, because shared code would pass them through memory. */
static __attribute__((noinline)) void compare_tile(query_tile tile, const uint8_t *values, sketch_shape shape,
                                                   const signed_sum_t *limits, uint64_t present,
                                                   uint64_t passing[TILE_QUERIES]) {
    sum_vector sums[TILE_QUERIES][PANEL_VECTORS];
    if (shape.num_blocks == 1) {
        multiply_block(tile, values, shape.width / GROUP, 0, sums);
        compare_sums(sums, limits, present, passing);
    } else {
        multiply_blocks(tile, values, shape, sums);
        compare_sums(sums, limits, present, passing);
    }
}

/* The greatest scaled sum of a query in each column of the sampled panels, and the number of its panel. */
typedef struct {
    sum_vector sums[PANEL_VECTORS], panels[PANEL_VECTORS];
} column_maxima;

ALWAYS_INLINE void raise_sums(const sum_vector sums[TILE_QUERIES][PANEL_VECTORS], float factor, sum_t panel,
                              column_maxima maxima[TILE_QUERIES]) {
    for (int query = 0; query < TILE_QUERIES; query++)
        for (int part = 0; part < PANEL_VECTORS; part++) {
            const sum_vector found = scale_sums(sums[query][part], factor), before = maxima[query].sums[part];
            const sum_vector greater = (sum_vector)((signed_sum_vector)found > (signed_sum_vector)before);
            maxima[query].sums[part] = (found & greater) | (before & ~greater);
            maxima[query].panels[part] = (panel & greater) | (maxima[query].panels[part] & ~greater);
        }
}

/* Raise the maxima of a tile by the sums with one panel, times `factor`. Separate code as in compare_tile. */
static __attribute__((noinline)) void raise_maxima(query_tile tile, const uint8_t *values, sketch_shape shape,
                                                   float factor, sum_t panel, column_maxima maxima[TILE_QUERIES]) {
    sum_vector sums[TILE_QUERIES][PANEL_VECTORS];
    if (shape.num_blocks == 1) {
        multiply_block(tile, values, shape.width / GROUP, 0, sums);
        raise_sums(sums, factor, panel, maxima);
    } else {
        multiply_blocks(tile, values, shape, sums);
        raise_sums(sums, factor, panel, maxima);
    }
}

#endif
