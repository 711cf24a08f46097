# SPDX-License-Identifier: Apache-2.0
"""Progress display of a running job: a live bar on a terminal, periodic lines in a log file.

The display is updated in the caller's thread with every event, so it needs no lock and never disagrees with the
counters. Names of documents are foreign text: Rich markup and control characters are removed.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Self

from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

from longmem.errors import LongMemError
from longmem.runtime.steps import Step
from longmem.stages import STAGES, Stage
from longmem.wording import counted
from pipelines.command.console import printable
from pipelines.job.format import h_mm_ss, megabytes
from pipelines.job.observer import JobObserver
from pipelines.job.throughput import TokenRate

if TYPE_CHECKING:
    from longmem.runtime.executor import Completion, ExecutorEvent

REFRESH_S = 0.25
LINE_S = 5.0


class WorkDone:
    """Finished share of a job, from whole units of work and, inside open documents, from their tokens.

    The share of one unit never falls, although documents are counted only when they are read.
    """

    def __init__(self) -> None:
        self.unit = "documents"
        self.total: int | None = None
        """Units of the whole job; None while unknown."""
        self.done = 0
        self._open: dict[str, list[int]] = {}
        """Tokens scored and tokens to be scored of every open document."""
        self._share = self._first_share = self._began_s = 0.0
        self._requests: dict[str, dict[str, Step]] = {}
        """Newest step of each unit, of every running request; the one that moved last is the last."""
        self._stepped_s: dict[str, float] = {}
        """Time of the newest step of every running request."""
        self._paces: dict[str, tuple[int, float]] = {}
        """Steps of each unit whose time was measured, and the seconds that they took."""

    def plan(self, unit: str, total: int | None, done: int, elapsed_s: float = 0.0) -> None:
        """Set the unit, the total and the units that earlier runs have done, which do not count for this run's pace.

        Another unit has a pace of its own, from `elapsed_s` of the job.
        """
        if unit != self.unit:
            self._share, self._began_s = 0.0, elapsed_s
            self._paces.clear()
        self.unit, self.total, self.done = unit, total, done
        self._first_share = done / total if total else 0.0

    def admit(self, document: str, num_tokens: int) -> None:
        self._open[document] = [0, num_tokens]

    def score(self, document: str, num_tokens: int) -> None:
        if document in self._open:
            self._open[document][0] += num_tokens

    def end(self, document: str) -> None:
        self._open.pop(document, None)
        self.done += 1

    def step(self, request: str, step: Step, elapsed_s: float) -> None:
        """Count a step inside a request, and measure its pace since the step before it."""
        steps = self._requests.pop(request, {})
        done = steps[step.unit].done if step.unit in steps else 0
        if step.done < done:
            # the request was lost with its worker, and another one has begun it anew
            steps = {}
        elif step.done > done and request in self._stepped_s:
            count, seconds = self._paces.get(step.unit, (0, 0.0))
            self._paces[step.unit] = count + step.done - done, seconds + elapsed_s - self._stepped_s[request]
        self._stepped_s[request] = elapsed_s
        self._requests[request] = {**steps, step.unit: step}

    def end_request(self, request: str) -> None:
        self._requests.pop(request, None)
        self._stepped_s.pop(request, None)

    @property
    def inside(self) -> str:
        """Newest step of the requests that run; empty for none."""
        if not self._requests:
            return ""
        request, steps = next(reversed(self._requests.items()))
        return f"{request}: {next(reversed(steps.values()))}"

    @property
    def units_inside(self) -> int:
        """Units of the job that running requests have done."""
        return sum(steps[self.unit].done for steps in self._requests.values() if self.unit in steps)

    @property
    def tokens_left(self) -> int:
        """Tokens of open documents that are not scored yet."""
        return sum(total - scored for scored, total in self._open.values())

    @property
    def share(self) -> float | None:
        """Share of the job between 0 and 1; None while its total is unknown."""
        if not self.total:
            return None
        inside = sum(scored / total for scored, total in self._open.values() if total)
        self._share = max(self._share, min(1.0, (self.done + self.units_inside + inside) / self.total))
        return self._share

    def seconds_left(self, elapsed_s: float) -> float | None:
        """Return the time left at the average pace in this unit; None before there is a pace.

        With steps inside requests, each unit of theirs has a pace of its own. One without a pace yet, such as questions
        while segments are encoded, takes as long as the slowest known.
        """
        if self._paces and self.total:
            left = Counter({self.unit: self.total - self.done - self.units_inside})
            for step in (step for steps in self._requests.values() for step in steps.values()):
                if step.unit != self.unit:
                    left[step.unit] += step.total - step.done
            paces = {unit: seconds / count for unit, (count, seconds) in self._paces.items()}
            slowest = max(paces.values())
            return sum(count * paces.get(unit, slowest) for unit, count in left.items()) / max(1, len(self._requests))
        share = self.share
        if share is None or share <= self._first_share:
            return None
        return (elapsed_s - self._began_s) * (1 - share) / (share - self._first_share)


class JobProgress(JobObserver):
    """Context manager that displays progress. `console` should write to stderr, so that results can be piped."""

    def __init__(self, console: Console, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = console
        self._clock = clock
        self._work = WorkDone()
        self._start = self._last_update = clock()
        self._tokens: dict[Stage, int] = dict.fromkeys(STAGES, 0)
        self._busy_s: dict[Stage, float] = dict.fromkeys(STAGES, 0.0)
        self._rates = {stage: TokenRate(clock) for stage in STAGES}
        self._depths: dict[Stage, int] = dict.fromkeys(STAGES, 0)
        self._in_flight_bytes = 0
        self._num_failed = 0
        self._last_document = self._detail = ""
        self._last_line = ""
        """Last line in a log; none before the work is planned."""
        self._bar = _Bar(self, console) if console.is_terminal else None

    def __enter__(self) -> Self:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar:
            self._bar.refresh()
            self._bar.stop()
        elif self._last_line:
            self._print_line()

    def planned(self, unit: str, total: int | None, done: int = 0) -> None:
        self._work.plan(unit, total, done, self._clock() - self._start)
        if not self._bar:
            self._print_line()

    def advanced(self, count: int = 1) -> None:
        self._work.done += count
        self._show()

    def detail(self, text: str) -> None:
        self._detail = printable(text)

    def admitted(self, document: str, num_tokens: int, num_segments: int) -> None:  # noqa: ARG002
        self._work.admit(document, num_tokens)

    def task_ended(self, completion: "Completion") -> None:
        if completion.error is not None:
            return
        stage, segment = completion.stage, completion.segment
        # a segment is stored with all of its tokens; what is scored are its targets
        tokens = len(segment.targets) if stage == "score" else segment.num_tokens
        self._tokens[stage] += tokens
        self._busy_s[stage] += completion.busy_s
        self._rates[stage].add(tokens)
        if stage == "score":
            self._work.score(segment.key.document, tokens)
        self._show()

    def document_ended(self, document: str, error: LongMemError | None, kept: bool) -> None:  # noqa: ARG002
        self._work.end(document)
        self._last_document = printable(document)
        if error is not None:
            self.scored_document_failed(document, error)
        self._show()

    def scored_document_failed(self, document: str, error: LongMemError) -> None:
        self._num_failed += 1
        self.note(f"{document} failed: {error}")

    def stepped(self, request: str, step: Step) -> None:
        self._work.step(request, step, self._clock() - self._start)
        self._show()

    def request_ended(self, request: str) -> None:
        self._work.end_request(request)

    def levels(self, queue_depths: Mapping[Stage, int], in_flight_bytes: int, lag_segments: int) -> None:  # noqa: ARG002
        self._depths.update(queue_depths)
        self._in_flight_bytes = in_flight_bytes
        self._show()

    def turned(self) -> None:
        self._show()

    def worker_event(self, event: "ExecutorEvent") -> None:
        self.note(event.message)

    def note(self, text: str) -> None:
        """Print a permanent line above the display."""
        self._console.print(Text(printable(text)), soft_wrap=True)

    def _show(self) -> None:
        now = self._clock()
        if now - self._last_update < (REFRESH_S if self._bar else LINE_S):
            return
        self._last_update = now
        if self._bar:
            self._bar.refresh()
        else:
            self._print_line()

    def _print_line(self) -> None:
        if (line := self._line()) != self._last_line:
            self._last_line = line
            self._console.print(Text(line), soft_wrap=True)

    def _line(self) -> str:
        busy = ", ".join(f"{stage} {self._depths[stage]}" for stage in STAGES if self._depths[stage])
        parts = [
            self.elapsed,
            self.units,
            self._newest,
            self._scored(),
            f"queued: {busy}" if busy else "",
            f"{megabytes(self._in_flight_bytes)} in flight" if self._in_flight_bytes else "",
            self.left,
        ]
        return " · ".join(part for part in parts if part)

    @property
    def _newest(self) -> str:
        return self._detail or printable(self._work.inside)

    @property
    def share(self) -> float:
        """Finished share of the job; 0 while unknown."""
        return self._work.share or 0.0

    @property
    def elapsed(self) -> str:
        return h_mm_ss(self._clock() - self._start)

    @property
    def units(self) -> str:
        """Finished units, total and share of the job as text."""
        work = self._work
        total = f" of {work.total:,}" if work.total is not None else ""
        share = f" ({work.share:.0%})" if work.share is not None else ""
        failed = f", {self._num_failed:,} failed" if self._num_failed else ""
        return f"{work.unit} {work.done + work.units_inside:,}{total}{share}{failed}"

    @property
    def left(self) -> str:
        """Time left at the average pace of the job, which is steadier than the pace of the last seconds."""
        seconds = self._work.seconds_left(self._clock() - self._start)
        return f"{h_mm_ss(round(seconds))} left" if seconds is not None and self.share < 1 else ""

    def _scored(self) -> str:
        if not any(self._tokens.values()):
            return ""
        stage: Stage = "score" if self._tokens["score"] or not self._tokens["put"] else "put"
        verb = "scored" if stage == "score" else "stored"
        return f"{verb} {counted(self._tokens[stage], 'token')} · {self._rates[stage].per_second():,.0f} tokens/s"

    def below_bar(self) -> Iterable[RenderableType]:
        """Yield the renderables below the bar: the newest detail or step, and for a job with segments a table of
        stages."""
        if self._newest:
            yield Text(self._newest, overflow="ellipsis", no_wrap=True, style="dim")
        if not any(self._tokens.values()):
            return
        stages = Table(box=None, padding=(0, 2), header_style="dim")
        stages.add_column("stage")
        for title in ("tokens/s", "tokens", "busy", "queued"):
            stages.add_column(title, justify="right")
        for stage in STAGES:
            stages.add_row(
                stage,
                f"{self._rates[stage].per_second():,.0f}",
                f"{self._tokens[stage]:,}",
                h_mm_ss(self._busy_s[stage]),
                f"{self._depths[stage]:,}",
            )
        yield stages
        foot = Text(f"{megabytes(self._in_flight_bytes)} in flight", overflow="ellipsis", no_wrap=True)
        if self._last_document:
            foot.append(f" · last: {self._last_document}", style="dim")
        yield foot


class _Bar(Progress):
    """Rich progress bar with the texts of a JobProgress."""

    def __init__(self, job: JobProgress, console: Console) -> None:
        self._job = job
        columns = BarColumn(32), TextColumn("{task.fields[units]}"), TextColumn("{task.fields[time]}")
        super().__init__(*columns, console=console, auto_refresh=False)
        self.add_task("", total=1.0, units="", time="")

    def get_renderables(self) -> Iterable[RenderableType]:
        # the constructor calls this before a task exists
        for task in self.tasks:
            task.completed = self._job.share
            times = [self._job.elapsed, self._job.left]
            task.fields.update(units=self._job.units, time=" · ".join(part for part in times if part))
        yield from super().get_renderables()
        yield from self._job.below_bar()
