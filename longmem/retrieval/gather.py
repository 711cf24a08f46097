"""Reading retrieved rows: products of queries with them, and weighted sums of them."""

from abc import ABC, abstractmethod

import torch
from jaxtyping import Float, Int64, Shaped
from torch import Tensor

GATHER_BYTES = 16 * 2**20
"""Gathered rows held at a time. All of them at once would be 134 MB per head for 1,024 tokens of a GPT-2-medium shape;
a tile stays near the cache."""


class AbstractGather(ABC):
    """Query head h reads the rows of KV head `h // (heads // kv_heads)`. Every id must be that of a row."""

    @abstractmethod
    def products(
        self,
        queries: Float[Tensor, "tokens heads head_dim"],
        ids: Int64[Tensor, "tokens heads retrieved"],
        rows: Shaped[Tensor, "kv_heads rows head_dim"],
    ) -> Float[Tensor, "tokens heads retrieved"]:
        """Inner products of each query with its rows, in the queries' dtype."""

    @abstractmethod
    def mixtures(
        self,
        weights: Float[Tensor, "tokens heads retrieved"],
        ids: Int64[Tensor, "tokens heads retrieved"],
        rows: Shaped[Tensor, "kv_heads rows head_dim"],
    ) -> Float[Tensor, "tokens heads head_dim"]:
        """Sums of rows by weight, in the weights' dtype."""


class TorchGather(AbstractGather):
    """Copies of the rows, a tile at a time; on any device, and gradients reach queries and weights."""

    def products(
        self,
        queries: Float[Tensor, "tokens heads head_dim"],
        ids: Int64[Tensor, "tokens heads retrieved"],
        rows: Shaped[Tensor, "kv_heads rows head_dim"],
    ) -> Float[Tensor, "tokens heads retrieved"]:
        return _by_head(queries, ids, rows, "tkd,td->tk")

    def mixtures(
        self,
        weights: Float[Tensor, "tokens heads retrieved"],
        ids: Int64[Tensor, "tokens heads retrieved"],
        rows: Shaped[Tensor, "kv_heads rows head_dim"],
    ) -> Float[Tensor, "tokens heads head_dim"]:
        return _by_head(weights, ids, rows, "tkd,tk->td")


TORCH_GATHER = TorchGather()


def _by_head(
    left: Float[Tensor, "tokens heads inner"],
    ids: Int64[Tensor, "tokens heads retrieved"],
    rows: Shaped[Tensor, "kv_heads rows head_dim"],
    equation: str,
) -> Float[Tensor, "tokens heads outer"]:
    """One `einsum` of gathered rows and `left` for each head and tile of tokens, which stays within GATHER_BYTES."""
    num_tokens, heads, retrieved = ids.shape
    size = max(1, GATHER_BYTES // (retrieved * rows.shape[2] * 4))
    by_head = []
    for head in range(heads):
        of_head = rows[head * len(rows) // heads]
        tiles = []
        for start in range(0, num_tokens, size):
            part = ids[start : start + size, head]
            gathered = of_head.index_select(0, part.flatten()).to(left.dtype).unflatten(0, part.shape)
            tiles.append(torch.einsum(equation, gathered, left[start : start + size, head]))
        by_head.append(torch.cat(tiles))
    return torch.stack(by_head, dim=1)
