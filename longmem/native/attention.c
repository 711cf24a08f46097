// SPDX-License-Identifier: Apache-2.0
/* Causal attention over a KV cache in bfloat16, for processors with AVX-512 BF16. Those that have AMX, too, compute
   its products in tile registers.

   One pass over the keys with a running maximum and sum (Milakov and Gimelshein 2018, arXiv 1805.02867; Rabe and Staats
   2021, arXiv 2112.05682). Rows are the queries of all heads that share a KV head. Row r sees the first `limit(r)` keys.

       scores  = queries · keysᵀ            tiles of rows and keys, sums in registers
       weights = exp2(scores − maximum)     rounded to bfloat16, as the product needs them
       output  = output · correction + weights · values

   A row's result depends on its own keys alone, as long as all are finite: not on the number of rows or threads. */

#include "bfloat16_set.h"
#include "params.h"

#if defined(LONGMEM_BF16)

#include <string.h>

#include "attention_amx.h"
#include "attention_avx512.h"

static inline int64_t blocks_of(const attention_params *params) { return (params->count + KEYS - 1) / KEYS; }

/* Rearrange KEYS keys at a time, so that one vector holds two dimensions of 16 keys. Missing keys are zero. */
static void pack_keys(const attention_params *params, int64_t head, int64_t block) {
    const int64_t dim = params->dim, first = block * KEYS;
    uint32_t *target = (uint32_t *)(params->packed_keys + (head * blocks_of(params) + block) * dim * KEYS);
    for (int64_t key = 0; key < KEYS; key++) {
        const uint16_t *source = params->keys + head * params->key_head + (first + key) * params->key_token;
        for (int64_t pair = 0; pair < dim / 2; pair++) {
            uint32_t both = 0;
            if (first + key < params->count) memcpy(&both, source + 2 * pair, sizeof both);
            target[pair * KEYS + key] = both;
        }
    }
}

/* Rearrange KEYS values at a time, so that one vector holds 16 dimensions of two values. Missing values are zero. */
static void pack_values(const attention_params *params, int64_t head, int64_t block) {
    const int64_t dim = params->dim, first = block * KEYS;
    uint16_t *target = params->packed_values + (head * blocks_of(params) + block) * dim * KEYS;
    for (int64_t key = 0; key < KEYS; key++) {
        const uint16_t *source = params->values + head * params->value_head + (first + key) * params->value_token;
        uint16_t *to = target + (key / 2) * dim * 2 + key % 2;
        for (int64_t each = 0; each < dim; each++) to[2 * each] = first + key < params->count ? source[each] : 0;
    }
}

void longmem_attention_pack(const attention_params *params, int64_t first, int64_t step) {
    const int64_t blocks = blocks_of(params);
    for (int64_t unit = first; unit < params->kv_heads * blocks; unit += step) {
        pack_keys(params, unit / blocks, unit % blocks);
        pack_values(params, unit / blocks, unit % blocks);
    }
}

/* Read the block of keys that begins at `first` for a group of rows, of which some may see fewer keys or none of it. */
static void read_block(
    const attention_params *params, const row_products *products, int64_t head, int64_t first, int64_t group,
    row_state *state
) {
    const int64_t seen = state->limit[group + products->rows - 1] - first;
    const int64_t start = (head * blocks_of(params) + first / KEYS) * params->dim * KEYS;
    const key_block block = {
        .keys = params->packed_keys + start,
        .values = params->packed_values + start,
        .panels = ((seen < BLOCK ? seen : BLOCK) + KEYS - 1) / KEYS,
        .dim = params->dim,
    };
    products->score(state, group, &block);
    for (int64_t row = 0; row < products->rows; row++) {
        const float correction = weigh_row(
            state->scores + row * SCORE_STRIDE, state->limit[group + row] - first, block.panels * KEYS, params->scale,
            &state->total[group + row], state->weights + row * WEIGHT_STRIDE);
        if (correction == 1.0f) continue;
        float *output = state->output + (group + row) * block.dim;
        for (int64_t at = 0; at < block.dim; at += LANES)
            _mm512_storeu_ps(output + at, _mm512_mul_ps(_mm512_loadu_ps(output + at), _mm512_set1_ps(correction)));
    }
    products->mix(state, group, &block);
}

/* ROW_BLOCK rows, from `first`, of the queries that share a KV head; row r is query r % group_size's head of token r / group_size. */
static void attend_rows(
    const attention_params *params, const row_products *products, int64_t head, int64_t first, row_state *rows
) {
    const int64_t group_size = params->heads / params->kv_heads, dim = params->dim;
    const int64_t total = group_size * params->tokens;
    int64_t furthest = 0;
    for (int64_t row = 0; row < ROW_BLOCK; row++) {
        /* missing rows repeat the last one */
        const int64_t each = first + row < total ? first + row : total - 1;
        const int64_t token = each / group_size, query_head = head * group_size + each % group_size;
        memcpy(rows->queries + row * dim, params->queries + query_head * params->query_head + token * params->query_token,
               dim * sizeof(uint16_t));
        rows->limit[row] = params->count - params->tokens + token + 1;
        rows->total[row] = (row_total){-INFINITY, 0.0f};
        furthest = rows->limit[row];
    }
    memset(rows->output, 0, ROW_BLOCK * dim * sizeof(float));
    for (int64_t key = 0; key < furthest; key += BLOCK)
        for (int64_t group = 0; group < ROW_BLOCK; group += products->rows)
            if (rows->limit[group + products->rows - 1] > key) read_block(params, products, head, key, group, rows);
    for (int64_t row = 0; row < ROW_BLOCK && first + row < total; row++) {
        const int64_t token = (first + row) / group_size, query_head = head * group_size + (first + row) % group_size;
        const __m512 share = _mm512_set1_ps(1.0f / rows->total[row].sum);
        uint16_t *target = params->output + (token * params->heads + query_head) * dim;
        for (int64_t at = 0; at < dim; at += LANES)
            _mm256_storeu_si256((__m256i *)(target + at), (__m256i)_mm512_cvtneps_pbh(
                _mm512_mul_ps(_mm512_loadu_ps(rows->output + row * dim + at), share)));
    }
}

static void read_rows(
    const attention_params *params, const row_products *products, int64_t first, int64_t step, row_state *scratch
) {
    const int64_t total = params->heads / params->kv_heads * params->tokens;
    const int64_t blocks = (total + ROW_BLOCK - 1) / ROW_BLOCK;
    for (int64_t unit = first; unit < params->kv_heads * blocks; unit += step)
        attend_rows(params, products, unit / blocks, unit % blocks * ROW_BLOCK, scratch);
}

void longmem_attention_read(const attention_params *params, int64_t first, int64_t step, void *scratch) {
#if defined(LONGMEM_AMX)
    if (params->tiles) {
        tile_shapes before = {0};
        shape_tiles(&before);
        read_rows(params, &TILE_PRODUCTS, first, step, scratch);
        restore_tiles(&before);
        return;
    }
#endif
    read_rows(params, &VECTOR_PRODUCTS, first, step, scratch);
}

int64_t longmem_attention_request_tiles(void) {
#if defined(LONGMEM_AMX)
    return tiles_are_allowed();
#else
    return 0;
#endif
}

int64_t longmem_attention_scratch_bytes(void) { return sizeof(row_state); }

int64_t longmem_attention_packed_bytes(const attention_params *params) {
    return params->kv_heads * blocks_of(params) * KEYS * params->dim * (int64_t)sizeof(uint16_t);
}

#else

/* Without the instructions nothing can be computed: scratch of 0 bytes says so, and no other function is called. */
int64_t longmem_attention_scratch_bytes(void) { return 0; }
int64_t longmem_attention_request_tiles(void) { return 0; }
int64_t longmem_attention_packed_bytes(const attention_params *params) { return params == 0; }
void longmem_attention_pack(const attention_params *params, int64_t first, int64_t step) {
    (void)params, (void)first, (void)step;
}
void longmem_attention_read(const attention_params *params, int64_t first, int64_t step, void *scratch) {
    (void)params, (void)first, (void)step, (void)scratch;
}

#endif
