"""Finding the best chunks: one interface, several engines. An engine knows numbers only, not documents or stores."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

from jaxtyping import Float, Float32, Int64
from torch import Tensor

from longmem.retrieval.gather import TORCH_GATHER, AbstractGather
from longmem.retrieval.ivf_index import KeyCells
from longmem.retrieval.low_rank_bound import KeySketch


@dataclass(frozen=True)
class ChunkHits:
    """The best chunks for every token and query head, best first."""

    ids: Int64[Tensor, "tokens heads slots"]
    """Chunk index inside the searched keys; -1 where there were fewer chunks than slots."""
    scores: Float32[Tensor, "tokens heads slots"]
    """Inner products; -inf where the id is -1."""


class AbstractChunkSearch(ABC):
    """Exact or approximate inner-product search of queries among the chunk keys of their KV head.

    Query head h searches the keys of KV head `h // (heads // kv_heads)` (grouped-query attention). The result is a
    function of its arguments alone: engines keep no state between calls, so views can change freely.
    """

    reads_sketches: bool = False
    """Whether sketches make it faster; they never change what it finds."""

    reads_cells: bool = False
    """Whether it looks into some cells only, and so may miss chunks."""

    gather: AbstractGather = TORCH_GATHER
    """How what was found is read."""

    @abstractmethod
    def search(
        self,
        queries: Float32[Tensor, "tokens heads head_dim"],
        chunk_keys: Float[Tensor, "kv_heads chunks head_dim"],
        num_slots: int,
        sketch: KeySketch | None = None,
        cells: KeyCells | None = None,
    ) -> ChunkHits:
        """Top `num_slots` chunks per token and head; a slot without a chunk has id -1, never an invented one.

        Chunk keys may be of any floating-point type that `longmem.config` can store; the products are those of their
        numbers in float32. `sketch`, `cells`: of the same keys, if there are any.
        """
