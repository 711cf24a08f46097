# SPDX-License-Identifier: Apache-2.0
"""Tokens per second over a sliding window, in memory that does not grow."""

from pipelines.job.throughput import WINDOW_S, TokenRate


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_only_the_window_counts() -> None:
    clock = Clock()
    rate = TokenRate(clock)
    clock.now = 2.0
    rate.add(100)
    assert rate.per_second() == 50.0
    clock.now = WINDOW_S + 1
    rate.add(20)
    assert rate.per_second() == 120 / WINDOW_S
    clock.now = WINDOW_S + 2
    assert rate.per_second() == 20 / WINDOW_S


def test_a_rate_that_is_only_added_to_keeps_its_window() -> None:
    clock = Clock()
    rate = TokenRate(clock)
    for second in range(1000):
        clock.now = float(second)
        rate.add(1)
    assert len(rate._events) == WINDOW_S
