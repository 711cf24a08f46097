# SPDX-License-Identifier: Apache-2.0
"""Similarity of texts by equal tokens, weighted by inverse document frequency (idf)."""

import numpy as np
from jaxtyping import Int, Int64


class TokenOverlap:
    """Cosines of the token counts of pieces: each weighs (1 + ln count) · ln((1 + N) / (1 + pieces with the token))."""

    def __init__(
        self, tokens: Int64[np.ndarray, " tokens"], owner: Int64[np.ndarray, " tokens"], num_owners: int
    ) -> None:
        self._num_owners = num_owners
        self._vocabulary, index = np.unique(tokens, return_inverse=True)
        pairs, counts = np.unique(owner * len(self._vocabulary) + index, return_counts=True)
        self._owner, self._index = np.divmod(pairs, len(self._vocabulary))
        frequency = np.bincount(self._index, minlength=len(self._vocabulary))
        self._idf = np.log((1 + num_owners) / (1 + frequency))
        weights = (1 + np.log(counts)) * self._idf[self._index]
        norms = np.sqrt(np.bincount(self._owner, weights**2, num_owners))
        self._weights = weights / np.maximum(norms, np.finfo(np.float64).tiny)[self._owner]

    def similarity(self, tokens: Int[np.ndarray, " asked"]) -> np.ndarray:
        """Return the cosine with every piece, in float64. Tokens of no piece do not count."""
        known, counts = np.unique(tokens[np.isin(tokens, self._vocabulary)], return_counts=True)
        asked = np.zeros(len(self._vocabulary))
        at = np.searchsorted(self._vocabulary, known)
        asked[at] = (1 + np.log(counts)) * self._idf[at]
        asked /= max(float(np.linalg.norm(asked)), np.finfo(np.float64).tiny)
        return np.bincount(self._owner, self._weights * asked[self._index], self._num_owners)
