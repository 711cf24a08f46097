"""Approximate search: exact among the chunks of the cells whose means are most like the query.

Which cells those are decides what can be found, so this is the one engine that changes results. What it costs and
what it loses is measured in docs/performance.md.
"""

import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor

from longmem.retrieval.base import ChunkHits
from longmem.retrieval.exact_native import NativeSearch, bounds_of, run_rows
from longmem.retrieval.ivf_index import KeyCells
from longmem.retrieval.low_rank_bound import KeySketch

PROBES = 64
"""Cells that a query looks into by default, beside what is in none."""


class IvfSearch(NativeSearch):
    """Of a view with stretches, a query sees its best `probes` cells and all chunks outside of cells; of any other
    view, everything. On the CPU only.

    Raises ConfigError where it cannot be built (no C compiler).
    """

    name = "ivf"
    reads_cells = True

    def __init__(self, probes: int = PROBES) -> None:
        super().__init__()
        self._probes = probes

    @torch.no_grad()
    def search(
        self,
        queries: Float32[Tensor, "tokens heads head_dim"],
        chunk_keys: Float[Tensor, "kv_heads chunks head_dim"],
        num_slots: int,
        sketch: KeySketch | None = None,
        cells: KeyCells | None = None,
    ) -> ChunkHits:
        if cells is None or not cells.stretches:
            return super().search(queries, chunk_keys, num_slots, sketch)
        return self._by_kv_head(
            queries,
            chunk_keys,
            num_slots,
            lambda kv_head, asked, ids, scores: self._search_cells(
                asked,
                chunk_keys[kv_head],
                None if sketch is None else sketch.of_head(kv_head),
                *lists_of(cells, kv_head, chunk_keys.shape[1]),
                ids,
                scores,
            ),
        )

    def _search_cells(
        self,
        queries: Float32[Tensor, "rows dim"],
        keys: Float[Tensor, "chunks dim"],
        sketch: KeySketch | None,
        means: Float32[Tensor, "cells dim"],
        members: Int64[Tensor, " chunks"],
        bounds: Int64[Tensor, " ends"],
        ids: Tensor,
        scores: Tensor,
    ) -> None:
        keys = keys if keys.stride(1) == 1 else keys.contiguous()
        by = bounds_of(queries, keys, sketch)
        probes = probes_of(queries, means, self._probes)

        def search_rows(first: int, last: int) -> int:
            failed: int = self._library.longmem_top_k_in_cells(
                *by.of_queries(queries, first, last),
                *by.of_keys(keys),
                *(keys.shape[1], by.width, ids.shape[1], ids.shape[1]),
                *(members.data_ptr(), bounds.data_ptr(), len(bounds) - 1, probes[first].data_ptr(), probes.shape[1]),
                *(ids[first].data_ptr(), scores[first].data_ptr()),
            )
            return failed

        run_rows(search_rows, len(queries), ids.shape[1])


def lists_of(
    cells: KeyCells, head: int, num_chunks: int
) -> tuple[Float32[Tensor, "cells dim"], Int64[Tensor, " chunks"], Int64[Tensor, " ends"]]:
    """Means of all cells that hold chunks; chunks by cell, those outside of cells last; and where each list ends and
    the next begins. Last, because what a query has found in its best cells spares most of the work there."""
    outside = cells.outside(num_chunks)
    members = torch.cat([*(first + each.members[head] for first, each in cells.stretches), outside])
    means = torch.cat([each.means[head] for _, each in cells.stretches])
    sizes = torch.cat([each.sizes[head] for _, each in cells.stretches])
    # nobody should probe an empty cell; equal keys leave some
    means, sizes = means[sizes > 0], sizes[sizes > 0]
    ends = sizes.cumsum(0)
    return means, members, torch.cat([torch.tensor([0]), ends, ends[-1:] + len(outside)])


def probes_of(
    queries: Float32[Tensor, "rows dim"], means: Float32[Tensor, "cells dim"], num_probes: int
) -> Int64[Tensor, "rows probes"]:
    """The lists that each query looks into: those of its best cells, and the last one, of what is outside of cells."""
    best = (queries @ means.T).topk(min(num_probes, len(means)), dim=1).indices
    return torch.cat([best, torch.full_like(best[:, :1], len(means))], dim=1).contiguous()
