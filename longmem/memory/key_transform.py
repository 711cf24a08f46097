# SPDX-License-Identifier: Apache-2.0
"""Key form in which a reader searches and attends to stored keys. Keys are stored without it; in one pass it decides
which memory they were encoded behind.

raw      k                      as stored (the paper)
centred  k − μ                  μ: mean key of the head; all keys of a layer share a large common direction
unit     (k − μ) / |k − μ|      so that an inner product is a cosine, and long keys do not dominate every search
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Float32
from torch import Tensor

from longmem.config import KeyForm, Retrieval


@dataclass(frozen=True)
class KeySpace:
    """Transform of keys, and the layout in which chunk keys are searched."""

    form: KeyForm = "raw"
    retrieval: Retrieval = "per_head"
    mean: Float32[Tensor, "kv_heads head_dim"] | None = None
    """Mean key μ; required for every form but raw."""
    query_map: Float32[Tensor, "index_heads index_dim index_dim"] | None = None
    """Query matrix W: a token with key k searches with W k. None where queries are computed otherwise."""
    sketched: bool = False
    """True if views include sketches of their chunk keys, for a search that reads them."""
    layer: int | None = None
    """Index of the searched layer among several stored ones, all of which views include; None for one layer."""
    celled: bool = False
    """True if views include cells of their chunk keys, for an approximate search."""

    def __post_init__(self) -> None:
        assert self.form == "raw" or self.mean is not None, f"keys={self.form} needs the mean key of each head"

    def transform(self, keys: Float[Tensor, "*any kv_heads head_dim"]) -> Float[Tensor, "*any kv_heads head_dim"]:
        """Return keys in this form, computed in float32, in the given dtype. Raw keys are returned as the input
        tensor."""
        if self.mean is None or self.form == "raw":
            return keys
        moved = keys.float() - self.mean.to(keys.device)
        if self.form == "unit":
            moved = torch.nn.functional.normalize(moved, dim=-1)
        return moved.to(keys.dtype)

    def searched(
        self, chunk_keys: Float[Tensor, "kv_heads chunks head_dim"]
    ) -> Float[Tensor, "index_heads chunks index_dim"]:
        """Return the matrices to search: one for each head, or one that has all heads concatenated.

        The result is a view of keys that are laid out by token.
        """
        if self.retrieval == "per_head":
            return chunk_keys
        return chunk_keys.transpose(0, 1).flatten(1)[None]

    def asked(
        self, searched: Float32[Tensor, "index_heads chunks index_dim"]
    ) -> Float32[Tensor, "index_heads chunks index_dim"]:
        """Return the queries of tokens with these keys, as far as they are known; a sketch of the keys is fitted to
        them."""
        if self.query_map is None:
            return searched
        return torch.einsum("hci,hoi->hco", searched, self.query_map.to(searched))
