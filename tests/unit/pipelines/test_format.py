# SPDX-License-Identifier: Apache-2.0
"""Forms of numbers in `pipelines.job.format`; those of reports are in `tests/unit/test_report.py`."""

from collections.abc import Callable

import pytest

from pipelines.job.format import (
    NOTHING,
    byte_size,
    fine_figure,
    fine_percent,
    gibibytes,
    h_mm_ss,
    megabytes,
    milliseconds,
    nats,
    percent,
    percentage_points,
    rough_duration,
    short_percent,
    signed_nats,
    with_interval,
)


@pytest.mark.parametrize(
    ("form", "texts"),
    [
        (fine_figure, {12.34567: "12.346", 99_999.0: "99,999.000", 1_234_567.0: "1.235e+06"}),
        (percent, {0.1234: "12.3%", 1.0: "100.0%"}),
        (short_percent, {0.1234: "12.3%", 1.0: "100%"}),
        (fine_percent, {-0.1234567: "−12.346%", -1e-9: "+0.000%"}),
        (percentage_points, {-0.1234: "−12.3", 0.0: "+0.0"}),
        (nats, {1.23456: "1.235"}),
        (signed_nats, {0.5: "+0.500", -0.5: "−0.500"}),
        (rough_duration, {0.01234: "0.0123 s", 119: "119 s", 300: "5.0 min", 7200: "2.0 h"}),
        (h_mm_ss, {0: "0:00:00", 360_000: "100:00:00", 61.9: "0:01:01"}),
        (milliseconds, {0.0123456: "12.3 ms"}),
        (byte_size, {999: "999 B", 1500: "1.5 kB", 2.5e6: "2.5 MB", 1e9: "1 GB", 1.5e12: "1.50 TB"}),
        (megabytes, {1.2e9: "1,200 MB"}),
        (gibibytes, {3 * 2**30: "3.0 GiB"}),
    ],
)
def test_form_of_a_number(form: Callable[[float], str], texts: dict[float, str]) -> None:
    assert {value: form(value) for value in texts} == texts


def test_missing_figures() -> None:
    assert {form(None) for form in (fine_figure, percent, percentage_points)} == {NOTHING}
    assert with_interval({"value": None, "low": None, "high": None}, nats) == NOTHING


def test_interval_follows_its_value() -> None:
    assert with_interval({"value": 0.5, "low": 0.25, "high": 0.75}, percent, "95% from ") == (
        "50.0% (95% from 25.0% to 75.0%)"
    )
    assert with_interval({"value": 0.5, "low": None, "high": None}, percent) == "50.0%"
