# SPDX-License-Identifier: Apache-2.0
"""Attention over retrieved chunks, and its fusion with local attention (paper, section 3.3).

    mem_h   = softmax(scale_h · q_h · K̃_h) Ṽ_h      its own softmax over the K retrieved tokens, no position term
    fused_h = (1 − g_h) · local_h + g_h · mem_h      g_h = sigmoid(b_h), before the output projection

Gradients reach the query, the scale and the gate, never the stored keys and values.
"""

import torch
from jaxtyping import Float, Float32, Int64, Shaped
from torch import Tensor

from longmem.memory.view import MemoryView
from longmem.retrieval.gather import TORCH_GATHER, AbstractGather
from longmem.retrieval.positions import RetrievedPositions, places_of


def memory_products(
    queries: Float[Tensor, "tokens heads head_dim"],
    chunk_ids: Int64[Tensor, "tokens index_heads slots"],
    view: MemoryView,
    gather: AbstractGather = TORCH_GATHER,
) -> Float32[Tensor, "tokens heads retrieved"]:
    """Return unscaled inner products of every query with every token of its retrieved chunks, computed in the queries'
    dtype.

    Missing slots yield the products of an arbitrary chunk: mask them (`places_of`).
    """
    assert view.num_chunks > 0, "an empty memory has nothing to attend to; use local attention alone"
    chunk = view.chunk_size
    slots = chunk_ids.clamp(min=0)[..., None] * chunk + torch.arange(chunk, device=chunk_ids.device)
    return gather.products(queries, _for_heads(slots.flatten(2), queries.shape[1]), view.keys.flatten(1, 2)).float()


def attend(
    logits: Float32[Tensor, "tokens heads retrieved"],
    places: RetrievedPositions,
    view: MemoryView,
    dtype: torch.dtype,
    continued: bool = False,
    gather: AbstractGather = TORCH_GATHER,
) -> Float[Tensor, "tokens heads head_dim"]:
    """Return `mem` of the module's formula in `dtype`.

    Invalid places weigh exactly zero; each token and head needs a valid one. With `continued`, a place contributes the
    value of the token after it. `places` may be shared by several heads that searched together.
    """
    heads = logits.shape[1]
    weights = logits.masked_fill(_for_heads(~places.valid, heads), -torch.inf).softmax(dim=2).to(dtype)
    slots = view.slots_in_order[(places.index + int(continued)).where(places.valid, 0)]
    return gather.mixtures(weights, _for_heads(slots, heads), view.values.flatten(1, 2))


def _for_heads(part: Shaped[Tensor, "tokens index_heads found"], heads: int) -> Shaped[Tensor, "tokens heads found"]:
    """Repeat `part` for all heads that share one search."""
    return part if part.shape[1] == heads else part.repeat_interleave(heads // part.shape[1], dim=1)


def attend_to_memory(
    queries: Float[Tensor, "tokens heads head_dim"],
    chunk_ids: Int64[Tensor, "tokens heads slots"],
    view: MemoryView,
    scale: float,
) -> Float[Tensor, "tokens heads head_dim"]:
    """Compute the paper's form in one call: one fixed scale, and each place contributes its own value."""
    products = memory_products(queries, chunk_ids, view)
    return attend(products * scale, places_of(chunk_ids, view, continued=False), view, queries.dtype)


def fuse(
    local: Float[Tensor, "batch tokens heads head_dim"],
    memory: Float[Tensor, "batch tokens heads head_dim"],
    gate_logits: Float[Tensor, " heads"],
) -> Float[Tensor, "batch tokens heads head_dim"]:
    """Mix the two branches per head with g = sigmoid(gate_logits)."""
    gate = gate_logits.sigmoid().to(local.dtype)[:, None]
    return (1 - gate) * local + gate * memory
