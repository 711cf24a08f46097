# SPDX-License-Identifier: Apache-2.0
"""Memory reader: computes queries, searches, and weighs the results for fusion and the copy head.

    query      side        the SideNet's own queries                          key_space   W · key of the reading token
    retrieval  per_head    one search for each head                           joint       one search for all together

W starts as the identity, so that a token initially finds the places with the most similar keys.
"""

import math
from dataclasses import dataclass
from itertools import repeat

import torch
import xxhash
from jaxtyping import Float, Float32, Int64
from torch import Tensor, nn

from longmem.backbone.families import AttentionShape
from longmem.config import LongMemConfig
from longmem.dtypes import to_array
from longmem.memory.key_transform import KeySpace
from longmem.memory.view import MemoryView
from longmem.retrieval.base import AbstractChunkSearch
from longmem.retrieval.gather import AbstractGather
from longmem.retrieval.positions import RetrievedPositions, num_searchable, places_of
from longmem.sidenet.memory_attention import attend, memory_products
from longmem.types import RetrievalStats

DISTANCE_BINS = 24
"""Number of histogram bins: distances up to 2^24 tokens. One book is below 2^20."""

COSINE_SCALE = 20.0
"""Initial value of the learned factor on cosines, where raw products have the backbone's own 1/√d. The middle of the
range 15 to 30 that measured best for a training-free cache (docs/log.md)."""


@dataclass(frozen=True)
class RetrievedMemory:
    """Memory tokens that one row of a batch retrieved."""

    chunk_ids: Int64[Tensor, "tokens index_heads slots"]
    """Chunk ids as searched: one row of slots for each head, or one for all heads."""
    places: RetrievedPositions
    """Tokens of these chunks, for the same heads."""
    products: Float32[Tensor, "tokens index_heads retrieved"]
    """Inner products of query and key for the same heads; their mean over heads where all heads searched together."""
    attended: Float[Tensor, "tokens heads head_dim"] | None
    """Memory branch of the fusion; None without fusion."""

    def split(self, num_tokens: int) -> "list[RetrievedMemory]":
        """Split into readings of `num_tokens` consecutive tokens."""
        return [
            RetrievedMemory(ids, RetrievedPositions(index, valid), products, attended)
            for ids, index, valid, products, attended in zip(
                self.chunk_ids.split(num_tokens),
                self.places.index.split(num_tokens),
                self.places.valid.split(num_tokens),
                self.products.split(num_tokens),
                repeat(None) if self.attended is None else self.attended.split(num_tokens),
                strict=False,
            )
        ]


class MemoryReader(nn.Module):
    """Trainable part of reading: `query_map` and `log_scale`. The paper's form has neither.

    `query_map` is W, one matrix for each search. `log_scale` is the logarithm of the factor on inner products in
    attention, one per query head.
    """

    def __init__(self, shape: AttentionShape, config: LongMemConfig, scale: float, fusion: bool | None = None) -> None:
        """Initialise W as the identity.

        Args:
            scale: the backbone's own factor on query · key.
            fusion: whether values are attended to; by default what the config says.
        """
        super().__init__()
        self._fusion = config.fusion if fusion is None else fusion
        self._shape, self._config, self._scale = shape, config, scale
        self._continued = config.values == "next"
        if config.keys != "raw":
            # set once by `calibrate`, never trained; a parameter, so that it is saved and hashed with the others
            self.key_mean = nn.Parameter(torch.zeros(shape.kv_heads, shape.head_dim), requires_grad=False)
            start = math.log(COSINE_SCALE if config.keys == "unit" else scale)
            self.log_scale = nn.Parameter(torch.full((shape.heads,), start))
        if config.query == "key_space":
            joint = config.retrieval == "joint"
            heads, width = (1, shape.kv_heads * shape.head_dim) if joint else (shape.kv_heads, shape.head_dim)
            self.query_map = nn.Parameter(torch.eye(width).repeat(heads, 1, 1))

    @property
    def key_space(self) -> KeySpace:
        """Key form and layout of the views that this reader searches."""
        mean = None if self._config.keys == "raw" else self.key_mean.detach()
        query_map = self.query_map.detach() if self._config.query == "key_space" else None
        return KeySpace(self._config.keys, self._config.retrieval, mean, query_map)

    def calibrate(self, keys: Float[Tensor, "tokens kv_heads head_dim"]) -> None:
        """Set the mean key of each head from a sample of text. Does nothing for raw keys.

        The mean is rounded to bfloat16, which is precise enough for an offset. CPU types can still differ in single
        entries.
        """
        if self._config.keys != "raw":
            self.key_mean.data.copy_(keys.double().mean(dim=0).bfloat16())

    def read(
        self,
        side_queries: Float[Tensor, "tokens heads head_dim"],
        own_keys: Float[Tensor, "tokens kv_heads head_dim"],
        view: MemoryView,
        search: AbstractChunkSearch,
        *,
        attends: bool = True,
    ) -> RetrievedMemory | None:
        """Search and attend. Return None when the view holds no token that can be read.

        `own_keys` are the backbone's keys of the reading tokens at the memory layer, in their stored form. Without
        `attends`, values are not read.
        """
        searchable = num_searchable(view, self._continued)
        if searchable == 0:
            return None
        joint = self._config.retrieval == "joint"
        queries = self._queries(side_queries, own_keys)
        asked = queries
        if joint:
            asked = queries.unflatten(1, (self._shape.kv_heads, -1)).sum(dim=2).flatten(1)[:, None]
        hits = search.search(
            asked.detach().float(),
            view.chunk_keys[:, :searchable],
            self._config.num_slots,
            None if view.sketch is None else view.sketch.narrow(0, searchable),
            None if view.cells is None else view.cells.narrow(searchable),
        )
        products = memory_products(queries, hits.ids, view, search.gather)
        places = places_of(hits.ids, view, self._continued)
        attended = None
        if self._fusion and attends:
            attended = self._attend(products, places, view, side_queries, search.gather)
        return RetrievedMemory(hits.ids, places, products.mean(dim=1, keepdim=True) if joint else products, attended)

    def _queries(self, side_queries: Tensor, own_keys: Tensor) -> Float[Tensor, "tokens query_heads head_dim"]:
        """Return queries for each query head, or for each KV head where all query heads of a group would have equal
        queries."""
        if self._config.query == "side":
            return nn.functional.normalize(side_queries, dim=-1) if self._config.keys == "unit" else side_queries
        placed = self.key_space.transform(own_keys).to(side_queries.dtype)
        query_map = self.query_map.to(placed.dtype)
        if self._config.retrieval == "joint":
            mapped = placed.flatten(1) @ query_map[0].T
            return mapped.view(placed.shape)
        return torch.einsum("thi,hoi->tho", placed, query_map)

    def _attend(
        self,
        products: Tensor,
        places: RetrievedPositions,
        view: MemoryView,
        side_queries: Tensor,
        gather: AbstractGather,
    ) -> Float[Tensor, "tokens heads head_dim"]:
        return attend(self._logits(products), places, view, side_queries.dtype, self._continued, gather)

    def _logits(
        self, products: Float32[Tensor, "tokens index_heads retrieved"]
    ) -> Float32[Tensor, "tokens heads retrieved"]:
        group = self._shape.heads // products.shape[1]
        scale = self._scale if self._config.keys == "raw" else self.log_scale.exp()[:, None]
        logits: Tensor = products.repeat_interleave(group, dim=1) * scale
        return logits

    @torch.no_grad()
    def attention_weights(self, reading: RetrievedMemory) -> Float32[Tensor, "tokens read"]:
        """Return the weight of each retrieved place in attention, a mean over all query heads; rows sum to one."""
        valid, heads = reading.places.valid, reading.products.shape[1]
        group = self._shape.heads // heads
        logits = self._logits(reading.products).masked_fill(~valid.repeat_interleave(group, dim=1), -torch.inf)
        weights: Tensor = logits.softmax(dim=2).unflatten(1, (heads, group)).mean(dim=2)
        return weights.flatten(1) / heads


def retrieval_stats(
    reading: RetrievedMemory | None,
    view: MemoryView | None,
    gate_mean: float,
    copy_share: Float[Tensor, " tokens"] | None,
    first_position: int,
) -> RetrievalStats:
    """Return the retrieval statistics of one segment, whose first token is at `first_position` in the document."""
    if reading is None or view is None:
        empty = torch.zeros(DISTANCE_BINS, dtype=torch.int64)
        return RetrievalStats(0, 0.0, 0.0, 0.0, 0, to_array(empty), xxhash.xxh3_64_hexdigest(b""))
    ids = reading.chunk_ids
    filled = ids >= 0
    places = view.starts[ids.clamp(min=0)].where(filled, -1)
    readers = first_position + torch.arange(len(ids), device=ids.device)
    distances = (readers[:, None, None] - places)[filled]
    bins = distances.clamp(min=1).double().log2().floor().long().clamp(max=DISTANCE_BINS - 1)
    return RetrievalStats(
        memory_tokens=view.num_tokens,
        gate_mean=gate_mean,
        copy_mean=0.0 if copy_share is None else float(copy_share.double().mean()),
        distance_mean=float(distances.double().mean()),
        empty_slots=int((~filled).sum()),
        distance_histogram=to_array(torch.bincount(bins, minlength=DISTANCE_BINS)),
        chunks_digest=xxhash.xxh3_64_hexdigest(to_array(places).data),
    )
