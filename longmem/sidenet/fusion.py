"""Attention over retrieved chunks, and its fusion with local attention (paper, section 3.3; design §4).

    mem_h   = softmax(scale_h · q_h · K̃_h) Ṽ_h      its own softmax over the K retrieved tokens, no position term
    fused_h = (1 − g_h) · local_h + g_h · mem_h      g_h = sigmoid(b_h), before the output projection

Gradients reach the query, the scale and the gate, never the stored keys and values.
"""

from collections.abc import Iterator

import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor

from longmem.memory.view import MemoryView
from longmem.sidenet.places import Places, places_of, slots_in_order

GATHER_BYTES = 16 * 2**20
"""Gathered keys (or values) held at a time. All of them at once would be 134 MB per head for 1,024 tokens of a
GPT-2-medium shape; a tile stays near the cache."""


def memory_products(
    queries: Float[Tensor, "tokens heads head_dim"],
    chunk_ids: Int64[Tensor, "tokens heads slots"],
    view: MemoryView,
) -> Float32[Tensor, "tokens heads retrieved"]:
    """Inner products of every query with every token of its retrieved chunks, unscaled; computed in the queries'
    dtype. Missing slots give the products of some other chunk: mask them (`places_of`)."""
    heads, head_dim = queries.shape[1:]
    num_slots = chunk_ids.shape[2]
    kv_heads, num_chunks, chunk, _ = view.keys.shape
    assert num_chunks > 0, "an empty memory has nothing to attend to; use local attention alone"
    products = []
    for head in range(heads):
        keys = view.keys[head // (heads // kv_heads)].reshape(num_chunks, chunk * head_dim)
        tiles = []
        for tile in _tiles(queries, num_slots * chunk):
            ids = chunk_ids[tile, head].clamp(min=0)
            gathered = keys.index_select(0, ids.flatten()).to(queries.dtype)
            tiles.append(
                torch.einsum("tkd,td->tk", gathered.view(len(ids), num_slots * chunk, head_dim), queries[tile, head])
            )
        products.append(torch.cat(tiles))
    return torch.stack(products, dim=1).float()


def attend(
    logits: Float32[Tensor, "tokens heads retrieved"],
    places: Places,
    view: MemoryView,
    dtype: torch.dtype,
    continued: bool = False,
) -> Float[Tensor, "tokens heads head_dim"]:
    """`mem` of the formula above in `dtype`; invalid places weigh exactly zero, and each token and head needs a valid
    one. With `continued`, a place gives the value of the token after it."""
    heads = logits.shape[1]
    kv_heads, num_chunks, chunk, head_dim = view.values.shape
    weights = logits.masked_fill(~places.valid, -torch.inf).softmax(dim=2).to(dtype)
    slots = slots_in_order(view)[(places.index + int(continued)).where(places.valid, 0)]
    attended = []
    for head in range(heads):
        values = view.values[head // (heads // kv_heads)].reshape(num_chunks * chunk, head_dim)
        tiles = []
        for tile in _tiles(weights, logits.shape[2], head_dim):
            gathered = values.index_select(0, slots[tile, head].flatten()).to(dtype)
            tiles.append(
                torch.einsum("tk,tkd->td", weights[tile, head], gathered.view(*slots[tile, head].shape, head_dim))
            )
        attended.append(torch.cat(tiles))
    return torch.stack(attended, dim=1)


def attend_to_memory(
    queries: Float[Tensor, "tokens heads head_dim"],
    chunk_ids: Int64[Tensor, "tokens heads slots"],
    view: MemoryView,
    scale: float,
) -> Float[Tensor, "tokens heads head_dim"]:
    """The paper's form in one call: one fixed scale, each place gives its own value."""
    products = memory_products(queries, chunk_ids, view)
    return attend(products * scale, places_of(chunk_ids, view, continued=False), view, queries.dtype)


def fuse(
    local: Float[Tensor, "batch tokens heads head_dim"],
    memory: Float[Tensor, "batch tokens heads head_dim"],
    gate_logits: Float[Tensor, " heads"],
) -> Float[Tensor, "batch tokens heads head_dim"]:
    """Mix the two branches head by head with g = sigmoid(gate_logits)."""
    gate = gate_logits.sigmoid().to(local.dtype)[:, None]
    return (1 - gate) * local + gate * memory


def _tiles(rows: Tensor, retrieved: int, head_dim: int | None = None) -> Iterator[slice]:
    """Slices of the token axis whose gathered vectors stay within GATHER_BYTES."""
    size = max(1, GATHER_BYTES // (retrieved * (head_dim or rows.shape[-1]) * 4))
    for start in range(0, len(rows), size):
        yield slice(start, start + size)
