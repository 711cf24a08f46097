# SPDX-License-Identifier: Apache-2.0
"""Calibrated predictions: each model's mixture, fitted to the demonstrations of a memory that were left out.

longmem        what the model says with the memory and without, all votes, and the regression
reading        what the model has read
votes          all votes: labels of nearest demonstrations
regression     labels regressed on the states of all demonstrations in memory
idf votes      labels of the demonstrations that share words; no model takes part
backbone       the backbone alone, with the same demonstrations in context
"""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from torch import tensor

from pipelines.icl.mixture import READING, Mixture, fit_mixture, log_regression, log_vote
from pipelines.icl.records import ItemResult, LabelScores

PARTS = {
    "longmem": (READING, "backbone", "idf", "values", "target", "regression"),
    "reading": (READING,),
    "votes": ("idf", "values", "target"),
    "regression": ("regression",),
    "idf_votes": ("idf",),
    "backbone": ("backbone",),
}
"""Parts of each calibrated model."""


def log_parts(result: ItemResult) -> dict[str, Any]:
    """Return the logarithm of every part's distribution over labels."""
    assert result.longmem is not None, "a generated answer"
    assert result.backbone is not None, "a generated answer"
    votes = {by: log_vote(shares) for by, shares in (result.votes or {}).items()}
    parts = {READING: _among_labels(result.longmem), "backbone": _among_labels(result.backbone), **votes}
    return parts if result.regression is None else parts | {"regression": log_regression(result.regression)}


def _among_labels(scores: LabelScores) -> np.ndarray:
    found: np.ndarray = tensor(scores.logprobs).double().log_softmax(dim=0).numpy()
    return found


class Calibration:
    """Mixtures of one grid point."""

    def __init__(self, left_out: Sequence[ItemResult], golds: Sequence[str], labels: Sequence[str]) -> None:
        """`golds` are the known labels of the left-out demonstrations."""
        self._labels = list(labels)
        parts = [log_parts(result) for result in left_out]
        right = np.array([self._labels.index(gold) for gold in golds])
        self._mixtures: dict[str, Mixture] = {
            model: fit_mixture({name: np.stack([part[name] for part in parts]) for name in names}, right)
            for model, names in PARTS.items()
        }

    def predict(self, result: ItemResult) -> dict[str, str]:
        """Return the most probable label of each calibrated model."""
        parts = log_parts(result)
        return {model: self._labels[int(mixture.scores(parts).argmax())] for model, mixture in self._mixtures.items()}

    def coefficients(self) -> dict[str, Any]:
        """Return weights, biases and number of examples of each model, for the summary."""
        return {
            model: asdict(mixture) | {"biases": dict(zip(self._labels, mixture.biases, strict=True))}
            for model, mixture in self._mixtures.items()
        }
