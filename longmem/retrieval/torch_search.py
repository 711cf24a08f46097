# SPDX-License-Identifier: Apache-2.0
"""Exact search with one matrix product and one top-k per head, on the device of the queries."""

import torch
from jaxtyping import Float, Float32
from torch import Tensor

from longmem.retrieval.base import AbstractChunkSearch, ChunkHits
from longmem.retrieval.ivf_index import KeyCells
from longmem.retrieval.low_rank_bound import KeySketch

SCORE_BYTES = 16 * 2**20
"""Bytes of the scores computed at a time. The whole matrix of 1,024 tokens and 16,384 chunks would have 64 MB for each
head, and its allocation would cost a third of the search."""


class TorchSearch(AbstractChunkSearch):
    """Brute force, exact up to float32 rounding. `torch.topk` decides the order of equal scores."""

    @torch.no_grad()
    def search(
        self,
        queries: Float32[Tensor, "tokens heads head_dim"],
        chunk_keys: Float[Tensor, "kv_heads chunks head_dim"],
        num_slots: int,
        sketch: KeySketch | None = None,  # noqa: ARG002 - not needed by brute force
        cells: KeyCells | None = None,  # noqa: ARG002 - read by approximate search only
    ) -> ChunkHits:
        num_tokens, heads, _ = queries.shape
        kv_heads, num_chunks, _ = chunk_keys.shape
        found = min(num_slots, num_chunks)
        shape = (num_tokens, heads, num_slots)
        ids = torch.full(shape, -1, dtype=torch.int64, device=queries.device)
        scores = torch.full(shape, -torch.inf, device=queries.device)
        if found == 0:
            return ChunkHits(ids, scores)
        group = heads // kv_heads
        rows = max(1, SCORE_BYTES // (4 * num_chunks))
        products = torch.empty((min(rows, num_tokens), num_chunks), device=queries.device)
        for head in range(heads):
            if head % group == 0:
                keys = chunk_keys[head // group].float().T
            for start in range(0, num_tokens, rows):
                part = queries[start : start + rows, head]
                torch.mm(part, keys, out=products[: len(part)])
                best = products[: len(part)].topk(found, dim=1)
                ids[start : start + rows, head, :found] = best.indices
                scores[start : start + rows, head, :found] = best.values
        return ChunkHits(ids, scores)
