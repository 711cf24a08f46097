"""Exact search in one pass over the keys, in C (`native/top_k.c`).

Brute force makes every score and then throws nearly all of them away: on real keys the product and the selection cost
about the same. Here an upper bound is made of every score from sketches a fifth as long (`low_rank_bound.py`), in
whole numbers of eight bits (`native/bounds.h`), and only keys whose bound reaches the best k so far are looked at in
full. Nothing is approximate: what a bound lets go cannot be among the best k, and the best k are chosen by
double-precision products.

Without a sketch the bounds are made of the whole keys. Eight bits and a selection that reads no score from memory are
then what is gained.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float32, Float64, UInt8
from torch import Tensor

from longmem.errors import ConfigError
from longmem.retrieval.base import AbstractChunkSearch, ChunkHits
from longmem.retrieval.ivf_index import KeyCells
from longmem.retrieval.low_rank_bound import KeySketch
from longmem.retrieval.native.build import KINDS, native_library
from longmem.retrieval.native.threads import in_threads
from longmem.retrieval.native_gather import NativeGather

UNIT_ROUNDOFF = 2.0**-24
SMALLEST = 2.0**-149
"""Of the positive numbers of float32."""
WIDENED_KEYS = 4096
"""Made float32 at a time, which stays in the cache: ten times faster than torch's norm in another type."""
SAFE_NORM = 1e-15
"""Squares of longer vectors are normal numbers of float32, but for entries that do not matter beside others."""


class NativeSearch(AbstractChunkSearch):
    """Exact in double precision; equal scores go to the older chunk. On the CPU only.

    Raises ConfigError where it cannot be built (no C compiler).
    """

    name = "native"
    reads_sketches = True

    def __init__(self) -> None:
        self._library = native_library()
        self.gather = NativeGather()

    @torch.no_grad()
    def search(
        self,
        queries: Float32[Tensor, "tokens heads head_dim"],
        chunk_keys: Float[Tensor, "kv_heads chunks head_dim"],
        num_slots: int,
        sketch: KeySketch | None = None,
        cells: KeyCells | None = None,  # noqa: ARG002 - of approximate search
    ) -> ChunkHits:
        return self._by_kv_head(
            queries,
            chunk_keys,
            num_slots,
            lambda kv_head, asked, ids, scores: self._search_head(
                asked, chunk_keys[kv_head], None if sketch is None else sketch.of_head(kv_head), ids, scores
            ),
        )

    def _by_kv_head(
        self,
        queries: Float32[Tensor, "tokens heads head_dim"],
        chunk_keys: Float[Tensor, "kv_heads chunks head_dim"],
        num_slots: int,
        search_head: Callable[[int, Tensor, Tensor, Tensor], None],
    ) -> ChunkHits:
        """`search_head` gets the number of a KV head, its queries [rows, dim], and ids and scores [rows, slots] to
        fill, all of them contiguous."""
        if queries.device.type != "cpu":
            raise ConfigError(f"search={self.name} runs on the CPU, the model is on {queries.device}: use search=torch")
        assert queries.dtype == torch.float32, f"C reads queries as float32, they are {queries.dtype}"
        num_tokens, heads, dim = queries.shape
        kv_heads, num_chunks, _ = chunk_keys.shape
        ids = torch.full((heads, num_tokens, num_slots), -1, dtype=torch.int64)
        scores = torch.full((heads, num_tokens, num_slots), -torch.inf)
        if num_tokens and num_chunks:
            asked = queries.transpose(0, 1).contiguous()
            group = heads // kv_heads
            for kv_head in range(kv_heads):
                of_group = slice(kv_head * group, (kv_head + 1) * group)
                search_head(
                    kv_head,
                    asked[of_group].view(-1, dim),
                    ids[of_group].view(-1, num_slots),
                    scores[of_group].view(-1, num_slots),
                )
        return ChunkHits(ids.transpose(0, 1).contiguous(), scores.transpose(0, 1).contiguous())

    def _search_head(
        self,
        queries: Float32[Tensor, "rows dim"],
        keys: Float[Tensor, "chunks dim"],
        sketch: KeySketch | None,
        ids: Tensor,
        scores: Tensor,
    ) -> None:
        keys = keys if keys.stride(1) == 1 else keys.contiguous()
        by = bounds_of(queries, keys, sketch)
        codes, panels = self._code(by)

        def search_rows(first: int, last: int) -> int:
            failed: int = self._library.longmem_top_k(
                *by.of_queries(queries, first, last),
                *by.of_keys(keys),
                *(codes.data_ptr(), panels.data_ptr(), by.largest),
                *(len(keys), keys.shape[1], by.width, min(ids.shape[1], len(keys)), ids.shape[1]),
                *(ids[first].data_ptr(), scores[first].data_ptr()),
            )
            return failed

        run_rows(search_rows, len(queries), ids.shape[1])

    def _code(self, by: "Bounds") -> tuple[UInt8[Tensor, "panels bytes"], Float32[Tensor, "panels three"]]:
        """Codes of the rows of all keys, and what bounds need beside them, for all threads."""
        num_panels = -(-len(by.rows) // self._library.longmem_panel_keys())
        codes = torch.empty((num_panels, self._library.longmem_panel_bytes(by.width)), dtype=torch.uint8)
        panels = torch.empty((num_panels, 3))

        def code(first: int, last: int) -> int:
            failed: int = self._library.longmem_code_panels(
                *_rows(by.rows),
                *(len(by.rows), by.width, first, last, codes.data_ptr(), panels.data_ptr()),
            )
            return failed

        if any(in_threads(code, num_panels)):
            raise MemoryError(f"search in {len(by.rows)} chunks: no memory for it")
        return codes, panels


def run_rows(search_rows: Callable[[int, int], int], num_rows: int, num_slots: int) -> None:
    """On all threads; raises MemoryError where one says that memory is short."""
    if any(in_threads(search_rows, num_rows)):
        raise MemoryError(f"search of {num_rows} queries for {num_slots} chunks each: no memory for it")


@dataclass(frozen=True)
class Bounds:
    """What upper bounds of products are made of: rows of sketches; without one, queries and keys themselves."""

    asked: Float32[Tensor, "rows width"]
    """One row for each query."""
    rows: Float[Tensor, "chunks columns"]
    """One row for each key, of which `width` columns count."""
    width: int
    largest: float
    """No key, or row of one, is longer."""
    margins: Float32[Tensor, " rows"]
    """By how much a float32 sum can be too low for each query."""

    def of_queries(self, queries: Float32[Tensor, "rows dim"], first: int, last: int) -> tuple[int, int, int, int]:
        """Arguments for the queries from `first` to `last`."""
        begin = queries[first].data_ptr(), self.asked[first].data_ptr(), self.margins[first].data_ptr()
        return *begin, last - first

    def of_keys(self, keys: Float[Tensor, "chunks dim"]) -> tuple[int, ...]:
        """Arguments for all keys."""
        return *_rows(keys), *_rows(self.rows)


def _rows(of: Float[Tensor, "rows columns"]) -> tuple[int, int, int]:
    """Arguments for rows of any kind."""
    return of.data_ptr(), of.stride(0), KINDS[of.dtype]


def bounds_of(
    queries: Float32[Tensor, "rows dim"], keys: Float[Tensor, "chunks dim"], sketch: KeySketch | None
) -> Bounds:
    """Of all queries and all keys."""
    if sketch is None:
        asked, rows, width = queries, keys, keys.shape[1]
        largest = _largest(keys)
    else:
        asked, rows, width = sketch.basis.place_queries(queries[None])[0], sketch.rows[0], sketch.basis.width
        largest = rows[:, -1].amax().double()
    lengths = torch.maximum(queries.double().norm(dim=1), asked.double().norm(dim=1))
    margins = _margins(lengths, largest, max(width, keys.shape[1]))
    return Bounds(asked.contiguous(), rows, width, float(largest), margins)


def _largest(keys: Float[Tensor, "chunks dim"]) -> Float64[Tensor, ""]:
    """Norm of the longest key. In double precision only where squares may be too small for float32, because a copy of
    all keys costs as much as searching them."""
    largest = torch.stack([part.float().norm(dim=1).amax() for part in keys.split(WIDENED_KEYS)]).amax().double()
    if float(largest) <= SAFE_NORM:
        largest = keys.double().norm(dim=1).amax()
    return largest


def _margins(
    lengths: Float64[Tensor, " rows"], largest: Float64[Tensor, ""], num_terms: int
) -> Float32[Tensor, " rows"]:
    """By how much a float32 sum of so many terms can be wrong, for vectors of these lengths and others up to the
    largest; with the rounding of the vectors themselves and of the sum's own comparison. Terms, and entries of
    sketches, that are no normal numbers lose up to the smallest number each. Infinite where sums may be too large."""
    relative = (num_terms + 8) * UNIT_ROUNDOFF * (lengths * largest).float()
    absolute = SMALLEST * (2 * num_terms + num_terms**0.5 * (lengths + largest))
    margins: Tensor = relative + absolute.float()
    return margins.contiguous()
