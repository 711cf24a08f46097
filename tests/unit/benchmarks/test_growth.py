# SPDX-License-Identifier: Apache-2.0
"""Verdict on one very long document: relative to its second 100,000 tokens, ignoring earlier ones."""

import numpy as np
import pytest

from benchmarks.growth import FORGET_PEAK, Sample, _figures, _new_peak_bytes

MIB = 2**20


def samples(
    late_cpu: float = 1.0, late_rss: int = 100, late_peak: int = 120, first_peak: int = 900, tokens: int = 500_000
) -> list[Sample]:
    """Return samples every thousand tokens; `late` applies to the last hundred."""
    made, cpu_s = [], 0.0
    for scored in range(1000, tokens + 1, 1000):
        late = scored > tokens - 100_000
        cpu_s += late_cpu if late else 1.0
        peak = first_peak if scored == 1000 else late_peak if late else 120
        made.append(Sample(scored, cpu_s, cpu_s, MIB * (late_rss if late else 100), MIB * peak))
    return made


def test_what_happens_before_the_window_is_full_decides_nothing() -> None:
    figures = _figures(samples(), 65_536)
    assert figures["passed"]
    assert figures["peak_bytes_second_span"] == figures["peak_bytes_later"] == 120 * MIB
    assert figures["slowdown_cpu"] == pytest.approx(1.0)


@pytest.mark.parametrize("worse", [{"late_cpu": 1.06}, {"late_rss": 103}, {"late_peak": 123}])
def test_each_claim_can_fail(worse: dict[str, float]) -> None:
    assert not _figures(samples(**worse), 65_536)["passed"]


def test_a_trend_is_told_from_one_high_moment() -> None:
    rising, one_high = samples(late_rss=150), samples()
    one_high[-1] = Sample(500_000, 500.0, 500.0, 200 * MIB, 200 * MIB)
    for made, medians in ((rising, [100 * MIB, 150 * MIB]), (one_high, [100 * MIB, 100 * MIB])):
        figures = _figures(made, 65_536)
        assert [figures["rss_median_first_tenth"], figures["rss_median_last_tenth"]] == medians
        assert not figures["passed"]


@pytest.mark.skipif(not FORGET_PEAK.exists(), reason="this system cannot forget a peak")
def test_a_peak_is_of_the_time_since_the_last() -> None:
    _new_peak_bytes()
    held = np.ones(2**25)
    high = _new_peak_bytes()
    del held
    _new_peak_bytes()
    assert high - _new_peak_bytes() > 0.9 * 2**25 * 8
