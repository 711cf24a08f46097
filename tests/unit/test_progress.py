"""The display on a terminal and in a log, under a fake clock."""

import io
import re

from rich.console import Console

from pipelines.job.progress import Progress, printable


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


def test_log_gets_first_and_last_line() -> None:
    console, file = log_console()
    with Progress(console, 1000, clock=Clock()):
        pass
    assert file.getvalue().splitlines() == ["0:00:00 · scored 0 of 1,000 (0%) tokens · 0 tokens/s · documents 0"] * 2


def test_log_gets_at_most_one_line_in_five_seconds() -> None:
    console, file = log_console()
    clock = Clock()
    with Progress(console, 100_000, clock=clock) as progress:
        for _ in range(160):
            clock.now += 0.125  # exact in binary
            progress.completed("score", 125, 0.05)
        assert 4 <= len(file.getvalue().splitlines()) <= 5
    assert (
        file.getvalue().splitlines()[-1].startswith("0:00:20 · scored 20,000 of 100,000 (20%) tokens · 1,000 tokens/s")
    )


def test_rate_is_over_the_last_ten_seconds() -> None:
    console, file = log_console()
    clock = Clock()
    with Progress(console, None, clock=clock) as progress:
        progress.completed("score", 1_000_000, 1.0)
        clock.now += 60
        progress.completed("score", 500, 1.0)
    assert "50 tokens/s" in file.getvalue().splitlines()[-1]


def test_time_left_follows_scored_tokens() -> None:
    console, file = log_console()
    clock = Clock()
    with Progress(console, None, clock=clock) as progress:
        progress.add_total(600)
        progress.add_total(400)
        clock.now += 60
        progress.completed("encode", 1000, 1.0)
        progress.completed("score", 250, 1.0)
    assert file.getvalue().splitlines()[-1].endswith("0:03:00 left")


def test_time_left_is_a_lower_bound_while_documents_are_unopened() -> None:
    console, file = log_console()
    clock = Clock()
    with Progress(console, None, clock=clock) as progress:
        progress.document_total(2)
        progress.add_total(1000)
        clock.now += 60
        progress.completed("score", 500, 1.0)
    assert file.getvalue().splitlines()[-1].endswith("at least 0:01:00 left")


def test_documents_queues_and_bytes() -> None:
    console, file = log_console()
    with Progress(console, 10, clock=Clock()) as progress:
        progress.document_total(12)
        progress.document_done("a", failed=False)
        progress.document_done("b", failed=True)
        progress.queues({"encode": 3, "put": 0, "score": 2}, in_flight_bytes=25_000_000)
    last = file.getvalue().splitlines()[-1]
    assert "documents 2/12 (1 failed) · queued: encode 3, score 2 · 25 MB in flight" in last


def test_terminal_shows_every_stage() -> None:
    console, file = terminal_console()
    clock = Clock()
    with Progress(console, 2000, clock=clock) as progress:
        clock.now += 10
        progress.completed("encode", 4000, 3.0)
        progress.completed("put", 3000, 0.5)
        progress.completed("score", 1000, 61.0)
        progress.queues({"encode": 1, "put": 0, "score": 2}, in_flight_bytes=8_000_000)
    shown = visible(file.getvalue())
    assert re.search(r"encode +400 +4,000 +0:00:03 +1", shown)
    assert re.search(r"put +300 +3,000 +0:00:00 +0", shown)
    assert re.search(r"score +100 +1,000 +0:01:01 +2", shown)
    assert "1,000 of 2,000 (50%) tokens" in shown
    assert "0:00:10 left" in shown
    assert "8 MB in flight" in shown


def test_terminal_is_refreshed_at_most_four_times_a_second() -> None:
    console, file = terminal_console()
    clock = Clock()
    with Progress(console, 2000, clock=clock) as progress:
        before = len(file.getvalue())
        for _ in range(100):
            progress.completed("score", 1, 0.1)
        assert len(file.getvalue()) == before
        clock.now += 0.25
        progress.completed("score", 1, 0.1)
        assert len(file.getvalue()) > before


def test_foreign_names_are_shown_not_obeyed() -> None:
    for console, file in (terminal_console(), log_console()):
        with Progress(console, 1, clock=Clock()) as progress:
            progress.document_done("[red]x[/nothing]\x1b]0;title\x07\nsecond", failed=True)
            progress.note("failed: [bold]y[/] \x1b[2J")
        output = file.getvalue()
        assert "failed: [bold]y[/] \ufffd[2J" in output
        assert "\x1b]0;" not in output
        assert "\x1b[2J" not in output
        if console.is_terminal:
            assert "last: [red]x[/nothing]\ufffd]0;title\ufffd\ufffdsecond" in visible(output)


def test_long_name_stays_on_one_line() -> None:
    console, file = terminal_console()
    with Progress(console, 1, clock=Clock()) as progress:
        progress.document_done("n" * 500, failed=False)
    assert max(len(line) for line in visible(file.getvalue()).splitlines()) <= 100


def test_printable_keeps_other_scripts() -> None:
    assert printable("Ωμέγα 東京 naïve") == "Ωμέγα 東京 naïve"
