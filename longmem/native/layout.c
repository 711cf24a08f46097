// SPDX-License-Identifier: Apache-2.0
/* Where the compiler put the fields of the structs of `params.h`, for the check that Python makes at load. */

#include <stddef.h>
#include <string.h>

#include "params.h"

typedef struct {
    const char *struct_name, *field;
    int64_t offset, size;
} field_layout;

#define WHOLE(type) {#type, "", 0, sizeof(type)}
#define FIELD(type, name) {#type, #name, offsetof(type, name), sizeof(((type *)0)->name)}

static const field_layout LAYOUTS[] = {
    WHOLE(row_matrix),
    FIELD(row_matrix, first),
    FIELD(row_matrix, stride),
    FIELD(row_matrix, dtype),
    WHOLE(panel_bounds),
    FIELD(panel_bounds, inverse_scale),
    FIELD(panel_bounds, norm),
    FIELD(panel_bounds, residual),
    WHOLE(key_panels),
    FIELD(key_panels, values),
    FIELD(key_panels, bounds),
    WHOLE(quantise_params),
    FIELD(quantise_params, key_sketches),
    FIELD(quantise_params, num_keys),
    FIELD(quantise_params, sketch_width),
    FIELD(quantise_params, first_panel),
    FIELD(quantise_params, last_panel),
    FIELD(quantise_params, panels),
    WHOLE(topk_params),
    FIELD(topk_params, queries),
    FIELD(topk_params, query_sketches),
    FIELD(topk_params, margins),
    FIELD(topk_params, largest_norm),
    FIELD(topk_params, keys),
    FIELD(topk_params, key_sketches),
    FIELD(topk_params, num_queries),
    FIELD(topk_params, num_keys),
    FIELD(topk_params, dim),
    FIELD(topk_params, sketch_width),
    FIELD(topk_params, k),
    FIELD(topk_params, num_slots),
    FIELD(topk_params, ids),
    FIELD(topk_params, scores),
    WHOLE(inverted_lists),
    FIELD(inverted_lists, members),
    FIELD(inverted_lists, starts),
    FIELD(inverted_lists, probes),
    FIELD(inverted_lists, num_lists),
    FIELD(inverted_lists, num_probes),
    WHOLE(gather_params),
    FIELD(gather_params, input),
    FIELD(gather_params, ids),
    FIELD(gather_params, rows),
    FIELD(gather_params, head_stride),
    FIELD(gather_params, num_tokens),
    FIELD(gather_params, num_heads),
    FIELD(gather_params, group_size),
    FIELD(gather_params, num_ids),
    FIELD(gather_params, dim),
    FIELD(gather_params, output),
    WHOLE(attention_params),
    FIELD(attention_params, queries),
    FIELD(attention_params, keys),
    FIELD(attention_params, values),
    FIELD(attention_params, query_head),
    FIELD(attention_params, query_token),
    FIELD(attention_params, key_head),
    FIELD(attention_params, key_token),
    FIELD(attention_params, value_head),
    FIELD(attention_params, value_token),
    FIELD(attention_params, heads),
    FIELD(attention_params, kv_heads),
    FIELD(attention_params, tokens),
    FIELD(attention_params, count),
    FIELD(attention_params, dim),
    FIELD(attention_params, tiles),
    FIELD(attention_params, scale),
    FIELD(attention_params, packed_keys),
    FIELD(attention_params, packed_values),
    FIELD(attention_params, output),
    WHOLE(logprobs_params),
    FIELD(logprobs_params, logits),
    FIELD(logprobs_params, targets),
    FIELD(logprobs_params, stride),
    FIELD(logprobs_params, vocabulary),
    FIELD(logprobs_params, output),
    WHOLE(rms_norm_params),
    FIELD(rms_norm_params, rows),
    FIELD(rms_norm_params, weight),
    FIELD(rms_norm_params, width),
    FIELD(rms_norm_params, epsilon),
    FIELD(rms_norm_params, output),
    WHOLE(silu_product_params),
    FIELD(silu_product_params, gates),
    FIELD(silu_product_params, factors),
    FIELD(silu_product_params, output),
    WHOLE(rotation_params),
    FIELD(rotation_params, rows),
    FIELD(rotation_params, row_batch),
    FIELD(rotation_params, row_head),
    FIELD(rotation_params, row_token),
    FIELD(rotation_params, cos),
    FIELD(rotation_params, sin),
    FIELD(rotation_params, table_batch),
    FIELD(rotation_params, table_token),
    FIELD(rotation_params, output),
    FIELD(rotation_params, output_batch),
    FIELD(rotation_params, output_head),
    FIELD(rotation_params, output_token),
    FIELD(rotation_params, heads),
    FIELD(rotation_params, tokens),
    FIELD(rotation_params, dim),
};

static const field_layout *find_layout(const char *struct_name, const char *field) {
    for (size_t i = 0; i < sizeof LAYOUTS / sizeof *LAYOUTS; i++)
        if (!strcmp(LAYOUTS[i].struct_name, struct_name) && !strcmp(LAYOUTS[i].field, field))
            return LAYOUTS + i;
    return NULL;
}

int64_t longmem_count_fields(const char *struct_name) {
    int64_t count = -1; /* the entry of the whole struct */
    for (size_t i = 0; i < sizeof LAYOUTS / sizeof *LAYOUTS; i++)
        count += !strcmp(LAYOUTS[i].struct_name, struct_name);
    return count;
}

int64_t longmem_field_offset(const char *struct_name, const char *field) {
    const field_layout *found = find_layout(struct_name, field);
    return found ? found->offset : -1;
}

int64_t longmem_field_size(const char *struct_name, const char *field) {
    const field_layout *found = find_layout(struct_name, field);
    return found ? found->size : -1;
}
