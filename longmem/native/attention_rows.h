// SPDX-License-Identifier: Apache-2.0
/* What the products of attention read and write: the state of some rows, and a block of packed keys and values. */

#ifndef LONGMEM_ATTENTION_ROWS_H
#define LONGMEM_ATTENTION_ROWS_H

#include "attention_weights.h"

enum { KEYS = 4 * LANES, BLOCK = 4 * KEYS, ROW_BLOCK = 96, MAX_DIM = 256, MOST_ROWS = 32 };

/* Rows of scores and weights are padded, so that columns of a tile fall into different sets of the cache. */
enum { SCORE_STRIDE = BLOCK + LANES, WEIGHT_STRIDE = BLOCK + 2 * LANES };

typedef struct {
    float output[ROW_BLOCK * MAX_DIM]; /* [ROW_BLOCK, dim] */
    uint16_t queries[ROW_BLOCK * MAX_DIM];
    row_total total[ROW_BLOCK];
    int64_t limit[ROW_BLOCK]; /* keys that a row sees */
    float scores[MOST_ROWS * SCORE_STRIDE];
    uint16_t weights[MOST_ROWS * WEIGHT_STRIDE];
} row_state;

/* Keys in panels of KEYS: 32 bits are two dimensions of a key, [panels, dim / 2, KEYS]. Values: 32 bits are one dimension
   of two keys, [panels, KEYS / 2, dim]. */
typedef struct {
    const uint16_t *keys, *values;
    int64_t panels, dim;
} key_block;

/* Products of a group of rows, which begins at row `group` of the state, with a block. `score` writes the scores of all
   its keys. `mix` adds weights · values to the output. */
typedef struct {
    int64_t rows;
    void (*score)(row_state *state, int64_t group, const key_block *block);
    void (*mix)(row_state *state, int64_t group, const key_block *block);
} row_products;

#endif
