# SPDX-License-Identifier: Apache-2.0
"""Sentences of a comparison of in-context learning: right for one cell and for several."""

from typing import Any

import pytest

from pipelines.compare.wording import verdicts

ABOVE, BELOW, ALIKE = (0.1, 0.05, 0.15), (-0.1, -0.15, -0.05), (0.01, -0.05, 0.07)


def cell(change: tuple[float, float, float]) -> dict[str, Any]:
    return {"runs": [{}, {"change": dict(zip(("value", "low", "high"), change, strict=True))}]}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ([ALIKE], "the only cell does not differ from old beyond its 95% interval."),
        ([ABOVE], "the only cell is above old beyond its 95% interval."),
        ([BELOW], "the only cell is below old beyond its 95% interval."),
        ([ALIKE] * 3, "none of 3 cells differs from old beyond its 95% interval."),
        (
            [ABOVE, BELOW],
            "of 2 cells, 1 is above old and 1 below, beyond their 95% intervals; about 0.1 would be by chance.",
        ),
        (
            [ABOVE] * 3,
            "of 3 cells, 3 are above old and 0 below, beyond their 95% intervals; about 0.2 would be by chance.",
        ),
    ],
)
def test_the_finding_is_a_sentence_for_one_cell_and_for_several(
    changes: list[tuple[float, float, float]], said: str
) -> None:
    compared = {"kind": "icl", "runs": [{"name": "old"}, {"name": "new"}], "cells": list(map(cell, changes))}
    assert verdicts(compared) == [f"new: {said}"]
