"""Reading retrieved rows: products of queries with them, and weighted sums of them."""

from abc import ABC, abstractmethod
from collections.abc import Iterator

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
        by_head = []
        for head in range(queries.shape[1]):
            tiles = [
                torch.einsum("tkd,td->tk", gathered, queries[tile, head])
                for tile, gathered in _tiles(ids[:, head], rows[head * len(rows) // queries.shape[1]], queries.dtype)
            ]
            by_head.append(torch.cat(tiles))
        return torch.stack(by_head, dim=1)

    def mixtures(
        self,
        weights: Float[Tensor, "tokens heads retrieved"],
        ids: Int64[Tensor, "tokens heads retrieved"],
        rows: Shaped[Tensor, "kv_heads rows head_dim"],
    ) -> Float[Tensor, "tokens heads head_dim"]:
        by_head = []
        for head in range(weights.shape[1]):
            tiles = [
                torch.einsum("tk,tkd->td", weights[tile, head], gathered)
                for tile, gathered in _tiles(ids[:, head], rows[head * len(rows) // weights.shape[1]], weights.dtype)
            ]
            by_head.append(torch.cat(tiles))
        return torch.stack(by_head, dim=1)


TORCH_GATHER = TorchGather()


def _tiles(
    ids: Int64[Tensor, "tokens retrieved"], rows: Shaped[Tensor, "rows head_dim"], dtype: torch.dtype
) -> Iterator[tuple[slice, Float[Tensor, "tile retrieved head_dim"]]]:
    """Slices of the token axis with their rows, which stay within GATHER_BYTES."""
    size = max(1, GATHER_BYTES // (ids.shape[1] * rows.shape[1] * 4))
    for start in range(0, len(ids), size):
        tile = slice(start, start + size)
        part = ids[tile]
        yield tile, rows.index_select(0, part.flatten()).to(dtype).view(*part.shape, rows.shape[1])
