# SPDX-License-Identifier: Apache-2.0
"""Norms, gated activations and rotary positions in bfloat16: in C, against transformers' own on torch."""

from collections.abc import Callable, Iterator
from copy import deepcopy
from typing import Any

import torch
from torch.nn.functional import silu
from transformers import LlamaConfig, LlamaModel
from transformers.models.llama.modeling_llama import LlamaRMSNorm, apply_rotary_pos_emb

from benchmarks.speed.table import BenchmarkRow, SpeedTable
from benchmarks.speed.timing import take_turns
from longmem.backbone.fast.elementwise import silu_product, use_fast_elementwise
from longmem.backbone.fast.rotation import rotate, use_fast_rotation

TURNS = 20
"""Calls of an operation that are timed together; each takes a millisecond."""


@torch.inference_mode()
def elementwise(tokens: int, width: int, inner: int, repeats: int) -> Iterator[SpeedTable]:
    """Time a norm, a gated activation and a rotation of `tokens` rows, and a layer of SmolLM2-135M's form with them."""
    random = torch.Generator().manual_seed(0)
    rows = torch.randn(1, tokens, width, generator=random).bfloat16()
    gates, factors = (torch.randn(1, tokens, inner, generator=random).bfloat16() for _ in range(2))
    heads = width // 64
    kv_heads = 3 if heads % 3 == 0 else heads
    config = LlamaConfig(
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=1,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        vocab_size=8,
    )
    plain = LlamaModel(config).to(torch.bfloat16).eval().requires_grad_(False)
    fast: Any = deepcopy(plain)
    use_fast_elementwise(fast)
    use_fast_rotation(fast)
    queries, keys = (
        torch.randn(1, tokens, n, 64, generator=random).bfloat16().transpose(1, 2) for n in (heads, kv_heads)
    )
    cos, sin = plain.rotary_emb(queries, torch.arange(tokens)[None])
    norm = LlamaRMSNorm(width).to(torch.bfloat16).requires_grad_(False)
    cases: dict[str, dict[str, Callable[[], Any]]] = {
        f"norm of {tokens:,} rows of {width}": {"torch": lambda: norm(rows), "C": lambda: fast.norm(rows)},
        f"gated activation of {tokens:,} rows of {inner}": {
            "torch": lambda: silu(gates) * factors,
            "C": lambda: silu_product(gates, factors),
        },
        f"rotation of {tokens:,} rows of {heads} queries and {kv_heads} keys of 64": {
            "torch": lambda: apply_rotary_pos_emb(queries, keys, cos, sin),
            "C": lambda: (rotate(queries, cos, sin), rotate(keys, cos, sin)),
        },
        f"one layer, {tokens:,} tokens, with attention of torch": {
            "torch": lambda: plain(inputs_embeds=rows, use_cache=False),
            "C": lambda: fast(inputs_embeds=rows, use_cache=False),
        },
    }
    for title, works in cases.items():
        turns = {name: _repeated(work) for name, work in works.items()}
        lines = [BenchmarkRow(name, timing) for name, timing in take_turns(turns, repeats).items()]
        note = {"threads": torch.get_num_threads(), "torch": torch.__version__, "calls": TURNS}
        yield SpeedTable(title, lines, note)


def _repeated(work: Callable[[], Any]) -> Callable[[], None]:
    def turn() -> None:
        for _ in range(TURNS):
            work()

    return turn
