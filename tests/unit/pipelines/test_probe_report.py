# SPDX-License-Identifier: Apache-2.0
"""Report of synthetic tests: its finding, the order of its questions, captions."""

from typing import Any

import pytest

from longmem.synthetic.trial import Trial
from pipelines.probe.job import shares
from pipelines.probe.report import charts, finding, worst_first


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


def trial(chosen: bool, greedy: bool, read: bool, without: bool = False) -> Trial:
    return Trial("lookup", 100, 20, 0.5, 0, 10, greedy, chosen, read, 1.0, False, without, 9.0)


def test_the_finding_counts_right_answers_with_their_interval() -> None:
    some = [trial(True, True, True, without=True)] * 2 + [trial(False, False, True)] * 2
    assert finding(shares(some)) == ("2 of 4 answers chosen right with memory (95% interval 15% to 85%), 2 without"), (
        "Wilson's interval of 2 of 4 is 0.150 to 0.850"
    )
    assert finding(shares(some[:2])).startswith("All 2 answers chosen right with memory (95% interval 34.2% to 100%)")


def test_wrong_answers_come_first_then_those_not_written_then_those_whose_place_was_not_read() -> None:
    wrong, unwritten, unread = trial(False, True, True), trial(True, False, True), trial(True, True, False)
    right = trial(True, True, True)
    assert worst_first([right, unread, unwritten, wrong, right]) == [wrong, unwritten, unread, right, right]
