// SPDX-License-Identifier: Apache-2.0
/* Int8 quantisation of vectors, with the norm of what it loses.

   A vector is written as x = scale · (values + residual), where the values are integers and the residual is what
   rounding lost. Where sums have 32 bits, values use all eight bits. Where sums have 16 bits, a block of values has a
   norm of at most 180, so by the Cauchy-Schwarz inequality the inner product of two blocks fits (`int8_sums16.h`).

   The keys of a panel share one scale, so that one integer limit serves all of them. Key values are stored plus 128,
   because the instruction that multiplies them takes one unsigned operand. */

#ifndef LONGMEM_QUANTISE_H
#define LONGMEM_QUANTISE_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#include "products.h"

/* KEY_LIMIT: largest quantised value of a key. */
enum { KEY_LIMIT = 127, KEY_OFFSET = 128 };
/* Keys whose values are stored next to each other. */
enum { INTERLEAVED_KEYS = 4 };

/* Smaller scales are rejected, because the squares of such vectors are not normal float32 numbers. */
static const float SMALLEST_SCALE = 1e-15f;
/* Adding and subtracting this number rounds to an integer. */
static const float ROUNDING = 0x1.8p23f;

/* Sizes of a sketch: `width` is padded to whole vectors. Each block's sum loses its `dropped_bits` low bits, so that
   one sum holds the total of all blocks. */
typedef struct {
    int64_t width, num_blocks;
    int dropped_bits;
} sketch_shape;

static inline sketch_shape padded_shape(int64_t width) {
    const int64_t padded = (width + FLOAT_LANES - 1) / FLOAT_LANES * FLOAT_LANES;
    sketch_shape shape = {padded, (padded + BLOCK - 1) / BLOCK, 0};
    while ((int64_t)1 << shape.dropped_bits < shape.num_blocks)
        shape.dropped_bits++;
    return shape;
}

/* Greatest sizes of some vectors: squared norm of a block and of a whole vector, and absolute value in each lane. */
typedef struct {
    float block_square, vector_square;
    f32x8 absolutes;
    int finite;
} vector_sizes;

/* Include one more vector, which is padded with zeros. */
static inline void measure(const float *x, int64_t width, vector_sizes *sizes) {
    float total = 0;
    for (int64_t first = 0; first < width; first += BLOCK) {
        f32x8 squares = {0};
        for (int64_t i = first; i < width && i < first + BLOCK; i += FLOAT_LANES) {
            const f32x8 part = load_floats(x + i);
            squares += part * part;
            sizes->absolutes = larger(absolute(part), sizes->absolutes);
        }
        const float square = sum_lanes(squares);
        sizes->finite &= square < INFINITY;
        sizes->block_square = square > sizes->block_square ? square : sizes->block_square;
        total += square;
    }
    sizes->vector_square = total > sizes->vector_square ? total : sizes->vector_square;
}

/* Return the smallest scale with which these vectors can be quantised. It is 0 for vectors of zeros only. INFINITY and
   scales below SMALLEST_SCALE mean that they cannot be quantised. */
static inline float smallest_scale(const vector_sizes *sizes, float limit) {
    float most = 0;
    if (!sizes->finite)
        return INFINITY;
    for (int lane = 0; lane < FLOAT_LANES; lane++)
        most = sizes->absolutes[lane] > most ? sizes->absolutes[lane] : most;
    const float norm_scale = sqrtf(sizes->block_square) / RADIUS, value_scale = most / limit;
    const float scale = norm_scale > value_scale ? norm_scale : value_scale;
    return most > 0 && scale == 0 ? most : scale;
}

static inline int is_usable(float scale) { return scale == 0 || (scale >= SMALLEST_SCALE && scale < INFINITY); }

/* What a bound needs of a query apart from its quantised values: its scale, |values| and |residual|. */
typedef struct {
    float scale, norm, residual;
} query_bounds;

typedef struct {
    int32_t *groups; /* [queries, width / GROUP]: GROUP values, repeated until they fill 32 bits */
    sum_t *starts;   /* [queries, num_blocks]: initial value of a block's sum, which cancels KEY_OFFSET */
    query_bounds *bounds;
} quantised_queries;

/* Quantise a sketch, which is overwritten. */
static inline void quantise_query(float *sketch, sketch_shape shape, quantised_queries queries, int64_t query) {
    const int64_t width = shape.width, num_blocks = shape.num_blocks;
    vector_sizes sizes = {.finite = 1};
    measure(sketch, width, &sizes);
    const float scale = smallest_scale(&sizes, QUERY_LIMIT);
    if (is_usable(scale)) {
        const float inverse = scale > 0 ? 1 / scale : 0;
        f32x8 squares = {0}, residuals = {0};
        for (int64_t i = 0; i < width; i += FLOAT_LANES) {
            const f32x8 exact = load_floats(sketch + i) * inverse, rounded = (exact + ROUNDING) - ROUNDING;
            squares += rounded * rounded, residuals += (exact - rounded) * (exact - rounded);
            memcpy(sketch + i, &rounded, sizeof rounded);
        }
        queries.bounds[query] = (query_bounds){scale, sqrtf(sum_lanes(squares)), sqrtf(sum_lanes(residuals))};
    } else {
        /* an infinite residual lets every key pass */
        memset(sketch, 0, width * sizeof *sketch);
        queries.bounds[query] = (query_bounds){1, 0, INFINITY};
    }
    for (int64_t block = 0; block < num_blocks; block++) {
        int32_t sum = 0;
        for (int64_t i = block * BLOCK; i < width && i < (block + 1) * BLOCK; i += GROUP) {
            uint32_t group = 0;
            for (int member = 0; member < GROUP; member++) {
                const int32_t value = (int32_t)sketch[i + member];
                sum += value;
                group |= (uint32_t)(value & 0xff) << 8 * member;
            }
            queries.groups[(query * width + i) / GROUP] = repeat_group(group);
        }
        queries.starts[query * num_blocks + block] = (sum_t)(-KEY_OFFSET * sum);
    }
}

/* Quantise the PANEL_KEYS padded sketches of a panel. `values` gets GROUP values of each key, then the next GROUP of
   each. */
static inline panel_bounds quantise_panel(const float *const *sketches, int64_t width, uint8_t *values) {
    vector_sizes sizes = {.finite = 1};
    for (int key = 0; key < PANEL_KEYS; key++)
        measure(sketches[key], width, &sizes);
    const float scale = smallest_scale(&sizes, KEY_LIMIT);
    if (!is_usable(scale)) {
        /* an infinite residual lets every key pass */
        memset(values, 0, PANEL_KEYS * width);
        return (panel_bounds){1, 0, INFINITY};
    }
    const float inverse = scale > 0 ? 1 / scale : 0;
    float largest_residual = 0;
    for (int first = 0; first < PANEL_KEYS; first += INTERLEAVED_KEYS) {
        f32x8 residuals[INTERLEAVED_KEYS] = {0};
        for (int64_t i = 0; i < width; i += FLOAT_LANES) {
            f32x8 biased[INTERLEAVED_KEYS];
            for (int key = 0; key < INTERLEAVED_KEYS; key++) {
                /* rounds to an integer, and leaves value + KEY_OFFSET in the lowest byte */
                const f32x8 exact = load_floats(sketches[first + key] + i) * inverse;
                biased[key] = exact + (ROUNDING + KEY_OFFSET);
                const f32x8 rounded = biased[key] - (ROUNDING + KEY_OFFSET);
                residuals[key] += (exact - rounded) * (exact - rounded);
            }
            interleave_keys(biased, values + i * PANEL_KEYS + first * GROUP, PANEL_KEYS * GROUP);
        }
        for (int key = 0; key < INTERLEAVED_KEYS; key++) {
            const float residual = sum_lanes(residuals[key]);
            largest_residual = residual > largest_residual ? residual : largest_residual;
        }
    }
    return (panel_bounds){1 / scale, scale > 0 ? sqrtf(sizes.vector_square) / scale : 0, sqrtf(largest_residual)};
}

#endif
