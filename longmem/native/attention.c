// SPDX-License-Identifier: Apache-2.0
/* Causal attention over a KV cache in bfloat16, for processors with AVX-512 BF16.

   One pass over the keys with a running maximum and sum (Milakov and Gimelshein 2018, arXiv 1805.02867; Rabe and Staats
   2021, arXiv 2112.05682). Rows are the queries of all heads that share a KV head. Row r sees the first `limit(r)` keys.

       scores  = queries · keysᵀ            tiles of ROWS queries and KEYS keys, sums in registers
       weights = exp2(scores − maximum)     rounded to bfloat16, as the product needs them
       output  = output · correction + weights · values

   A row's result depends on its own keys alone: not on the number of rows, nor on the number of threads. */

#include "params.h"

#if defined(__AVX512BF16__)

#include <immintrin.h>
#include <math.h>
#include <string.h>

enum { LANES = 16, ROWS = 6, VECTORS = 4, KEYS = LANES * VECTORS, BLOCK = 4 * KEYS, ROW_BLOCK = 16 * ROWS, MAX_DIM = 256 };

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

/* Return 2 to the power of each lane, at most 2^0; relative error below 2^-22. Minus infinity gives zero. */
static inline __m512 exp2_of(__m512 power) {
    power = _mm512_max_ps(power, _mm512_set1_ps(-150.0f));
    const __m512 whole = _mm512_roundscale_ps(power, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    const __m512 part = _mm512_sub_ps(power, whole);
    __m512 sum = _mm512_set1_ps(0.00133335581f);
    sum = _mm512_fmadd_ps(sum, part, _mm512_set1_ps(0.00961812911f));
    sum = _mm512_fmadd_ps(sum, part, _mm512_set1_ps(0.0555041087f));
    sum = _mm512_fmadd_ps(sum, part, _mm512_set1_ps(0.240226507f));
    sum = _mm512_fmadd_ps(sum, part, _mm512_set1_ps(0.693147181f));
    sum = _mm512_fmadd_ps(sum, part, _mm512_set1_ps(1.0f));
    return _mm512_scalef_ps(sum, whole);
}

/* Scores of ROWS queries and KEYS keys. */
static inline void score_tile(const uint32_t *queries, int64_t pairs, const uint16_t *keys, float scores[ROWS][BLOCK]) {
    __m512 sums[ROWS][VECTORS];
    for (int row = 0; row < ROWS; row++)
        for (int vector = 0; vector < VECTORS; vector++) sums[row][vector] = _mm512_setzero_ps();
    for (int64_t pair = 0; pair < pairs; pair++) {
        __m512bh loaded[VECTORS];
        for (int vector = 0; vector < VECTORS; vector++)
            loaded[vector] = (__m512bh)_mm512_loadu_si512(keys + (pair * KEYS + vector * LANES) * 2);
        for (int row = 0; row < ROWS; row++) {
            const __m512bh query = (__m512bh)_mm512_set1_epi32((int32_t)queries[row * pairs + pair]);
            for (int vector = 0; vector < VECTORS; vector++)
                sums[row][vector] = _mm512_dpbf16_ps(sums[row][vector], query, loaded[vector]);
        }
    }
    for (int row = 0; row < ROWS; row++)
        for (int vector = 0; vector < VECTORS; vector++)
            _mm512_storeu_ps(scores[row] + vector * LANES, sums[row][vector]);
}

/* Add weights · values for ROWS rows and 4 · LANES dimensions. */
static inline void add_values(
    const uint32_t weights[ROWS][BLOCK / 2], int64_t pairs, const uint16_t *values, int64_t dim, int vectors,
    float *output, const float *correction
) {
    __m512 sums[ROWS][VECTORS];
    for (int row = 0; row < ROWS; row++)
        for (int vector = 0; vector < vectors; vector++)
            sums[row][vector] = _mm512_mul_ps(
                _mm512_loadu_ps(output + row * dim + vector * LANES), _mm512_set1_ps(correction[row]));
    for (int64_t pair = 0; pair < pairs; pair++) {
        __m512bh loaded[VECTORS];
        for (int vector = 0; vector < vectors; vector++)
            loaded[vector] = (__m512bh)_mm512_loadu_si512(values + (pair * dim + vector * LANES) * 2);
        for (int row = 0; row < ROWS; row++) {
            const __m512bh weight = (__m512bh)_mm512_set1_epi32((int32_t)weights[row][pair]);
            for (int vector = 0; vector < vectors; vector++)
                sums[row][vector] = _mm512_dpbf16_ps(sums[row][vector], weight, loaded[vector]);
        }
    }
    for (int row = 0; row < ROWS; row++)
        for (int vector = 0; vector < vectors; vector++)
            _mm512_storeu_ps(output + row * dim + vector * LANES, sums[row][vector]);
}

typedef struct {
    float output[ROW_BLOCK * MAX_DIM];
    float maximum[ROW_BLOCK], sum[ROW_BLOCK];
    uint16_t queries[ROW_BLOCK * MAX_DIM];
    int64_t limit[ROW_BLOCK];
    float scores[ROWS][BLOCK];
    uint32_t weights[ROWS][BLOCK / 2];
} row_state;

/* Read one block of keys for ROWS rows, of which some may see fewer keys or none of it. */
static void read_block(const attention_params *params, int64_t head, int64_t first, int64_t group, row_state *rows) {
    const int64_t dim = params->dim, pairs = dim / 2, start = first / KEYS;
    const int64_t last_limit = rows->limit[group + ROWS - 1];
    const int64_t seen = last_limit - first < BLOCK ? last_limit - first : BLOCK;
    const int64_t tiles = (seen + KEYS - 1) / KEYS;
    const uint16_t *keys = params->packed_keys + (head * blocks_of(params) + start) * dim * KEYS;
    const uint16_t *values = params->packed_values + (head * blocks_of(params) + start) * dim * KEYS;
    const uint32_t *queries = (const uint32_t *)(rows->queries + group * dim);
    for (int64_t tile = 0; tile < tiles; tile++)
        score_tile(queries, pairs, keys + tile * dim * KEYS, (float(*)[BLOCK])((float *)rows->scores + tile * KEYS));
    const __m512 scale = _mm512_set1_ps(params->scale);
    float correction[ROWS];
    for (int row = 0; row < ROWS; row++) {
        float *scores = rows->scores[row];
        const int64_t own = rows->limit[group + row] - first;
        const float before = rows->maximum[group + row];
        __m512 largest = _mm512_set1_ps(before);
        for (int64_t at = 0; at < tiles * KEYS; at += LANES) {
            const int64_t left = own - at;
            const __mmask16 sees = left >= LANES ? 0xffff : left <= 0 ? 0 : (__mmask16)((1u << left) - 1);
            const __m512 scaled = _mm512_mask_mul_ps(
                _mm512_set1_ps(-INFINITY), sees, _mm512_loadu_ps(scores + at), scale);
            _mm512_storeu_ps(scores + at, scaled);
            largest = _mm512_max_ps(largest, scaled);
        }
        const float maximum = _mm512_reduce_max_ps(largest);
        const __m512 shift = _mm512_set1_ps(maximum);
        __m512 sum = _mm512_setzero_ps();
        for (int64_t at = 0; at < tiles * KEYS; at += 2 * LANES) {
            __m512 weight[2];
            for (int half = 0; half < 2; half++) {
                const __m512 score = _mm512_loadu_ps(scores + at + half * LANES);
                const __mmask16 sees = _mm512_cmp_ps_mask(score, _mm512_set1_ps(-INFINITY), _CMP_NEQ_OQ);
                weight[half] = _mm512_maskz_mov_ps(sees, exp2_of(_mm512_sub_ps(score, shift)));
                sum = _mm512_add_ps(sum, weight[half]);
            }
            _mm512_storeu_si512(
                (uint16_t *)rows->weights[row] + at, (__m512i)_mm512_cvtne2ps_pbh(weight[1], weight[0]));
        }
        correction[row] = exp2f(before - maximum);
        rows->maximum[group + row] = maximum;
        rows->sum[group + row] = rows->sum[group + row] * correction[row] + _mm512_reduce_add_ps(sum);
    }
    int64_t at = 0;
    for (; at + KEYS <= dim; at += KEYS)
        add_values(rows->weights, tiles * KEYS / 2, values + at * 2, dim, VECTORS, rows->output + group * dim + at, correction);
    for (; at < dim; at += LANES)
        add_values(rows->weights, tiles * KEYS / 2, values + at * 2, dim, 1, rows->output + group * dim + at, correction);
}

/* Rows first to last of the queries that share a KV head; row r is query r % group_size's head of token r / group_size. */
static void attend_rows(const attention_params *params, int64_t head, int64_t first, row_state *rows) {
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
        rows->maximum[row] = -INFINITY;
        rows->sum[row] = 0.0f;
        furthest = rows->limit[row];
    }
    memset(rows->output, 0, ROW_BLOCK * dim * sizeof(float));
    for (int64_t key = 0; key < furthest; key += BLOCK)
        for (int64_t group = 0; group < ROW_BLOCK; group += ROWS)
            if (rows->limit[group + ROWS - 1] > key) read_block(params, head, key, group, rows);
    for (int64_t row = 0; row < ROW_BLOCK && first + row < total; row++) {
        const int64_t token = (first + row) / group_size, query_head = head * group_size + (first + row) % group_size;
        const __m512 share = _mm512_set1_ps(1.0f / rows->sum[row]);
        uint16_t *target = params->output + (token * params->heads + query_head) * dim;
        for (int64_t at = 0; at < dim; at += LANES)
            _mm256_storeu_si256((__m256i *)(target + at), (__m256i)_mm512_cvtneps_pbh(
                _mm512_mul_ps(_mm512_loadu_ps(rows->output + row * dim + at), share)));
    }
}

void longmem_attention_read(const attention_params *params, int64_t first, int64_t step, void *scratch) {
    const int64_t total = params->heads / params->kv_heads * params->tokens;
    const int64_t blocks = (total + ROW_BLOCK - 1) / ROW_BLOCK;
    for (int64_t unit = first; unit < params->kv_heads * blocks; unit += step)
        attend_rows(params, unit / blocks, unit % blocks * ROW_BLOCK, scratch);
}

int64_t longmem_attention_scratch_bytes(void) { return sizeof(row_state); }

int64_t longmem_attention_packed_bytes(const attention_params *params) {
    return params->kv_heads * blocks_of(params) * KEYS * params->dim * (int64_t)sizeof(uint16_t);
}

#else

/* Without the instructions nothing can be computed: scratch of 0 bytes says so, and no other function is called. */
int64_t longmem_attention_scratch_bytes(void) { return 0; }
int64_t longmem_attention_packed_bytes(const attention_params *params) { return params == 0; }
void longmem_attention_pack(const attention_params *params, int64_t first, int64_t step) {
    (void)params, (void)first, (void)step;
}
void longmem_attention_read(const attention_params *params, int64_t first, int64_t step, void *scratch) {
    (void)params, (void)first, (void)step, (void)scratch;
}

#endif
