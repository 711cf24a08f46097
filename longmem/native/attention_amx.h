// SPDX-License-Identifier: Apache-2.0
/* Products of attention with AMX: tile registers of 16 rows of 64 bytes. Tiles 0 to 3 are the sums of 32 rows and 32
   columns, 4 and 5 the rows, 6 and 7 the columns. */

#ifndef LONGMEM_ATTENTION_AMX_H
#define LONGMEM_ATTENTION_AMX_H

#include "attention_rows.h"
#include "bfloat16_set.h"

#if defined(LONGMEM_AMX)

#include <sys/syscall.h>
#include <unistd.h>

enum { TILE_ROWS = 16, TILE_PAIRS = 16, DEPTH = 2 * TILE_PAIRS, SIDE = 2 * LANES };

typedef struct {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
} tile_shapes;

/* Return whether Linux lets this process use the tile registers, which it must ask for once. */
static int tiles_are_allowed(void) {
    enum { REQUEST_PERMISSION = 0x1023, TILE_DATA = 18 };
    return syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) == 0;
}

/* GCC (12.2, amxtileintrin.h) does not declare that instructions on tiles read memory, and could move earlier stores
   behind them. */
static inline void finish_stores(void) { __asm__ volatile("" ::: "memory"); }

/* Shape the tiles of this thread. Other libraries may rely on the shapes they have set: `before` gets them. */
static void shape_tiles(tile_shapes *before) {
    tile_shapes shapes = {.palette = 1};
    for (int tile = 0; tile < 8; tile++) shapes.rows[tile] = TILE_ROWS, shapes.row_bytes[tile] = 4 * TILE_PAIRS;
    finish_stores();
    _tile_storeconfig(before);
    _tile_loadconfig(&shapes);
}

static void restore_tiles(const tile_shapes *before) {
    if (before->palette)
        _tile_loadconfig(before);
    else
        _tile_release();
}

/* Add the products of 32 rows with 32 columns to tiles 0 to 3. Rows are `row_bytes` apart in `left`, pairs of numbers
   are `pair_bytes` apart in `right`; `depth` is a multiple of DEPTH. */
static inline void add_tiles(
    const uint16_t *left, int64_t row_bytes, const uint16_t *right, int64_t pair_bytes, int64_t depth
) {
    for (int64_t at = 0; at < depth; at += DEPTH) {
        const char *rows = (const char *)(left + at), *columns = (const char *)right + at / 2 * pair_bytes;
        _tile_loadd(4, rows, row_bytes);
        _tile_loadd(6, columns, pair_bytes);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(7, columns + 4 * LANES, pair_bytes);
        _tile_dpbf16ps(1, 4, 7);
        _tile_loadd(5, rows + TILE_ROWS * row_bytes, row_bytes);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
    }
}

static inline void store_sums(float *target, int64_t row_bytes) {
    char *low = (char *)target, *high = low + TILE_ROWS * row_bytes;
    _tile_stored(0, low, row_bytes);
    _tile_stored(1, low + 4 * LANES, row_bytes);
    _tile_stored(2, high, row_bytes);
    _tile_stored(3, high + 4 * LANES, row_bytes);
}

static void score_with_tiles(row_state *state, int64_t group, const key_block *block) {
    const uint16_t *queries = state->queries + group * block->dim;
    finish_stores();
    for (int64_t key = 0; key < block->panels * KEYS; key += SIDE) {
        const uint16_t *keys = block->keys + key / KEYS * block->dim * KEYS + key % KEYS * 2;
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
        add_tiles(queries, block->dim * 2, keys, KEYS * 4, block->dim);
        store_sums(state->scores + key, SCORE_STRIDE * 4);
    }
}

static void mix_with_tiles(row_state *state, int64_t group, const key_block *block) {
    const int64_t row_bytes = block->dim * 4;
    finish_stores();
    for (int64_t at = 0; at < block->dim; at += SIDE) {
        float *output = state->output + group * block->dim + at;
        char *low = (char *)output, *high = low + TILE_ROWS * row_bytes;
        _tile_loadd(0, low, row_bytes);
        _tile_loadd(1, low + 4 * LANES, row_bytes);
        _tile_loadd(2, high, row_bytes);
        _tile_loadd(3, high + 4 * LANES, row_bytes);
        add_tiles(state->weights, WEIGHT_STRIDE * 2, block->values + at * 2, block->dim * 4, block->panels * KEYS);
        store_sums(output, row_bytes);
    }
}

static const row_products TILE_PRODUCTS = {2 * TILE_ROWS, score_with_tiles, mix_with_tiles};

#endif
#endif
