# SPDX-License-Identifier: Apache-2.0
"""Metrics against their definitions: SQuAD 1.1's by hand, F1 from precision and recall, bootstrap by its properties."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.icl.metrics import (
    accuracy,
    answer_f1,
    distance_of_shares,
    exact_match,
    macro_f1,
    mean_interval,
    normalise_answer,
    paired_bootstrap,
)

LABELS = st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(["a", "b", "c", None])), min_size=1, max_size=30)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("The Denver Broncos.", ["denver", "broncos"]),
        ("  an  Apple,\ta day ", ["apple", "day"]),
        ("Santa Clara's", ["santa", "claras"]),
        ("theatre", ["theatre"]),
        ("a", []),
    ],
)
def test_answers_are_compared_without_case_articles_punctuation_and_spaces(text: str, words: list[str]) -> None:
    assert normalise_answer(text) == words


@pytest.mark.parametrize(
    ("answer", "accepted", "exact", "f1"),
    [
        ("the 308", ["308"], 1, 1),
        ("308 points", ["308"], 0, 2 / 3),
        ("in Santa Clara", ["Santa Clara, California", "Levi's Stadium"], 0, 2 * 2 / 6),
        ("Levi's Stadium", ["Santa Clara", "Levi's Stadium"], 1, 1),
        ("blue blue", ["blue"], 0, 2 / 3),
        ("", ["308"], 0, 0),
        ("none of it", ["308"], 0, 0),
    ],
)
def test_exact_match_and_f1_of_squad(answer: str, accepted: list[str], exact: float, f1: float) -> None:
    assert exact_match(answer, accepted) == exact
    assert answer_f1(answer, accepted) == pytest.approx(f1)


@given(LABELS)
def test_macro_f1_is_the_mean_of_precision_and_recall_by_label(pairs: list[tuple[str, str | None]]) -> None:
    golds, predictions = [gold for gold, _ in pairs], [each for _, each in pairs]
    scores = []
    for label in {*golds, *predictions} - {None}:
        hits = pairs.count((label, label))
        precision = hits / predictions.count(label) if label in predictions else 0.0
        recall = hits / golds.count(label) if label in golds else 0.0
        scores.append(2 * precision * recall / (precision + recall) if hits else 0.0)
    assert macro_f1(golds, predictions) == pytest.approx(np.mean(scores))
    assert accuracy(golds, predictions) == pytest.approx(np.mean([gold == each for gold, each in pairs]))


def test_bias_is_the_share_of_predictions_that_must_change() -> None:
    golds = ["a", "a", "b", "b"]
    assert distance_of_shares(golds, ["b", "b", "a", "a"]) == 0
    assert distance_of_shares(golds, ["a"] * 4) == 0.5
    assert distance_of_shares(golds, [None] * 4) == 1


def test_the_interval_holds_the_difference_and_narrows_with_items() -> None:
    random = np.random.default_rng(0)
    widths = []
    for items in (30, 3000):
        theirs = (random.random((6, items)) < 0.5).astype(np.float64)
        ours = (random.random((6, items)) < 0.7).astype(np.float64)
        found = paired_bootstrap(ours, theirs)
        assert found.low is not None
        assert found.high is not None
        assert found.low < found.value < found.high
        assert found.low < 0.2 < found.high
        widths.append(found.high - found.low)
    assert widths[1] < widths[0] / 3


def test_seeds_widen_the_interval_that_items_alone_would_give() -> None:
    by_seed = np.repeat(np.array([[0.0], [1.0]]), 500, axis=1)
    found = paired_bootstrap(by_seed, np.zeros_like(by_seed))
    assert (found.low, found.value, found.high) == (0.0, 0.5, 1.0)


def test_the_interval_of_a_mean_is_that_of_its_difference_from_nothing() -> None:
    random = np.random.default_rng(1)
    scores = (random.random((4, 200)) < 0.6).astype(np.float64)
    expected = paired_bootstrap(scores, np.zeros_like(scores))
    # two bootstraps of 2,000 resamples: a quantile moves by a few hundredths of the standard deviation
    low, high = mean_interval(scores)
    assert low == pytest.approx(expected.low, abs=0.01)
    assert high == pytest.approx(expected.high, abs=0.01)
    by_seed = np.repeat(np.array([[0.0], [1.0]]), 500, axis=1)
    assert mean_interval(by_seed) == (0.0, 1.0)
    assert mean_interval(np.ones((3, 1))) == (None, None)


def test_one_item_has_no_interval() -> None:
    found = paired_bootstrap(np.ones((3, 1)), np.zeros((3, 1)))
    assert (found.value, found.low, found.high) == (1.0, None, None)
