# SPDX-License-Identifier: Apache-2.0
"""Causal attention in bfloat16: in C, against torch's, for queries with and without a KV cache in front of them."""

import torch
from torch.nn.functional import scaled_dot_product_attention

from benchmarks.speed.table import BenchmarkRow, SpeedTable
from benchmarks.speed.timing import take_turns
from longmem.backbone.fast.attention import aligned_mask, attend


def attention(tokens: int, cached: int, heads: int, kv_heads: int, dim: int, repeats: int) -> SpeedTable:
    """Time one layer's attention of `tokens` queries behind `cached` keys."""
    random = torch.Generator().manual_seed(0)
    queries, keys, values = (
        torch.randn(1, number, length, dim, generator=random).bfloat16()
        for number, length in ((heads, tokens), (kv_heads, cached + tokens), (kv_heads, cached + tokens))
    )
    # without a cache torch needs no mask
    mask = aligned_mask(tokens, cached + tokens) if cached else None

    def of_torch() -> None:
        repeated = (part.repeat_interleave(heads // kv_heads, 1) for part in (keys, values))
        scaled_dot_product_attention(queries, *repeated, attn_mask=mask, is_causal=mask is None)

    timings = take_turns({"torch": of_torch, "C": lambda: attend(queries[0], keys[0], values[0], dim**-0.5)}, repeats)
    products = 4 * heads * dim * tokens * (cached + tokens / 2)
    lines = [
        BenchmarkRow(name, timing, {"GFLOP/s": f"{products / timing.median_s / 1e9:.0f}"})
        for name, timing in timings.items()
    ]
    title = f"{tokens:,} queries behind {cached:,} keys, {heads} heads on {kv_heads} of {dim}"
    return SpeedTable(title, lines, {"threads": torch.get_num_threads(), "torch": torch.__version__})
