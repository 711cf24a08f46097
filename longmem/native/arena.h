// SPDX-License-Identifier: Apache-2.0
/* Memory of one search, freed all together. */

#ifndef LONGMEM_ARENA_H
#define LONGMEM_ARENA_H

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_BLOCKS = 32, CACHE_LINE = 64 };

typedef struct {
    void *blocks[MAX_BLOCKS];
    int num_blocks, out_of_memory;
} arena;

/* Return zeroed memory that lives as long as the arena; or set `out_of_memory` and return NULL. A caller may allocate
   several blocks before it tests `out_of_memory` once. */
static void *arena_alloc(arena *scratch, int64_t num_bytes) {
    const int64_t padded = (num_bytes / CACHE_LINE + 1) * CACHE_LINE;
    void *block = scratch->num_blocks < MAX_BLOCKS ? aligned_alloc(CACHE_LINE, padded) : NULL;
    if (!block) {
        scratch->out_of_memory = 1;
        return NULL;
    }
    scratch->blocks[scratch->num_blocks++] = block;
    return memset(block, 0, padded);
}

static void arena_free(const arena *scratch) {
    for (int i = 0; i < scratch->num_blocks; i++)
        free(scratch->blocks[i]);
}

#endif
