# SPDX-License-Identifier: Apache-2.0
"""Interface of the search engines. An engine knows numbers only, not documents or stores."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

from jaxtyping import Float, Float32, Int64
from torch import Tensor

from longmem.retrieval.gather import TORCH_GATHER, AbstractGather
from longmem.retrieval.ivf_index import KeyCells
from longmem.retrieval.low_rank_bound import KeySketch


@dataclass(frozen=True)
class ChunkHits:
    """The best chunks of every token and query head, best first."""

    ids: Int64[Tensor, "tokens heads slots"]
    """Index of the chunk in the searched keys; -1 where there are fewer chunks than slots."""
    scores: Float32[Tensor, "tokens heads slots"]
    """Inner products; -inf where the id is -1."""


class AbstractChunkSearch(ABC):
    """Exact or approximate inner-product search in the chunk keys of a query's KV head.

    Query head h searches the keys of KV head `h // (heads // kv_heads)` (grouped-query attention). The result depends
    on the arguments only: engines keep no state between calls, so views may change between them.
    """

    skips_products: bool = False
    """True if the engine finds a few exact results without most of the products."""

    reads_sketches: bool = False
    """True if sketches make the engine faster; they never change its results."""

    reads_cells: bool = False
    """True if the engine searches some cells only, and so may miss chunks."""

    gather: AbstractGather = TORCH_GATHER
    """Reader of the retrieved rows."""

    @abstractmethod
    def search(
        self,
        queries: Float32[Tensor, "tokens heads head_dim"],
        chunk_keys: Float[Tensor, "kv_heads chunks head_dim"],
        num_slots: int,
        sketch: KeySketch | None = None,
        cells: KeyCells | None = None,
    ) -> ChunkHits:
        """Find the top `num_slots` chunks of each token and head. A slot without a chunk has id -1.

        Args:
            chunk_keys: Keys in any dtype that `longmem.config` can store. Scores are inner products of the keys
                converted to float32.
            sketch: Sketch of the same keys, if there is one.
            cells: Cells of the same keys, if there are any.
        """
