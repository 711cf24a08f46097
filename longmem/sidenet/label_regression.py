# SPDX-License-Identifier: Apache-2.0
"""Estimate of an item's label by ridge regression on the states of all labelled demonstrations in a memory.

    shares(item) = mean + k(item) · (K + λ I)⁻¹ · (Y − mean)

K holds the similarities of demonstrations to one another, k those of the item to them, Y one row per demonstration with
a one at its label. A vote weighs the nearest demonstrations by similarity alone; the inverse also accounts for those
that resemble each other, and for directions of the state that do not tell labels. λ is chosen without any item: each
segment's demonstrations are estimated from those of the other segments, in closed form, because those of one segment
have read each other when they were encoded.

Source: kernel ridge regression and its leave-one-out formula (Cawley and Talbot 2003, Pattern Recognition 36).
"""

import numpy as np
import torch
from jaxtyping import Float, Float32, Float64, Int64
from torch import Tensor

PENALTIES = (0.1, 0.3, 1.0, 3.0, 10.0)
"""Values of λ that are compared; similarities are cosines, so K has ones on its diagonal."""
MOST_DEMONSTRATIONS = 4096
"""Demonstrations that take part, evenly spaced over the memory: K of these has 134 MB."""


class LabelRegression:
    """Regression of labels on similarities to demonstrations."""

    def __init__(
        self,
        similarities: Float[Tensor, "demonstrations demonstrations"],
        labels: Int64[np.ndarray, " demonstrations"],
        num_labels: int,
        segments: Int64[np.ndarray, " demonstrations"],
    ) -> None:
        """Fit to demonstrations of `segments`, which are cosines of one another."""
        found, owner = np.unique(segments, return_inverse=True)
        if len(found) == 1:
            owner = np.arange(len(segments))
        self._blocks = [torch.from_numpy(np.flatnonzero(owner == number)) for number in range(owner.max() + 1)]
        self._segments = segments
        right = torch.nn.functional.one_hot(torch.from_numpy(labels), num_labels).double()
        self._mean = right.mean(dim=0)
        kernel, centred = similarities.double().cpu(), right - self._mean
        self.errors = {penalty: self._fitted(kernel, centred, penalty) for penalty in PENALTIES}
        """Mean squared error of each λ on demonstrations of segments that were left out."""
        self.penalty = min(self.errors, key=self.errors.__getitem__)
        self._fitted(kernel, centred, self.penalty)

    def _fitted(self, kernel: Tensor, centred: Tensor, penalty: float) -> float:
        """Fit with a penalty, and return its error on segments that were left out; on single demonstrations where
        there is one segment."""
        self._inverse = torch.linalg.inv(kernel + penalty * torch.eye(len(kernel), dtype=torch.float64))
        self._coefficients = self._inverse @ centred
        # the residual of a block that is estimated from all others is G_BB⁻¹ (G y)_B, with G the inverse
        residuals = [
            torch.linalg.solve(self._inverse[block][:, block], self._coefficients[block]) for block in self._blocks
        ]
        return float((torch.cat(residuals) ** 2).sum(dim=1).mean())

    def shares(
        self, similarities: Float32[np.ndarray, " demonstrations"], left_out: int | None = None
    ) -> Float64[np.ndarray, " labels"]:
        """Return the estimated share of each label, which may lie outside 0 to 1; the shares sum to one.

        Without any demonstration of segment `left_out`, where one is given; but the mean of labels and λ are those of
        all demonstrations.
        """
        coefficients, asked = self._coefficients, torch.from_numpy(similarities).double()
        if left_out is not None and (left := np.flatnonzero(self._segments == left_out)).size:
            block = torch.from_numpy(left)
            part = torch.linalg.solve(self._inverse[block][:, block], coefficients[block])
            # this is zero for the block itself
            coefficients = coefficients - self._inverse[:, block] @ part
            asked = asked.index_fill(0, block, 0.0)
        found: np.ndarray = (self._mean + asked @ coefficients).numpy()
        return found


def taking_part(count: int) -> Int64[np.ndarray, " demonstrations"]:
    """Return the indices of the demonstrations that take part."""
    return np.unique(np.linspace(0, count - 1, min(count, MOST_DEMONSTRATIONS)).astype(np.int64))
