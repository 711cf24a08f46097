# SPDX-License-Identifier: Apache-2.0
"""Sentences of the report of in-context learning: what is compared, and nothing twice."""

from typing import Any

import pytest

from pipelines.icl.report import verdict


def comparison(ours: str, theirs: str) -> dict[str, Any]:
    return {"ours": ours, "theirs": theirs, "metric": "normalised", "value": 0.1, "low": 0.05, "high": 0.2}


def task(against: str | None, *comparisons: dict[str, Any]) -> dict[str, Any]:
    finding = None if against is None else {"against": against, "scoring": "normalised"}
    return {"baselines": {"any": 1}, "grid": [], "finding": finding, "comparisons": list(comparisons)}


@pytest.mark.parametrize(
    ("against", "comparisons", "said"),
    [
        # one number of demonstrations in context: the finding has said it
        ("longmem", [comparison("20 in memory", "neither")], ""),
        ("backbone", [comparison("both", "4 in context")], ""),
        (None, [], ""),
        (
            "longmem",
            [
                comparison("4 in context", "neither"),
                *(comparison("20 in memory", each) for each in ("neither", "4 in context")),
            ],
            "20 in memory: +10.0 points against 4 in context (95% interval +5.0 to +20.0).",
        ),
    ],
)
def test_the_verdict_adds_to_the_finding_and_does_not_repeat_it(
    against: str | None, comparisons: list[dict[str, Any]], said: str
) -> None:
    assert verdict(task(against, *comparisons)) == said
