"""One reading of the memory: search, attend, and remember what was read for the statistics.

This is the seam for other ways of reading (key-space queries, continuation values, joint-head retrieval, a copy
head): each changes how queries are made, what is searched or what is gathered, and all three meet only here.
"""

from dataclasses import dataclass

import torch
import xxhash
from jaxtyping import Float, Int64
from torch import Tensor

from longmem.dtypes import to_array
from longmem.memory.view import MemoryView
from longmem.search import AbstractChunkSearch
from longmem.sidenet.fusion import attend_to_memory
from longmem.types import RetrievalStats

DISTANCE_BINS = 24
"""Distances up to 2^24 tokens; one book is below 2^20."""


@dataclass(frozen=True)
class Reading:
    """The memory branch's output for one segment, and the places it came from."""

    output: Float[Tensor, "tokens heads head_dim"]
    chunk_ids: Int64[Tensor, "tokens heads slots"]


def read_memory(
    queries: Float[Tensor, "tokens heads head_dim"],
    view: MemoryView,
    search: AbstractChunkSearch,
    num_slots: int,
    scale: float,
) -> Reading:
    """The paper's form: per head, the SideNet's own queries against mean chunk keys, then attention over what was
    found. The view must not be empty."""
    hits = search.search(queries.detach().float(), view.chunk_keys, num_slots)
    return Reading(attend_to_memory(queries, hits.ids, view, scale), hits.ids)


def retrieval_stats(
    reading: Reading | None, view: MemoryView | None, gate: Float[Tensor, " heads"], first_position: int
) -> RetrievalStats:
    """Describe one segment's reading; `first_position` is the segment's start in the document."""
    if reading is None or view is None:
        empty = torch.zeros(DISTANCE_BINS, dtype=torch.int64)
        return RetrievalStats(0, 0.0, 0.0, 0, to_array(empty), xxhash.xxh3_64_hexdigest(b""))
    ids = reading.chunk_ids
    filled = ids >= 0
    places = view.starts[ids.clamp(min=0)].where(filled, -1)
    readers = first_position + torch.arange(len(ids), device=ids.device)
    distances = (readers[:, None, None] - places)[filled]
    bins = distances.clamp(min=1).double().log2().floor().long().clamp(max=DISTANCE_BINS - 1)
    return RetrievalStats(
        memory_tokens=view.num_tokens,
        gate_mean=float(gate.float().mean()),
        distance_mean=float(distances.double().mean()),
        empty_slots=int((~filled).sum()),
        distance_histogram=to_array(torch.bincount(bins, minlength=DISTANCE_BINS)),
        chunks_digest=xxhash.xxh3_64_hexdigest(to_array(places).data),
    )
