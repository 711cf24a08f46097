"""FAISS's own approximate indexes over the chunk keys of a long memory, as a search engine of the model.

An index is filled with the first view and grows with the next ones. Nothing is removed from it, since not every kind
can: chunks that a view has dropped are passed over in the answer.
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
"""Hits beyond those asked for, in the place of what a view has dropped."""
TRAINED_KEYS = 64
"""Keys for each list that lists are learnt from; FAISS wants at least 39."""
LINKS, SEARCHED, BUILT = 32, 256, 40
"""Of a graph: links of a node, nodes kept while searching and while building."""


def inverted_file(dim: int, num_keys: int) -> Any:
    """Lists as long as this project's cells, keys as they are."""
    return _probing(
        faiss.IndexIVFFlat(faiss.IndexFlatIP(dim), dim, num_keys // CELL_CHUNKS, faiss.METRIC_INNER_PRODUCT)
    )


def inverted_file_of_halves(dim: int, num_keys: int) -> Any:
    """The same with keys in float16."""
    num_lists, kind = num_keys // CELL_CHUNKS, faiss.ScalarQuantizer.QT_fp16
    coarse = faiss.IndexFlatIP(dim)
    return _probing(faiss.IndexIVFScalarQuantizer(coarse, dim, num_lists, kind, faiss.METRIC_INNER_PRODUCT, False))


def graph(dim: int, num_keys: int) -> Any:  # noqa: ARG001 - as the others
    """Hierarchical navigable small worlds."""
    index = faiss.IndexHNSWFlat(dim, LINKS, faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction, index.hnsw.efSearch = BUILT, SEARCHED
    return index


KINDS: dict[str, Callable[[int, int], Any]] = {
    f"FAISS IVFFlat, {PROBES} lists": inverted_file,
    f"FAISS IVF of float16, {PROBES} lists": inverted_file_of_halves,
    f"FAISS HNSW{LINKS}, efSearch {SEARCHED}": graph,
}


class FaissIndexSearch(AbstractChunkSearch):
    """One search for all heads, chunks of one token. `follow` each view before it is searched."""

    def __init__(self, make: Callable[[int, int], Any]) -> None:
        self._make = make
        self._index: Any = None
        self._origin = self._dropped = 0
        self.building_s = 0.0
        """CPU time of all threads, for training and all that was added."""

    def follow(self, view: MemoryView) -> None:
        """Add what is new in this view."""
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
        chunk_keys: Float[Tensor, "kv_heads chunks head_dim"],  # noqa: ARG002 - the index has them
        num_slots: int,
        sketch: KeySketch | None = None,  # noqa: ARG002 - of this project's engines
        cells: KeyCells | None = None,  # noqa: ARG002 - likewise
    ) -> ChunkHits:
        asked = np.ascontiguousarray(queries[:, 0].numpy())
        scores, ids = map(torch.from_numpy, self._index.search(asked, num_slots + SPARE_HITS))
        ids = torch.where(ids >= self._dropped, ids - self._dropped, -1)
        # those that are left keep their order, best first
        order = (ids < 0).long().argsort(dim=1, stable=True)[:, :num_slots]
        ids = ids.gather(1, order)
        scores = scores.gather(1, order).masked_fill(ids < 0, -torch.inf)
        return ChunkHits(ids[:, None].contiguous(), scores[:, None].contiguous())


def _probing(index: Any) -> Any:
    index.nprobe = PROBES
    return index
