# SPDX-License-Identifier: Apache-2.0
"""Exact search with FAISS, as a reference, and k-means clustering for approximate search."""

import faiss
import numpy as np
import torch
from jaxtyping import Float, Float32
from torch import Tensor

from longmem.retrieval import ivf_index
from longmem.retrieval.base import AbstractChunkSearch, ChunkHits
from longmem.retrieval.ivf_index import Cells, KeyCells, nearest_means
from longmem.retrieval.low_rank_bound import KeySketch

ITERATIONS = 10
POINTS_PER_MEAN = 64
"""Largest number of keys per mean that k-means uses, sampled with SEED."""
SEED = 0


def cluster_means(keys: Float[Tensor, "chunks dim"], num_cells: int) -> Float32[Tensor, "cells dim"]:
    """Return the means of `num_cells` k-means clusters of the keys, computed from a fixed seed."""
    faiss.omp_set_num_threads(torch.get_num_threads())
    clustering = faiss.Kmeans(
        keys.shape[1],
        num_cells,
        niter=ITERATIONS,
        seed=SEED,
        min_points_per_centroid=1,
        max_points_per_centroid=POINTS_PER_MEAN,
    )
    clustering.train(np.ascontiguousarray(keys.float().cpu().numpy()))
    return torch.tensor(clustering.centroids).to(keys.device)


def make_cells(keys: Float[Tensor, "index_heads chunks index_dim"]) -> Cells:
    """Cluster the chunk keys of a stretch.

    The result is reproducible for the same kind of CPU and the same number of threads.
    """
    num_cells = max(1, keys.shape[1] // ivf_index.CELL_CHUNKS)
    means = torch.stack([cluster_means(head_keys, num_cells) for head_keys in keys])
    parts = keys.split(ivf_index.ASSIGNED_CHUNKS, dim=1)
    return Cells(means, torch.cat([nearest_means(part, means) for part in parts], dim=1))


class FaissSearch(AbstractChunkSearch):
    """Exact search by `faiss.knn` on a contiguous float32 copy of each head's keys.

    A slice of the keys masks the others without cost; an id selector costs half of the search. There is no index
    object that a concurrent `add` could break.
    """

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
        shape = (num_tokens, heads, num_slots)
        ids = torch.full(shape, -1, dtype=torch.int64)
        scores = torch.full(shape, -torch.inf)
        if num_chunks and num_tokens:
            group = heads // kv_heads
            # FAISS's OpenMP threads are process-wide: use the number that this worker gave torch
            faiss.omp_set_num_threads(torch.get_num_threads())
            for head in range(heads):
                if head % group == 0:
                    keys = np.ascontiguousarray(chunk_keys[head // group].float().cpu().numpy())
                found_scores, found_ids = faiss.knn(
                    np.ascontiguousarray(queries[:, head].cpu().numpy()),
                    keys,
                    num_slots,
                    metric=faiss.METRIC_INNER_PRODUCT,
                )
                missing = found_ids < 0
                found_scores[missing] = -np.inf
                ids[:, head] = torch.from_numpy(found_ids)
                scores[:, head] = torch.from_numpy(found_scores)
        return ChunkHits(ids.to(queries.device), scores.to(queries.device))
