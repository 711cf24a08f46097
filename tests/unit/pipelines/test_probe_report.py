# SPDX-License-Identifier: Apache-2.0
"""Captions of the report of synthetic tests."""

from typing import Any

import pytest

from pipelines.probe.report import charts


def pass_key(memory_tokens: int, depth: float, share: float) -> dict[str, Any]:
    return {"subject": "passkey", "memory_tokens": memory_tokens, "depth": depth, "greedy": {"value": share}}


@pytest.mark.parametrize(
    ("shares", "words"),
    [
        ((1.0, 0.4), "written greedily: lowest 40%, with 8,192 tokens of memory at depth 50%."),
        ((1.0, 1.0), "written greedily: 100% at every length and depth."),
    ],
)
def test_the_worst_place_of_pass_keys_is_named_if_there_is_one(shares: tuple[float, float], words: str) -> None:
    (chart,) = charts([pass_key(4096, 0.0, shares[0]), pass_key(8192, 0.5, shares[1])])
    assert chart.description.endswith(words)
