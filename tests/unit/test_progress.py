# SPDX-License-Identifier: Apache-2.0
"""The display on a terminal and in a log, under a fake clock."""

import io
import re

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from longmem.errors import DocumentError
from longmem.runtime.executor import Completion
from longmem.runtime.steps import Step
from longmem.stages import Stage
from longmem.types import DocumentKey, Segment
from pipelines.command.console import printable
from pipelines.job.progress import JobProgress, WorkDone


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def log_console() -> tuple[Console, io.StringIO]:
    file = io.StringIO()
    return Console(file=file, width=100), file


def terminal_console() -> tuple[Console, io.StringIO]:
    file = io.StringIO()
    return Console(file=file, width=100, height=30, force_terminal=True, legacy_windows=False, _environ={}), file


def visible(output: str) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", output)


def ended(stage: Stage, tokens: int, busy_s: float = 0.05, document: str = "a") -> Completion:
    """A task on a segment of so many tokens."""
    targets = np.zeros(tokens, dtype=np.int32)
    segment = Segment(DocumentKey("", document), 0, 0, np.zeros(tokens, dtype=np.int32), targets)
    return Completion(stage, segment, None, None, busy_s)


def test_log_first_and_last_line_are_printed() -> None:
    console, file = log_console()
    with JobProgress(console, clock=Clock()) as progress:
        progress.planned("documents", 2)
        progress.advanced()
    assert file.getvalue().splitlines() == [
        "0:00:00 · documents 0 of 2 (0%)",
        "0:00:00 · documents 1 of 2 (50%) · 0:00:00 left",
    ]


def test_log_of_a_job_that_ends_before_its_work_is_planned_is_empty() -> None:
    console, file = log_console()
    with JobProgress(console, clock=Clock()):
        pass
    assert file.getvalue() == ""


def test_log_repeats_no_line() -> None:
    console, file = log_console()
    with JobProgress(console, clock=Clock()) as progress:
        progress.planned("examples", 3, 1)
    assert file.getvalue() == "0:00:00 · examples 1 of 3 (33%)\n"


def test_log_is_limited_to_one_line_in_five_seconds() -> None:
    console, file = log_console()
    clock = Clock()
    with JobProgress(console, clock=clock) as progress:
        progress.planned("documents", 1)
        progress.admitted("a", 100_000, 800)
        for _ in range(160):
            clock.now += 0.125  # exact in binary
            progress.task_ended(ended("score", 125))
        assert 4 <= len(file.getvalue().splitlines()) <= 5
    assert file.getvalue().splitlines()[-1] == (
        "0:00:20 · documents 0 of 1 (20%) · scored 20,000 tokens · 1,000 tokens/s · 0:01:20 left"
    )


def test_rate_is_over_the_last_ten_seconds() -> None:
    console, file = log_console()
    clock = Clock()
    with JobProgress(console, clock=clock) as progress:
        progress.task_ended(ended("score", 1_000_000))
        clock.now += 60
        progress.task_ended(ended("score", 500))
    assert "50 tokens/s" in file.getvalue().splitlines()[-1]


def test_time_left_counts_documents_that_are_not_opened_yet() -> None:
    console, file = log_console()
    clock = Clock()
    with JobProgress(console, clock=clock) as progress:
        progress.planned("documents", 2)
        progress.admitted("a", 1000, 4)
        clock.now += 60
        progress.task_ended(ended("encode", 1000))
        progress.task_ended(ended("score", 500))
    assert (
        file.getvalue()
        .splitlines()[-1]
        .endswith("documents 0 of 2 (25%) · scored 500 tokens · 50 tokens/s · 0:03:00 left")
    )


def test_resumed_work_says_nothing_about_the_pace() -> None:
    """80 of 100 steps are of an earlier run; this one has done 10 in 60 s, so the last 10 take 60 s more."""
    console, file = log_console()
    clock = Clock()
    with JobProgress(console, clock=clock) as progress:
        progress.planned("steps", 100, 80)
        progress.detail("loss 3.5")
        clock.now += 60
        progress.advanced(10)
    assert file.getvalue().splitlines()[-1] == "0:01:00 · steps 90 of 100 (90%) · loss 3.5 · 0:01:00 left"


def test_total_unknown_shows_no_share() -> None:
    console, file = log_console()
    with JobProgress(console, clock=Clock()) as progress:
        progress.planned("documents", None)
        progress.admitted("a", 10, 1)
        progress.task_ended(ended("score", 5))
    assert "%" not in file.getvalue()
    assert "left" not in file.getvalue()


@given(
    st.lists(
        st.tuples(st.sampled_from("abcd"), st.integers(0, 50), st.sampled_from(["admit", "score", "end"])), max_size=60
    )
)
def test_share_never_falls(steps: list[tuple[str, int, str]]) -> None:
    work = WorkDone()
    work.plan("documents", 4, 0)
    before = 0.0
    for document, tokens, what in steps:
        if what == "admit":
            work.admit(document, tokens)
        elif what == "score":
            work.score(document, tokens)
        else:
            work.end(document)
        share = work.share
        assert share is not None
        assert before <= share <= 1
        before = share


def test_a_second_kind_of_work_has_a_pace_of_its_own() -> None:
    work = WorkDone()
    work.plan("documents", 2, 0, 5.0)
    work.done = 2
    work.plan("windows", 10, 0, 1000.0)
    assert work.seconds_left(1000.0) is None
    work.done = 2
    left = work.seconds_left(1010.0)
    assert left is not None
    assert round(left) == 40


def segments(done: int) -> Step:
    return Step("segments", "encoded", done, 10)


def questions(done: int) -> Step:
    return Step("questions", "answered", done, 20)


def test_steps_inside_a_request_are_shown_with_the_time_left() -> None:
    """10 segments of 6 s each, then 20 questions of 2 s each; the job has 40 questions."""
    console, file = log_console()
    clock = Clock()
    with JobProgress(console, clock=clock) as progress:
        progress.planned("questions", 40)
        progress.stepped("a book", segments(0))
        for done in range(1, 11):
            clock.now += 6
            progress.stepped("a book", segments(done))
        # before there is a pace of questions, one takes as long as a segment
        assert file.getvalue().splitlines()[1] == (
            "0:00:06 · questions 0 of 40 (0%) · a book: 1 of 10 segments encoded · 0:04:54 left"
        )
        for done in range(1, 11):
            clock.now += 2
            progress.stepped("a book", questions(done))
        assert file.getvalue().splitlines()[-1] == (
            "0:01:18 · questions 9 of 40 (22%) · a book: 9 of 20 questions answered · 0:01:02 left"
        )
        clock.now += 20
        progress.stepped("a book", questions(20))
        progress.request_ended("a book")
        progress.advanced(20)
    assert file.getvalue().splitlines()[-1] == "0:01:40 · questions 20 of 40 (50%) · 0:00:40 left"


def test_a_request_that_begins_anew_counts_its_work_again() -> None:
    work = WorkDone()
    work.plan("questions", 20, 0)
    for second, step in enumerate([segments(0), segments(10), questions(5), segments(2), segments(4)]):
        work.step("a book", step, 10.0 * second)
    assert work.inside == "a book: 4 of 10 segments encoded"
    # 12 segments in 20 s, 5 questions in 10 s: 6 segments and 20 questions are left
    assert work.seconds_left(40.0) == 6 * 20 / 12 + 20 * 10 / 5


def test_requests_that_run_side_by_side_share_the_time_left() -> None:
    work = WorkDone()
    work.plan("questions", 40, 0)
    for second in range(3):
        for request in "ab":
            work.step(request, questions(second), 10.0 * second)
    assert work.seconds_left(20.0) == 36 * 10 / 2
    assert work.share == 0.1


def test_failures_queues_and_bytes_are_shown() -> None:
    console, file = log_console()
    with JobProgress(console, clock=Clock()) as progress:
        progress.planned("documents", 12)
        progress.document_ended("a", None, kept=False)
        progress.document_ended("b", DocumentError("it is empty"), kept=False)
        progress.levels({"encode": 3, "put": 0, "score": 2}, 25_000_000, 0)
    lines = file.getvalue().splitlines()
    assert "b failed: it is empty" in lines
    assert lines[-1].startswith(
        "0:00:00 · documents 2 of 12 (17%), 1 failed · queued: encode 3, score 2 · 25 MB in flight"
    )


def test_terminal_shows_every_stage() -> None:
    console, file = terminal_console()
    clock = Clock()
    with JobProgress(console, clock=clock) as progress:
        progress.planned("documents", 1)
        progress.admitted("a", 2000, 4)
        clock.now += 10
        progress.task_ended(ended("encode", 4000, 3.0))
        progress.task_ended(ended("put", 3000, 0.5))
        progress.task_ended(ended("score", 1000, 61.0))
        progress.levels({"encode": 1, "put": 0, "score": 2}, 8_000_000, 0)
    shown = visible(file.getvalue())
    assert re.search(r"encode +400 +4,000 +0:00:03 +1", shown)
    assert re.search(r"put +300 +3,000 +0:00:00 +0", shown)
    assert re.search(r"score +100 +1,000 +0:01:01 +2", shown)
    assert "documents 0 of 1 (50%)" in shown
    assert "0:00:10 left" in shown
    assert "8 MB in flight" in shown


def test_terminal_is_refreshed_at_most_four_times_a_second() -> None:
    console, file = terminal_console()
    clock = Clock()
    with JobProgress(console, clock=clock) as progress:
        before = len(file.getvalue())
        for _ in range(100):
            progress.task_ended(ended("score", 1))
        assert len(file.getvalue()) == before
        clock.now += 0.25
        progress.task_ended(ended("score", 1))
        assert len(file.getvalue()) > before


def test_foreign_names_are_shown_not_obeyed() -> None:
    for console, file in (terminal_console(), log_console()):
        with JobProgress(console, clock=Clock()) as progress:
            progress.task_ended(ended("encode", 1))
            progress.document_ended("[red]x[/nothing]\x1b]0;title\x07\nsecond", None, kept=False)
            progress.note("failed: [bold]y[/] \x1b[2J")
        output = file.getvalue()
        assert "failed: [bold]y[/] \ufffd[2J" in output
        assert "\x1b]0;" not in output
        assert "\x1b[2J" not in output
        if console.is_terminal:
            assert "last: [red]x[/nothing]\ufffd]0;title\ufffd\ufffdsecond" in visible(output)


def test_long_name_stays_on_one_line() -> None:
    console, file = terminal_console()
    with JobProgress(console, clock=Clock()) as progress:
        progress.task_ended(ended("encode", 1))
        progress.document_ended("n" * 500, None, kept=False)
    assert max(len(line) for line in visible(file.getvalue()).splitlines()) <= 100


def test_printable_keeps_other_scripts() -> None:
    assert printable("Ωμέγα 東京 naïve") == "Ωμέγα 東京 naïve"
