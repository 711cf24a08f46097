# SPDX-License-Identifier: Apache-2.0
"""Approximate search: exact among the chunks of the cells whose means have the largest products with the query.

The choice of cells decides what can be found, so this is the only engine that changes results. docs/performance.md has
its measured cost and loss.
"""

import ctypes

import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor

from longmem.native.params import InvertedLists
from longmem.retrieval.base import ChunkHits
from longmem.retrieval.exact_native import NativeSearch, bound_inputs, run_rows
from longmem.retrieval.ivf_index import KeyCells
from longmem.retrieval.low_rank_bound import KeySketch

PROBES = 64
"""Default number of cells that a query searches, in addition to the chunks outside of cells."""


class IvfSearch(NativeSearch):
    """Search of the best `probes` cells of each query and of all chunks outside of cells. Runs on the CPU only.

    Searches everything in a view without stretches.

    Raises:
        ConfigError: The C library cannot be built (no C compiler).
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
        return self._search_kv_heads(
            queries,
            chunk_keys,
            num_slots,
            lambda kv_head, head_queries, ids, scores: self._search_cells(
                head_queries,
                chunk_keys[kv_head],
                None if sketch is None else sketch.select_head(kv_head),
                *inverted_lists(cells, kv_head, chunk_keys.shape[1]),
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
        starts: Int64[Tensor, " starts"],
        ids: Tensor,
        scores: Tensor,
    ) -> None:
        keys = keys if keys.stride(1) == 1 else keys.contiguous()
        inputs = bound_inputs(queries, keys, sketch)
        probes = choose_lists(queries, means, self._probes)

        def search_rows(first: int, last: int) -> int:
            params = inputs.topk_params(queries, keys, ids.shape[1], ids, scores, first, last)
            lists = InvertedLists(
                members=members.data_ptr(),
                starts=starts.data_ptr(),
                probes=probes[first].data_ptr(),
                num_lists=len(starts) - 1,
                num_probes=probes.shape[1],
            )
            failed: int = self._library.longmem_ivf_top_k(ctypes.byref(params), ctypes.byref(lists))
            return failed

        run_rows(search_rows, len(queries), ids.shape[1])


def inverted_lists(
    cells: KeyCells, head: int, num_chunks: int
) -> tuple[Float32[Tensor, "cells dim"], Int64[Tensor, " chunks"], Int64[Tensor, " starts"]]:
    """Make one list of chunks for each cell that is not empty, and a last one of the chunks outside of cells.

    The list outside of cells is searched last, because the hits from the best cells raise the threshold and spare most
    of the work there.

    Returns:
        Means of the cells; chunks, list after list; and the start of each list, followed by the end of the last one.
    """
    outside = cells.outside(num_chunks)
    members = torch.cat([*(first + part.members[head] for first, part in cells.stretches), outside])
    means = torch.cat([part.means[head] for _, part in cells.stretches])
    sizes = torch.cat([part.sizes[head] for _, part in cells.stretches])
    # equal keys leave empty cells, which would waste a probe
    means, sizes = means[sizes > 0], sizes[sizes > 0]
    ends = sizes.cumsum(0)
    return means, members, torch.cat([torch.tensor([0]), ends, ends[-1:] + len(outside)])


def choose_lists(
    queries: Float32[Tensor, "rows dim"], means: Float32[Tensor, "cells dim"], num_probes: int
) -> Int64[Tensor, "rows probes"]:
    """Choose the lists that each query searches: those of its best cells, and the last one, outside of cells."""
    best = (queries @ means.T).topk(min(num_probes, len(means)), dim=1).indices
    return torch.cat([best, torch.full_like(best[:, :1], len(means))], dim=1).contiguous()
