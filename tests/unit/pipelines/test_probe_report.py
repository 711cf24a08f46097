# SPDX-License-Identifier: Apache-2.0
"""Report of synthetic tests: its finding, the order of its questions, captions."""

from typing import Any

import pytest

from longmem.synthetic.trial import Trial
from pipelines.probe.console import passkey_table
from pipelines.probe.job import shares
from pipelines.probe.report import charts, finding, worst_first


def pass_key(memory_tokens: int, depth: float, share: float) -> dict[str, Any]:
    return {"subject": "passkey", "memory_tokens": memory_tokens, "depth": depth, "greedy": {"value": share}}


@pytest.mark.parametrize(
    ("shares", "words"),
    [
        ((1.0, 0.4), "Share of greedy pass keys: lowest 40%, with 8,192 tokens of memory at depth 50%."),
        ((1.0, 1.0), "Share of greedy pass keys: 100% at every length and depth."),
    ],
)
def test_the_worst_place_of_pass_keys_is_named_if_there_is_one(shares: tuple[float, float], words: str) -> None:
    (chart,) = charts([pass_key(4096, 0.0, shares[0]), pass_key(8192, 0.5, shares[1])])
    assert chart.description == words


@pytest.mark.parametrize(
    ("cells", "where"),
    [(((4096, 0.0), (4096, 1.0)), "depth"), (((4096, 0.5), (8192, 0.5)), "length")],
)
def test_what_was_not_varied_is_not_named(cells: tuple[tuple[int, float], ...], where: str) -> None:
    (chart,) = charts([pass_key(*cell, 0.4) for cell in cells])
    assert chart.description == f"Share of greedy pass keys: 40% at every {where}."


def test_a_subject_of_one_condition_has_no_chart_that_repeats_it() -> None:
    assert charts([pass_key(4096, 0.5, 1.0), {"subject": "lookup"}]) == []


def test_depths_that_round_to_one_per_cent_are_told_apart() -> None:
    rows = [pass_key(4096, depth, share) for depth, share in ((0.25, 1.0), (0.251, 0.4), (0.254, 0.6))]
    (chart,) = charts(rows)
    assert chart.description.endswith("lowest 40%, with 4,096 tokens of memory at depth 25.1%.")
    for drawing in (chart.wide, chart.narrow):
        assert [drawing.count(f">{name}</text>") for name in ("25.0%", "25.1%", "25.4%", "25%")] == [1, 1, 1, 0]
    measures = {name: {"value": 0.5} for name in ("chosen", "read")}
    table = passkey_table([{**row, **measures, "chance": 0.1} for row in rows], "pass key")
    assert [column.header for column in table.columns][1:4] == ["25.0%", "25.1%", "25.4%"]


def trial(chosen: bool, greedy: bool, read: bool, without: bool = False) -> Trial:
    return Trial("lookup", 100, 20, 0.5, 0, 10, greedy, chosen, read, 1.0, False, without, 9.0)


def test_the_finding_counts_right_answers_with_their_interval() -> None:
    some = [trial(True, True, True, without=True)] * 2 + [trial(False, False, True)] * 2
    assert finding(shares(some)) == (
        "2 of 4 answers are chosen right with memory (95% interval 15% to 85%), 2 without"
    ), "Wilson's interval of 2 of 4 is 0.150 to 0.850"


@pytest.mark.parametrize(
    ("right", "without", "count", "which", "interval", "also"),
    [
        (1, 0, 1, "The only answer is chosen right", "20.7% to 100%", "wrong"),
        (0, 1, 1, "The only answer is chosen wrong", "0% to 79.3%", "right"),
        (2, 2, 2, "Both answers are chosen right", "34.2% to 100%", "all"),
        (3, 0, 3, "All 3 answers are chosen right", "43.9% to 100%", "none"),
        (0, 1, 3, "None of 3 answers is chosen right", "0% to 56.1%", "1"),
        (1, 0, 3, "1 of 3 answers is chosen right", "6.1% to 79.2%", "none"),
    ],
)
def test_the_finding_is_a_sentence_for_one_all_some_and_no_right_answer(
    right: int, without: int, count: int, which: str, interval: str, also: str
) -> None:
    trials = [trial(number < right, True, True, without=number < without) for number in range(count)]
    assert finding(shares(trials)) == f"{which} with memory (95% interval {interval}), {also} without"


def test_wrong_answers_come_first_then_those_not_greedy_then_those_whose_place_was_not_read() -> None:
    wrong, ungreedy, unread = trial(False, True, True), trial(True, False, True), trial(True, True, False)
    right = trial(True, True, True)
    assert worst_first([right, unread, ungreedy, wrong, right]) == [wrong, ungreedy, unread, right, right]
