"""Attention over retrieved chunks, and its fusion with local attention (paper, section 3.3; design §4).

    mem_h   = softmax(scale · q_h · K̃_h) Ṽ_h        its own softmax over the K retrieved tokens, no position term
    fused_h = (1 − g_h) · local_h + g_h · mem_h      g_h = sigmoid(b_h), before the output projection

Gradients reach the query and the gate, never the stored keys and values.
"""

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from longmem.memory.view import MemoryView

GATHER_BYTES = 16 * 2**20
"""Gathered keys (or values) held at a time. All of them at once would be 134 MB per head for 1,024 tokens of a
GPT-2-medium shape; a tile stays near the cache."""


def attend_to_memory(
    queries: Float[Tensor, "tokens heads head_dim"],
    chunk_ids: Int64[Tensor, "tokens heads slots"],
    view: MemoryView,
    scale: float,
) -> Float[Tensor, "tokens heads head_dim"]:
    """`mem` of the formula above, in the queries' dtype; missing slots (id -1) and padding weigh exactly zero.

    The view must hold at least one chunk, and every token and head at least one filled slot.
    """
    num_tokens, heads, head_dim = queries.shape
    num_slots = chunk_ids.shape[2]
    kv_heads, num_chunks, chunk, _ = view.keys.shape
    assert num_chunks > 0, "an empty memory has nothing to attend to; use local attention alone"
    group = heads // kv_heads
    bytes_per_token = num_slots * chunk * head_dim * 4
    rows = max(1, GATHER_BYTES // bytes_per_token)
    valid = _valid_positions(chunk_ids, view)
    per_head = []
    for head in range(heads):
        keys = view.keys[head // group].reshape(num_chunks, chunk * head_dim)
        values = view.values[head // group].reshape(num_chunks, chunk * head_dim)
        tiles = []
        for start in range(0, num_tokens, rows):
            tile = slice(start, start + rows)
            ids = chunk_ids[tile, head].clamp(min=0)
            shape = (len(ids), num_slots * chunk, head_dim)
            gathered = keys.index_select(0, ids.flatten()).to(queries.dtype).view(shape)
            logits = torch.einsum("tkd,td->tk", gathered, queries[tile, head]).float() * scale
            weights = logits.masked_fill(~valid[tile, head], -torch.inf).softmax(dim=1).to(queries.dtype)
            gathered = values.index_select(0, ids.flatten()).to(queries.dtype).view(shape)
            tiles.append(torch.einsum("tk,tkd->td", weights, gathered))
        per_head.append(torch.cat(tiles))
    return torch.stack(per_head, dim=1)


def fuse(
    local: Float[Tensor, "batch tokens heads head_dim"],
    memory: Float[Tensor, "batch tokens heads head_dim"],
    gate_logits: Float[Tensor, " heads"],
) -> Float[Tensor, "batch tokens heads head_dim"]:
    """Mix the two branches head by head with g = sigmoid(gate_logits)."""
    gate = gate_logits.sigmoid().to(local.dtype)[:, None]
    return (1 - gate) * local + gate * memory


def _valid_positions(chunk_ids: Int64[Tensor, "tokens heads slots"], view: MemoryView) -> Tensor:
    """Which gathered tokens are real: bool [tokens, heads, slots * chunk]."""
    chunk = view.keys.shape[2]
    lengths = view.lengths[chunk_ids.clamp(min=0)].where(chunk_ids >= 0, 0)
    return (torch.arange(chunk, device=chunk_ids.device) < lengths[..., None]).flatten(2)
