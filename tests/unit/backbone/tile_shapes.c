// SPDX-License-Identifier: Apache-2.0
/* Sets shapes of AMX tiles, calls the attention, and compares the shapes. */

#include "attention_amx.h"
#include "params.h"

typedef void (*attention)(const attention_params *, int64_t, int64_t, void *);

/* Return whether the shapes are the same after the attention; with `palette` 0 there are none. */
int shapes_survive(attention read, const attention_params *params, void *scratch, int palette) {
    tile_shapes before = {.palette = (uint8_t)palette}, after = {0};
    if (palette) before.rows[2] = 7, before.row_bytes[2] = 12;
    if (!tiles_are_allowed()) return -1;
    restore_tiles(&before);
    read(params, 0, 1, scratch);
    finish_stores();
    _tile_storeconfig(&after);
    finish_stores();
    _tile_release();
    for (size_t at = 0; at < sizeof after; at++)
        if (((const char *)&before)[at] != ((const char *)&after)[at]) return 0;
    return 1;
}
