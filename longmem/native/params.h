// SPDX-License-Identifier: Apache-2.0
/* The interface between C and Python: structs of arguments, and the exported functions.

   `params.py` declares the same structs with the same field names. Python compares sizes and offsets with those of
   `layout.c` when it loads the library, so two fields that changed places cannot pass silently. A change of a struct
   has to be made in all three files. */

#ifndef LONGMEM_PARAMS_H
#define LONGMEM_PARAMS_H

#include <stdint.h>

enum { FLOAT32 = 0, FLOAT16 = 1, BFLOAT16 = 2 };

/* Rows of numbers, stored in any of the three dtypes. */
typedef struct {
    const void *first; /* first number of the first row */
    int64_t stride;    /* numbers from the start of a row to the start of the next one */
    int32_t dtype;
} row_matrix;

/* What a bound needs of the keys of a panel, apart from their quantised values. */
typedef struct {
    float inverse_scale; /* 1 / scale of the panel */
    float norm;          /* largest |key| / scale */
    float residual;      /* largest |residual|, in units of the scale */
} panel_bounds;

/* Quantised key sketches: one panel after the other. */
typedef struct {
    uint8_t *values;      /* [panels, longmem_panel_bytes] */
    panel_bounds *bounds; /* [panels] */
} key_panels;

/* The panels from `first_panel` up to, not including, `last_panel` of [num_keys, sketch_width] sketches. */
typedef struct {
    row_matrix key_sketches;
    int64_t num_keys, sketch_width, first_panel, last_panel;
    key_panels panels;
} quantise_params;

/* A top-k search. The inner product of two sketches is at least that of query and key, up to the margin of the query.
   The hits of a query go to the first columns of its row, best first; the other columns stay as they are. */
typedef struct {
    const float *queries;        /* [num_queries, dim] */
    const float *query_sketches; /* [num_queries, sketch_width] */
    const float *margins;        /* [num_queries]: largest error of a float32 bound or product */
    float largest_norm;          /* no key and no key sketch is longer; read by longmem_top_k only */
    row_matrix keys;             /* [num_keys, dim] */
    row_matrix key_sketches;     /* [num_keys, sketch_width] */
    int64_t num_queries, num_keys, dim, sketch_width;
    int64_t k;         /* at least 1 */
    int64_t num_slots; /* columns of `ids` and `scores`, at least k */
    int64_t *ids;      /* [num_queries, num_slots] */
    float *scores;     /* [num_queries, num_slots] */
} topk_params;

/* Inverted lists of keys, and the lists that each query searches. List c holds `members[starts[c]]` up to
   `members[starts[c + 1] - 1]`. */
typedef struct {
    const int64_t *members; /* ids of keys */
    const int64_t *starts;  /* [num_lists + 1] */
    const int64_t *probes;  /* [num_queries, num_probes]: different lists in each row */
    int64_t num_lists, num_probes;
} inverted_lists;

/* Products of queries with retrieved rows, or weighted sums of retrieved rows. Row i of KV head j begins
   `i * rows.stride + j * head_stride` numbers after `rows.first`; `group_size` query heads read one KV head. */
typedef struct {
    const float *input; /* queries [num_tokens, num_heads, dim], or weights [num_tokens, num_heads, num_ids] */
    const int64_t *ids; /* [num_tokens, num_heads, num_ids] */
    row_matrix rows;
    int64_t head_stride, num_tokens, num_heads, group_size, num_ids, dim;
    float *output; /* products [num_tokens, num_heads, num_ids], or sums [num_tokens, num_heads, dim] */
} gather_params;

/* Causal attention in bfloat16. Query i of `tokens` sees the first `count - tokens + i + 1` keys. Strides count numbers;
   the numbers of one head of one token are contiguous. `dim` is a multiple of 16 and at most 256. */
typedef struct {
    const uint16_t *queries; /* [heads, tokens, dim] */
    const uint16_t *keys;    /* [kv_heads, count, dim] */
    const uint16_t *values;  /* [kv_heads, count, dim] */
    int64_t query_head, query_token, key_head, key_token, value_head, value_token; /* strides */
    int64_t heads, kv_heads, tokens, count, dim;
    int64_t tiles;           /* whether to use AMX, which needs a dim that is a multiple of 32 */
    float scale;             /* factor of an inner product, times log2(e); positive */
    uint16_t *packed_keys;   /* longmem_attention_packed_bytes each, filled by longmem_attention_pack */
    uint16_t *packed_values;
    uint16_t *output;        /* [tokens, heads, dim], contiguous */
} attention_params;

/* Natural-log probability of one token for each row of bfloat16 logits. */
typedef struct {
    const uint16_t *logits; /* [rows, vocabulary]; rows are `stride` numbers apart */
    const int64_t *targets; /* [rows] */
    int64_t stride, vocabulary;
    float *output;          /* [rows] */
} logprobs_params;

/* Root mean square norm of bfloat16 rows: each number times the inverse root, rounded, times its weight. */
typedef struct {
    const uint16_t *rows;   /* [rows, width], contiguous */
    const uint16_t *weight; /* [width] */
    int64_t width;
    float epsilon;          /* added to the mean of squares */
    uint16_t *output;       /* [rows, width] */
} rms_norm_params;

/* SiLU of bfloat16 gates, rounded, times as many factors. */
typedef struct {
    const uint16_t *gates, *factors;
    uint16_t *output;
} silu_product_params;

/* Rotary positions of bfloat16 rows: row * cos + rotated half * sin, each of the three rounded. */
typedef struct {
    const uint16_t *rows;        /* [batch, heads, tokens, dim]; strides in numbers, those of a row contiguous */
    int64_t row_batch, row_head, row_token;
    const uint16_t *cos, *sin;   /* [batch, tokens, dim], both with these strides */
    int64_t table_batch, table_token;
    uint16_t *output;            /* [batch, heads, tokens, dim] */
    int64_t output_batch, output_head, output_token;
    int64_t heads, tokens, dim;  /* dim is even */
} rotation_params;

/* Keys of a panel, and bytes of its quantised values for sketches of a width. */
int64_t longmem_panel_keys(void);
int64_t longmem_panel_bytes(int64_t sketch_width);

/* The functions that return int return 0, or 1 when memory could not be allocated. */
int longmem_quantise_panels(const quantise_params *params);
int longmem_top_k(const topk_params *params, const key_panels *panels);
int longmem_ivf_top_k(const topk_params *params, const inverted_lists *lists);

void longmem_products(const gather_params *params);
void longmem_mixtures(const gather_params *params);

/* Bytes of the memory that each thread passes to `longmem_attention_read`; 0 if this processor has no AVX-512 BF16. */
int64_t longmem_attention_scratch_bytes(void);

/* Ask Linux for the tile registers of AMX, and return whether this process may use them. `tiles` without them ends it. */
int64_t longmem_attention_request_tiles(void);
int64_t longmem_attention_packed_bytes(const attention_params *params);

/* Work of one thread: blocks first, first + step, … of keys and values to pack, then of rows to read. All blocks are
   packed before any is read. */
void longmem_attention_pack(const attention_params *params, int64_t first, int64_t step);
void longmem_attention_read(const attention_params *params, int64_t first, int64_t step, void *scratch);

/* Rows first to last - 1; only for processors with AVX-512 BF16. */
void longmem_logprobs(const logprobs_params *params, int64_t first, int64_t last);

/* Rows, or numbers, first to last - 1; only for processors with AVX-512 BF16. */
void longmem_rms_norm(const rms_norm_params *params, int64_t first, int64_t last);
void longmem_silu_product(const silu_product_params *params, int64_t first, int64_t last);

/* Tokens first to last - 1 of all batches, one batch after the other, with all heads; only with AVX-512 BF16. */
void longmem_rotate(const rotation_params *params, int64_t first, int64_t last);

/* Number of fields of a struct. Offset and size in bytes of a field; with the empty name, of the whole struct. -1 where
   there is no such field. */
int64_t longmem_count_fields(const char *struct_name);
int64_t longmem_field_offset(const char *struct_name, const char *field);
int64_t longmem_field_size(const char *struct_name, const char *field);

#endif
