# SPDX-License-Identifier: Apache-2.0
"""Votes, and the mixture that is fitted to demonstrations left out."""

import numpy as np
import pytest

from pipelines.icl.mixture import PRIOR_PRECISION, SMOOTHING, fit_mixture, log_vote, vote


def example_parts(num: int = 80) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Return a part that knows the label, biased towards label 0, a part of noise, and the labels."""
    random = np.random.default_rng(0)
    golds = random.integers(0, 3, num)
    knows = random.normal(size=(num, 3)) + 1.5 * np.eye(3)[golds] + [2.0, 0.0, 0.0]
    noise = random.normal(size=(num, 3))
    return {"knows": _normalised(knows), "noise": _normalised(noise)}, golds


def _normalised(scores: np.ndarray) -> np.ndarray:
    logs: np.ndarray = scores - np.log(np.exp(scores).sum(axis=1, keepdims=True))
    return logs


def objective(parts: dict[str, np.ndarray], golds: np.ndarray, weights: np.ndarray, biases: np.ndarray) -> float:
    total = sum(weight * logs for weight, logs in zip(weights, parts.values(), strict=True)) + biases
    likelihood = _normalised(np.asarray(total))[range(len(golds)), golds].sum()
    prior = ((weights - 1 / len(parts)) ** 2).sum() + (biases**2).sum()
    return float(-likelihood + PRIOR_PRECISION / 2 * prior)


def test_a_vote_weighs_labels_by_a_power_of_similarity() -> None:
    shares = vote([0, 2, 2, 1], [0.5, 0.2, 0.1, -0.3], 3, "idf")
    np.testing.assert_allclose(shares, np.array([0.25, 0, 0.05]) / 0.30)
    assert vote([0, 1], [-1.0, 0.0], 2, "target").tolist() == [0.5, 0.5]


def test_a_label_without_a_vote_keeps_a_probability() -> None:
    logs = log_vote([1.0, 0.0, 0.0, 0.0])
    assert np.exp(logs).sum() == pytest.approx(1)
    assert np.exp(logs[1]) == pytest.approx(SMOOTHING / 4)


def test_a_fit_is_the_minimum_of_its_objective() -> None:
    parts, golds = example_parts()
    mixture = fit_mixture(parts, golds)
    weights, biases = np.array(list(mixture.weights.values())), np.array(mixture.biases)
    least = objective(parts, golds, weights, biases)
    random = np.random.default_rng(1)
    for size in (1e-3, 1e-2, 0.3):
        for _ in range(20):
            moved = random.normal(size=5) * size
            assert objective(parts, golds, weights + moved[:2], biases + moved[2:]) > least


def test_trust_goes_to_the_part_that_knows_and_biases_undo_a_preference() -> None:
    parts, golds = example_parts()
    mixture = fit_mixture(parts, golds)
    assert mixture.weights["knows"] > 3 * abs(mixture.weights["noise"])
    assert mixture.biases[0] < min(mixture.biases[1:]) - 0.5
    assert mixture.examples == 80
    others, right = example_parts(400)
    one = {name: logs[80:] for name, logs in others.items()}
    chosen = [int(mixture.scores({name: logs[row] for name, logs in one.items()}).argmax()) for row in range(320)]
    alone = one["knows"].argmax(axis=1)
    assert np.mean(np.array(chosen) == right[80:]) > np.mean(alone == right[80:]) + 0.05


def test_scores_are_log_probabilities() -> None:
    parts, golds = example_parts()
    scores = fit_mixture(parts, golds).scores({name: logs[0] for name, logs in parts.items()})
    assert np.exp(scores).sum() == pytest.approx(1)
