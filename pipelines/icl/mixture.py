# SPDX-License-Identifier: Apache-2.0
"""Mixture of what a model reads and what the labels of the nearest demonstrations say.

    log p(label) = Σ_part weight_part · log part(label) + bias_label − log Z

A part is the model's distribution over labels after it has read demonstrations; a vote: the label shares of the
nearest demonstrations by one similarity; or a regression of labels on the states of all demonstrations. Votes are
kNN-LM (Khandelwal et al. 2020, arXiv 1911.00172) over whole demonstrations. Weights and biases are fitted to
demonstrations in memory that were left out of their own retrieval; no label of a test item takes part. Each combination
of parts has a fit of its own, so that votes alone can be told from the mixture.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float64, Int64
from torch.nn.functional import log_softmax

VOTE_POWER = {"idf": 2, "values": 8, "target": 8}
"""Exponent of a similarity in a vote, by similarity: cosines of states are all large (docs/log.md)."""
SMOOTHING = 0.05
"""Part of a vote that is shared equally by all labels, so that a label without a vote keeps a probability."""
REGRESSION_SCALE = 8.0
"""Logit of a share of one, where a share of zero has a logit of zero: near what fits of this part alone have."""
PRIOR_PRECISION = 1.0
"""Precision of the normal prior of weights, around 1 / number of parts, and of biases, around 0."""

READING = "reading"
"""Part: the model's distribution over labels."""
ITERATIONS = 100


def vote_weights(similarities: Sequence[float], by: str) -> Float64[np.ndarray, " found"]:
    """Return the weight of each demonstration in a vote: a power of similarity `by`."""
    weights: np.ndarray = np.maximum(np.asarray(similarities, dtype=np.float64), 0) ** VOTE_POWER[by]
    return weights


def vote(
    labels: Sequence[int], similarities: Sequence[float], num_labels: int, by: str
) -> Float64[np.ndarray, " labels"]:
    """Return the share of each label among demonstrations, weighted by a power of similarity `by`; equal shares where
    all are dissimilar."""
    shares = np.bincount(np.asarray(labels, dtype=np.int64), vote_weights(similarities, by), num_labels)
    total = shares.sum()
    return shares / total if total > 0 else np.full(num_labels, 1 / num_labels)


def log_vote(shares: Sequence[float]) -> Float64[np.ndarray, " labels"]:
    """Return the smoothed logarithm of label shares."""
    given = np.asarray(shares, dtype=np.float64)
    return np.log((1 - SMOOTHING) * given + SMOOTHING / len(given))


def log_regression(shares: Sequence[float]) -> Float64[np.ndarray, " labels"]:
    """Return the logarithm of a distribution over labels, from shares of a regression, which may be negative."""
    scores = REGRESSION_SCALE * torch.tensor(shares, dtype=torch.float64)
    found: np.ndarray = scores.log_softmax(dim=0).numpy()
    return found


@dataclass(frozen=True)
class Mixture:
    """Fitted weights and biases of one combination of parts."""

    weights: dict[str, float]
    """Weight of each part."""
    biases: list[float]
    """Bias of each label."""
    examples: int
    """Left-out demonstrations that it was fitted to."""

    def scores(self, parts: Mapping[str, Sequence[float]]) -> Float64[np.ndarray, " labels"]:
        """Return the log-probability of each label; `parts` has the logarithms of every part."""
        total = torch.tensor(self.biases, dtype=torch.float64)
        for name, weight in self.weights.items():
            total = total + weight * torch.tensor(np.asarray(parts[name]), dtype=torch.float64)
        found: np.ndarray = log_softmax(total, dim=0).numpy()
        return found


def fit_mixture(
    parts: Mapping[str, Float64[np.ndarray, "examples labels"]], golds: Int64[np.ndarray, " examples"]
) -> Mixture:
    """Return the most probable weights and biases under a normal prior: a convex problem with one solution.

    `parts` has the logarithms of every part for each example.
    """
    names = list(parts)
    logs = torch.from_numpy(np.stack([np.asarray(parts[name], dtype=np.float64) for name in names]))
    right = torch.from_numpy(golds)
    weights = torch.full((len(names),), 1 / len(names), dtype=torch.float64, requires_grad=True)
    biases = torch.zeros(logs.shape[2], dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([weights, biases], max_iter=ITERATIONS, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimiser.zero_grad()
        mixed = log_softmax(torch.einsum("p,pel->el", weights, logs) + biases, dim=1)
        prior = ((weights - 1 / len(names)) ** 2).sum() + (biases**2).sum()
        value = -mixed[torch.arange(len(right)), right].sum() + PRIOR_PRECISION / 2 * prior
        value.backward()
        return value

    optimiser.step(loss)
    return Mixture(dict(zip(names, weights.tolist(), strict=True)), biases.tolist(), len(golds))
