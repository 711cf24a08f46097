# SPDX-License-Identifier: Apache-2.0
"""Exact search in one pass over the keys, in C (`longmem/native/top_k.c`).

Brute force computes every score and discards nearly all of them. On real keys the product and the selection cost about
the same. This engine computes an upper bound of every score from sketches a fifth as long (`low_rank_bound.py`), in
int8 (`longmem/native/bounds.h`). Only keys whose bound reaches the current k-th best score get a full product. The
result is exact: a key that a bound rejects cannot be in the top k, and double-precision products rank the top k.

Without a sketch the bounds are made of the whole keys. The gain is then that of int8, and of a selection that reads no
score from memory.
"""

import ctypes
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float32, Float64, UInt8
from torch import Tensor

from longmem.errors import ConfigError
from longmem.native.build import native_library
from longmem.native.params import KeyPanels, PanelBounds, QuantiseParams, TopkParams, row_matrix
from longmem.native.threads import run_threads
from longmem.retrieval.base import AbstractChunkSearch, ChunkHits
from longmem.retrieval.ivf_index import KeyCells
from longmem.retrieval.low_rank_bound import KeySketch
from longmem.retrieval.native_gather import NativeGather

UNIT_ROUNDOFF = 2.0**-24
SMALLEST = 2.0**-149
"""Smallest positive float32 number."""
WIDENED_KEYS = 4096
"""Keys converted to float32 at a time. They stay in the cache: ten times faster than torch's norm in another dtype."""
SAFE_NORM = 1e-15
"""Squares of longer vectors are normal float32 numbers, except for entries that are negligible next to others."""


class NativeSearch(AbstractChunkSearch):
    """Exact search in double precision; equal scores go to the older chunk. Runs on the CPU only.

    Raises:
        ConfigError: The C library cannot be built (no C compiler).
    """

    name = "native"
    skips_products = True
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
        cells: KeyCells | None = None,  # noqa: ARG002 - read by approximate search only
    ) -> ChunkHits:
        return self._search_kv_heads(
            queries,
            chunk_keys,
            num_slots,
            lambda kv_head, head_queries, ids, scores: self._search_head(
                head_queries,
                chunk_keys[kv_head],
                None if sketch is None else sketch.select_head(kv_head),
                ids,
                scores,
            ),
        )

    def _search_kv_heads(
        self,
        queries: Float32[Tensor, "tokens heads head_dim"],
        chunk_keys: Float[Tensor, "kv_heads chunks head_dim"],
        num_slots: int,
        search_head: Callable[[int, Tensor, Tensor, Tensor], None],
    ) -> ChunkHits:
        """Search the keys of each KV head.

        Args:
            search_head: Gets the number of a KV head, its queries [rows, dim], and ids and scores [rows, slots] to
                fill, all of them contiguous.
        """
        if queries.device.type != "cpu":
            raise ConfigError(f"search={self.name} runs on the CPU, the model is on {queries.device}: use search=torch")
        assert queries.dtype == torch.float32, f"C reads queries as float32, they are {queries.dtype}"
        num_tokens, heads, dim = queries.shape
        kv_heads, num_chunks, _ = chunk_keys.shape
        ids = torch.full((heads, num_tokens, num_slots), -1, dtype=torch.int64)
        scores = torch.full((heads, num_tokens, num_slots), -torch.inf)
        if num_tokens and num_chunks:
            queries_by_head = queries.transpose(0, 1).contiguous()
            group_size = heads // kv_heads
            for kv_head in range(kv_heads):
                group = slice(kv_head * group_size, (kv_head + 1) * group_size)
                search_head(
                    kv_head,
                    queries_by_head[group].view(-1, dim),
                    ids[group].view(-1, num_slots),
                    scores[group].view(-1, num_slots),
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
        inputs = bound_inputs(queries, keys, sketch)
        values, bounds = self._quantise(inputs)
        panels = KeyPanels(values=values.data_ptr(), bounds=bounds.data_ptr())
        k = min(ids.shape[1], len(keys))

        def search_rows(first: int, last: int) -> int:
            params = inputs.topk_params(queries, keys, k, ids, scores, first, last)
            failed: int = self._library.longmem_top_k(ctypes.byref(params), ctypes.byref(panels))
            return failed

        run_rows(search_rows, len(queries), ids.shape[1])

    def _quantise(
        self, inputs: "BoundInputs"
    ) -> tuple[UInt8[Tensor, "panels bytes"], Float32[Tensor, "panels fields"]]:
        """Quantise all key sketches once, for all threads.

        Returns:
            Quantised values of each panel, and its `PanelBounds`.
        """
        num_keys = len(inputs.key_sketches)
        num_panels = -(-num_keys // self._library.longmem_panel_keys())
        values = torch.empty((num_panels, self._library.longmem_panel_bytes(inputs.width)), dtype=torch.uint8)
        bounds = torch.empty((num_panels, len(PanelBounds._fields_)))

        def quantise_panels(first: int, last: int) -> int:
            params = QuantiseParams(
                key_sketches=row_matrix(inputs.key_sketches),
                num_keys=num_keys,
                sketch_width=inputs.width,
                first_panel=first,
                last_panel=last,
                panels=KeyPanels(values=values.data_ptr(), bounds=bounds.data_ptr()),
            )
            failed: int = self._library.longmem_quantise_panels(ctypes.byref(params))
            return failed

        if any(run_threads(quantise_panels, num_panels)):
            raise MemoryError(f"search in {num_keys} chunks: no memory for it")
        return values, bounds


def run_rows(search_rows: Callable[[int, int], int], num_rows: int, num_slots: int) -> None:
    """Run `search_rows(first, last)` on all threads.

    Raises:
        MemoryError: A range of rows could not allocate memory.
    """
    if any(run_threads(search_rows, num_rows)):
        raise MemoryError(f"search of {num_rows} queries for {num_slots} chunks each: no memory for it")


@dataclass(frozen=True)
class BoundInputs:
    """Vectors from which upper bounds of scores are computed: sketches, or queries and keys themselves without one."""

    query_sketches: Float32[Tensor, "rows width"]
    """Contiguous sketches of the queries."""
    key_sketches: Float[Tensor, "chunks columns"]
    """Sketches of the keys; only the first `width` columns are read."""
    width: int
    """Columns of a sketch."""
    largest_norm: float
    """Upper bound of the norms of keys and key sketches."""
    margins: Float32[Tensor, " rows"]
    """Largest error of a float32 bound or score of each query."""

    def topk_params(
        self,
        queries: Float32[Tensor, "rows dim"],
        keys: Float[Tensor, "chunks dim"],
        k: int,
        ids: Tensor,
        scores: Tensor,
        first: int,
        last: int,
    ) -> TopkParams:
        """Make the C arguments for queries `first` to `last - 1`. The caller keeps all tensors alive.

        Args:
            ids: int64 [rows, slots], contiguous, to be filled.
            scores: float32 [rows, slots], contiguous, to be filled.
        """
        return TopkParams(
            queries=queries[first].data_ptr(),
            query_sketches=self.query_sketches[first].data_ptr(),
            margins=self.margins[first].data_ptr(),
            largest_norm=self.largest_norm,
            keys=row_matrix(keys),
            key_sketches=row_matrix(self.key_sketches),
            num_queries=last - first,
            num_keys=len(keys),
            dim=keys.shape[1],
            sketch_width=self.width,
            k=k,
            num_slots=ids.shape[1],
            ids=ids[first].data_ptr(),
            scores=scores[first].data_ptr(),
        )


def bound_inputs(
    queries: Float32[Tensor, "rows dim"], keys: Float[Tensor, "chunks dim"], sketch: KeySketch | None
) -> BoundInputs:
    """Compute sketches of the queries, norms and margins. Without a sketch, bounds use queries and keys themselves."""
    if sketch is None:
        query_sketches, key_sketches, width = queries, keys, keys.shape[1]
        largest = _largest_norm(keys)
    else:
        query_sketches, key_sketches = sketch.basis.place_queries(queries[None])[0], sketch.rows[0]
        width = sketch.basis.width
        largest = key_sketches[:, -1].amax().double()
    norms = torch.maximum(queries.double().norm(dim=1), query_sketches.double().norm(dim=1))
    margins = _margins(norms, largest, max(width, keys.shape[1]))
    return BoundInputs(query_sketches.contiguous(), key_sketches, width, float(largest), margins)


def _largest_norm(keys: Float[Tensor, "chunks dim"]) -> Float64[Tensor, ""]:
    """Return the norm of the longest key.

    Uses float32, because a double-precision copy of all keys costs as much as searching them. Falls back to double
    precision where squares may be too small for float32.
    """
    largest = torch.stack([part.float().norm(dim=1).amax() for part in keys.split(WIDENED_KEYS)]).amax().double()
    if float(largest) <= SAFE_NORM:
        largest = keys.double().norm(dim=1).amax()
    return largest


def _margins(norms: Float64[Tensor, " rows"], largest: Float64[Tensor, ""], num_terms: int) -> Float32[Tensor, " rows"]:
    """Bound the error of a float32 sum of `num_terms` products, for vectors of these norms and others up to `largest`.

    The bound includes the rounding of the vectors themselves and of the comparison of sums. Terms and sketch entries
    that are not normal numbers lose up to the smallest float32 number each. Infinite where sums may overflow.
    """
    relative = (num_terms + 8) * UNIT_ROUNDOFF * (norms * largest).float()
    absolute = SMALLEST * (2 * num_terms + num_terms**0.5 * (norms + largest))
    margins: Tensor = relative + absolute.float()
    return margins.contiguous()
