# SPDX-License-Identifier: Apache-2.0
"""FAISS's own approximate indexes over the chunk keys of a long memory, as a search engine of the model.

An index is filled with the first view and grows with the next ones. Removal is not supported by every index type, so
chunks that a view has dropped are filtered from the result.
"""

from collections.abc import Callable
from time import process_time
from typing import Any

import faiss
import numpy as np
import torch
from jaxtyping import Float, Float32
from torch import Tensor

from longmem.memory.view import MemoryView
from longmem.retrieval.base import AbstractChunkSearch, ChunkHits
from longmem.retrieval.ivf_index import CELL_CHUNKS, KeyCells
from longmem.retrieval.low_rank_bound import KeySketch

PROBES = 64
SPARE_HITS = 16
"""Extra hits requested to compensate for dropped chunks."""
TRAINED_KEYS = 64
"""Training keys for each inverted list; FAISS requires at least 39."""
LINKS, SEARCHED, BUILT = 32, 256, 40
"""Graph parameters: links of a node, and nodes kept while searching and while building."""


def inverted_file(dim: int, num_keys: int) -> Any:
    """Return an index with lists as long as this project's cells and unquantised keys."""
    return _probing(
        faiss.IndexIVFFlat(faiss.IndexFlatIP(dim), dim, num_keys // CELL_CHUNKS, faiss.METRIC_INNER_PRODUCT)
    )


def inverted_file_of_halves(dim: int, num_keys: int) -> Any:
    """Return an index with lists as long as this project's cells and keys in float16."""
    num_lists, kind = num_keys // CELL_CHUNKS, faiss.ScalarQuantizer.QT_fp16
    coarse = faiss.IndexFlatIP(dim)
    return _probing(faiss.IndexIVFScalarQuantizer(coarse, dim, num_lists, kind, faiss.METRIC_INNER_PRODUCT, False))


def graph(dim: int, num_keys: int) -> Any:  # noqa: ARG001 - common signature
    """Return a graph index (hierarchical navigable small world)."""
    index = faiss.IndexHNSWFlat(dim, LINKS, faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction, index.hnsw.efSearch = BUILT, SEARCHED
    return index


KINDS: dict[str, Callable[[int, int], Any]] = {
    f"FAISS IVFFlat, {PROBES} lists": inverted_file,
    f"FAISS IVF of float16, {PROBES} lists": inverted_file_of_halves,
    f"FAISS HNSW{LINKS}, efSearch {SEARCHED}": graph,
}


class FaissIndexSearch(AbstractChunkSearch):
    """Search of chunks of one token for all heads together. Call `follow` for each view before it is searched."""

    def __init__(self, make: Callable[[int, int], Any]) -> None:
        self._make = make
        self._index: Any = None
        self._origin = self._dropped = 0
        self.building_s = 0.0
        """CPU time of all threads for training and all additions, in seconds."""

    def follow(self, view: MemoryView) -> None:
        """Add the chunks that are new in this view."""
        faiss.omp_set_num_threads(torch.get_num_threads())
        begun_s = process_time()
        keys = view.chunk_keys[0].float()
        start = int(view.starts[0])
        if self._index is None:
            self._origin, self._index = start, self._make(keys.shape[1], len(keys))
            if not self._index.is_trained:
                self._index.train(np.ascontiguousarray(keys[:: max(1, CELL_CHUNKS // TRAINED_KEYS)].numpy()))
        self._dropped = start - self._origin
        new = keys[self._index.ntotal - self._dropped :]
        self._index.add(np.ascontiguousarray(new.numpy()))
        self.building_s += process_time() - begun_s

    @torch.no_grad()
    def search(
        self,
        queries: Float32[Tensor, "tokens heads head_dim"],
        chunk_keys: Float[Tensor, "kv_heads chunks head_dim"],  # noqa: ARG002 - held by the index
        num_slots: int,
        sketch: KeySketch | None = None,  # noqa: ARG002 - for this project's engines
        cells: KeyCells | None = None,  # noqa: ARG002 - for this project's engines
    ) -> ChunkHits:
        asked = np.ascontiguousarray(queries[:, 0].numpy())
        scores, ids = map(torch.from_numpy, self._index.search(asked, num_slots + SPARE_HITS))
        ids = torch.where(ids >= self._dropped, ids - self._dropped, -1)
        # the remaining hits keep their order, best first
        order = (ids < 0).long().argsort(dim=1, stable=True)[:, :num_slots]
        ids = ids.gather(1, order)
        scores = scores.gather(1, order).masked_fill(ids < 0, -torch.inf)
        return ChunkHits(ids[:, None].contiguous(), scores[:, None].contiguous())


def _probing(index: Any) -> Any:
    index.nprobe = PROBES
    return index
