# SPDX-License-Identifier: Apache-2.0
"""Gather of retrieved rows: inner products with queries, and weighted sums."""

from abc import ABC, abstractmethod

import torch
from jaxtyping import Float, Int64, Shaped
from torch import Tensor

GATHER_BYTES = 16 * 2**20
"""Bytes of the rows gathered at a time, so that a tile fits near the cache. All rows at once would have 134 MB per head
for 1,024 tokens of a GPT-2-medium shape."""


class AbstractGather(ABC):
    """Interface of gathers. Query head h reads KV head `h // (heads // kv_heads)`. Every id must be that of a row."""

    @abstractmethod
    def products(
        self,
        queries: Float[Tensor, "tokens heads head_dim"],
        ids: Int64[Tensor, "tokens heads retrieved"],
        rows: Shaped[Tensor, "kv_heads rows head_dim"],
    ) -> Float[Tensor, "tokens heads retrieved"]:
        """Return the inner products of each query with its rows, in the queries' dtype."""

    @abstractmethod
    def mixtures(
        self,
        weights: Float[Tensor, "tokens heads retrieved"],
        ids: Int64[Tensor, "tokens heads retrieved"],
        rows: Shaped[Tensor, "kv_heads rows head_dim"],
    ) -> Float[Tensor, "tokens heads head_dim"]:
        """Return weighted sums of rows, in the weights' dtype."""


class TorchGather(AbstractGather):
    """Gather with torch, which copies a tile of rows at a time. Runs on any device, and supports gradients."""

    def products(
        self,
        queries: Float[Tensor, "tokens heads head_dim"],
        ids: Int64[Tensor, "tokens heads retrieved"],
        rows: Shaped[Tensor, "kv_heads rows head_dim"],
    ) -> Float[Tensor, "tokens heads retrieved"]:
        return _einsum_heads(queries, ids, rows, "tkd,td->tk")

    def mixtures(
        self,
        weights: Float[Tensor, "tokens heads retrieved"],
        ids: Int64[Tensor, "tokens heads retrieved"],
        rows: Shaped[Tensor, "kv_heads rows head_dim"],
    ) -> Float[Tensor, "tokens heads head_dim"]:
        return _einsum_heads(weights, ids, rows, "tkd,tk->td")


TORCH_GATHER = TorchGather()


def _einsum_heads(
    left: Float[Tensor, "tokens heads inner"],
    ids: Int64[Tensor, "tokens heads retrieved"],
    rows: Shaped[Tensor, "kv_heads rows head_dim"],
    equation: str,
) -> Float[Tensor, "tokens heads outer"]:
    """Compute an `einsum` of gathered rows and `left` for each head, in tiles of GATHER_BYTES at most."""
    num_tokens, heads, retrieved = ids.shape
    size = max(1, GATHER_BYTES // (retrieved * rows.shape[2] * 4))
    outputs = []
    for head in range(heads):
        head_rows = rows[head * len(rows) // heads]
        tiles = []
        for start in range(0, num_tokens, size):
            part = ids[start : start + size, head]
            gathered = head_rows.index_select(0, part.flatten()).to(left.dtype).unflatten(0, part.shape)
            tiles.append(torch.einsum(equation, gathered, left[start : start + size, head]))
        outputs.append(torch.cat(tiles))
    return torch.stack(outputs, dim=1)
