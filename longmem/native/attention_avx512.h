// SPDX-License-Identifier: Apache-2.0
/* Products of attention with AVX-512 BF16: tiles of 6 rows and 64 columns, whose sums stay in registers. */

#ifndef LONGMEM_ATTENTION_AVX512_H
#define LONGMEM_ATTENTION_AVX512_H

#include "attention_rows.h"

enum { VECTOR_ROWS = 6, VECTORS = KEYS / LANES };

/* Add the products of VECTOR_ROWS rows with `vectors` vectors of columns to `sums`. Rows are `row_stride` pairs of
   numbers apart in `left`, pairs are `pair_stride` numbers apart in `right`. */
static inline void add_pairs(
    __m512 sums[VECTOR_ROWS][VECTORS], const uint32_t *left, int64_t row_stride, const uint16_t *right,
    int64_t pair_stride, int64_t pairs, int vectors
) {
    for (int64_t pair = 0; pair < pairs; pair++) {
        __m512bh loaded[VECTORS];
        for (int vector = 0; vector < vectors; vector++)
            loaded[vector] = (__m512bh)_mm512_loadu_si512(right + pair * pair_stride + vector * LANES * 2);
        for (int row = 0; row < VECTOR_ROWS; row++) {
            const __m512bh both = (__m512bh)_mm512_set1_epi32((int32_t)left[row * row_stride + pair]);
            for (int vector = 0; vector < vectors; vector++)
                sums[row][vector] = _mm512_dpbf16_ps(sums[row][vector], both, loaded[vector]);
        }
    }
}

static void score_with_vectors(row_state *state, int64_t group, const key_block *block) {
    const uint32_t *queries = (const uint32_t *)(state->queries + group * block->dim);
    for (int64_t panel = 0; panel < block->panels; panel++) {
        __m512 sums[VECTOR_ROWS][VECTORS];
        for (int row = 0; row < VECTOR_ROWS; row++)
            for (int vector = 0; vector < VECTORS; vector++) sums[row][vector] = _mm512_setzero_ps();
        add_pairs(sums, queries, block->dim / 2, block->keys + panel * block->dim * KEYS, 2 * KEYS, block->dim / 2, VECTORS);
        for (int row = 0; row < VECTOR_ROWS; row++)
            for (int vector = 0; vector < VECTORS; vector++)
                _mm512_storeu_ps(state->scores + row * SCORE_STRIDE + panel * KEYS + vector * LANES, sums[row][vector]);
    }
}

/* Values of `vectors` vectors of dimensions, from dimension `at`. */
static inline void mix_vectors(row_state *state, int64_t group, const key_block *block, int64_t at, int vectors) {
    float *output = state->output + group * block->dim + at;
    __m512 sums[VECTOR_ROWS][VECTORS];
    for (int row = 0; row < VECTOR_ROWS; row++)
        for (int vector = 0; vector < vectors; vector++)
            sums[row][vector] = _mm512_loadu_ps(output + row * block->dim + vector * LANES);
    add_pairs(
        sums, (const uint32_t *)state->weights, WEIGHT_STRIDE / 2, block->values + at * 2, block->dim * 2,
        block->panels * KEYS / 2, vectors);
    for (int row = 0; row < VECTOR_ROWS; row++)
        for (int vector = 0; vector < vectors; vector++)
            _mm512_storeu_ps(output + row * block->dim + vector * LANES, sums[row][vector]);
}

static void mix_with_vectors(row_state *state, int64_t group, const key_block *block) {
    int64_t at = 0;
    for (; at + KEYS <= block->dim; at += KEYS) mix_vectors(state, group, block, at, VECTORS);
    for (; at < block->dim; at += LANES) mix_vectors(state, group, block, at, 1);
}

static const row_products VECTOR_PRODUCTS = {VECTOR_ROWS, score_with_vectors, mix_with_vectors};

#endif
