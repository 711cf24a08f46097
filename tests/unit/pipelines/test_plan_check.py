# SPDX-License-Identifier: Apache-2.0
"""Verdict of a check: by raw throughput; the load of other processes only explains it."""

import pytest

from pipelines.plan.check import THROUGHPUT, THROUGHPUT_LEFT, Figure, PlanComparison


@pytest.mark.parametrize(("predicted", "passed"), [(76, True), (124, True), (74, False), (126, False)])
def test_a_quarter_is_the_limit_on_both_sides(predicted: float, passed: bool) -> None:
    assert PlanComparison((Figure(THROUGHPUT, "tokens/s", predicted, 100),)).passed == passed


def test_a_busy_machine_explains_a_miss_and_does_not_excuse_it() -> None:
    figures = (Figure(THROUGHPUT, "tokens/s", 160, 100), Figure(THROUGHPUT_LEFT, "tokens/s", 105, 100))
    comparison = PlanComparison(figures, foreign_cores=1.2)
    assert comparison.passed_on_left_cores
    assert not comparison.passed


def test_nothing_measured_is_no_success() -> None:
    assert not PlanComparison((Figure(THROUGHPUT, "tokens/s", 160, 0),)).passed
