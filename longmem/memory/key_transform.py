"""In which form a reader searches and attends to stored keys. What is stored never depends on it.

raw      k                      as stored (the paper)
centred  k − μ                  μ: mean key of the head; all keys of a layer share a large common direction
unit     (k − μ) / |k − μ|      so that an inner product is a cosine, and no long key wins every search
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Float32
from torch import Tensor

from longmem.config import KeyForm, Retrieval


@dataclass(frozen=True)
class KeySpace:
    """A map of keys, and the layout in which chunk keys are searched."""

    form: KeyForm = "raw"
    retrieval: Retrieval = "per_head"
    mean: Float32[Tensor, "kv_heads head_dim"] | None = None
    """μ; needed for every form but raw."""
    query_map: Float32[Tensor, "index_heads index_dim index_dim"] | None = None
    """W: a token whose key is k asks with W k. None where tokens ask with something else."""
    sketched: bool = False
    """Whether views bring sketches of their chunk keys, for a search that reads them."""
    celled: bool = False
    """Whether they bring cells of them, for an approximate search."""

    def __post_init__(self) -> None:
        assert self.form == "raw" or self.mean is not None, f"keys={self.form} needs the mean key of each head"

    def transform(self, keys: Float[Tensor, "*any kv_heads head_dim"]) -> Float[Tensor, "*any kv_heads head_dim"]:
        """Keys of this form; computed in float32, returned in the given type. Raw keys are the very tensor."""
        if self.mean is None or self.form == "raw":
            return keys
        moved = keys.float() - self.mean.to(keys.device)
        if self.form == "unit":
            moved = torch.nn.functional.normalize(moved, dim=-1)
        return moved.to(keys.dtype)

    def searched(
        self, chunk_keys: Float[Tensor, "kv_heads chunks head_dim"]
    ) -> Float[Tensor, "index_heads chunks index_dim"]:
        """The matrices to search: one for each head, or one that has all heads side by side. A view of keys that lie
        token by token."""
        if self.retrieval == "per_head":
            return chunk_keys
        return chunk_keys.transpose(0, 1).flatten(1)[None]

    def asked(
        self, searched: Float32[Tensor, "index_heads chunks index_dim"]
    ) -> Float32[Tensor, "index_heads chunks index_dim"]:
        """What tokens with such keys ask with, as far as that is known: what a sketch of the keys is fitted to."""
        if self.query_map is None:
            return searched
        return torch.einsum("hci,hoi->hco", searched, self.query_map.to(searched))
