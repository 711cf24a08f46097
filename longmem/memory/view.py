"""What one segment may read: an immutable, position-bounded piece of one document's memory."""

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int32, Int64, Shaped
from torch import Tensor

from longmem.retrieval.ivf_index import KeyCells
from longmem.retrieval.low_rank_bound import KeySketch
from longmem.retrieval.repeats import RepeatIndex


@dataclass(frozen=True)
class MemoryView:
    """Chunks that lie wholly in `[start_token, end_token)` of one document, oldest first.

    Keys and values are seen by head and kept by token, as they were stored: what all heads retrieve together lies
    together. Slots of a partial chunk beyond its length hold zeros and are masked, never read.
    """

    chunk_keys: Float[Tensor, "index_heads chunks index_dim"]
    """Mean key of each chunk, over its real tokens: one matrix for each KV head, or one with all heads side by side
    (`index_heads` 1, `index_dim` kv_heads · head_dim) where all heads search together. In float32; where a chunk is one
    token, the very keys, in their own type."""
    keys: Shaped[Tensor, "kv_heads chunks chunk head_dim"]
    """Keys in the form that the reader asked for (`longmem.memory.key_transform`)."""
    values: Shaped[Tensor, "kv_heads chunks chunk head_dim"]
    tokens: Int32[Tensor, "chunks chunk"]
    starts: Int64[Tensor, " chunks"]
    """Position in the document of each chunk's first token."""
    lengths: Int64[Tensor, " chunks"]
    """Real tokens of each chunk; less than `chunk` only where a block ended inside one."""
    sketch: KeySketch | None
    """Of the chunk keys, where the memory is long enough to gain by it and the search reads it."""
    cells: KeyCells | None
    """Of the chunk keys, where the search is approximate."""
    end_token: int
    """Position of the reading segment's first token: everything here lies before it."""

    @property
    def num_chunks(self) -> int:
        return len(self.starts)

    @property
    def num_tokens(self) -> int:
        return int(self.lengths.sum())

    @property
    def chunk_size(self) -> int:
        """Slots of a chunk."""
        return int(self.tokens.shape[1])

    @cached_property
    def slots_in_order(self) -> Int64[Tensor, " places"]:
        """Where each place (`longmem.retrieval.positions`) is kept: an index into the chunks laid end to end."""
        offsets = torch.arange(self.chunk_size, device=self.lengths.device)
        return (offsets < self.lengths[:, None]).flatten().nonzero().squeeze(1)

    @cached_property
    def text(self) -> Int64[Tensor, " places"]:
        """The token of each place: all that is remembered, oldest first."""
        return self.tokens.flatten()[self.slots_in_order].long()

    @cached_property
    def repeats(self) -> RepeatIndex:
        """Where every run of tokens ends; made when it is first asked for, once for all that read this view."""
        return RepeatIndex(self.text)
