"""What a running job shows: a live display on a terminal, a line now and then in a log file.

Everything happens in the caller's thread when it reports something, so the display needs no lock and can never
disagree with what was counted. Names of documents are foreign text: they are shown without Rich markup and without
control characters, which a terminal would obey.
"""

import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Self

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from longmem.errors import LongMemError
from longmem.stages import STAGES, Stage
from pipelines.command.console import printable
from pipelines.job.observer import JobObserver
from pipelines.job.throughput import TokenRate

if TYPE_CHECKING:
    from longmem.runtime.executor import Completion, ExecutorEvent

REFRESH_S = 0.25
LINE_S = 5.0


class Progress(JobObserver):
    """Context manager that shows how far a job is.

    `console` should write to stderr, so that results on stdout can be piped. `total_tokens` is None when documents
    become known only as they are admitted (`add_total`).
    """

    def __init__(
        self, console: Console, total_tokens: int | None, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._console = console
        self._clock = clock
        self._total_tokens = total_tokens
        self._total_documents: int | None = None
        self._num_admitted = 0
        self._start = self._last_shown = clock()
        self._tokens: dict[Stage, int] = dict.fromkeys(STAGES, 0)
        self._busy_s: dict[Stage, float] = dict.fromkeys(STAGES, 0.0)
        self._rates = {stage: TokenRate(clock) for stage in STAGES}
        self._depths: dict[Stage, int] = dict.fromkeys(STAGES, 0)
        self._in_flight_bytes = 0
        self._num_done = 0
        self._num_failed = 0
        self._last_document = ""
        self._live = (
            Live(console=console, auto_refresh=False, get_renderable=self._display) if console.is_terminal else None
        )

    def __enter__(self) -> Self:
        if self._live:
            self._live.start(refresh=True)
        else:
            self._print_line()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._live.refresh()
            self._live.stop()
        else:
            self._print_line()

    def add_total(self, tokens: int) -> None:
        """A document of `tokens` still to be scored was admitted."""
        self._total_tokens = (self._total_tokens or 0) + tokens
        self._num_admitted += 1

    def document_total(self, num_documents: int) -> None:
        self._total_documents = num_documents

    def completed(self, stage: Stage, tokens: int, busy_s: float) -> None:
        """A worker finished one segment of `tokens` in `busy_s` seconds."""
        self._tokens[stage] += tokens
        self._busy_s[stage] += busy_s
        self._rates[stage].add(tokens)
        self._show()

    def document_done(self, name: str, failed: bool) -> None:
        """The last segment of a document was scored, or the document was given up."""
        self._num_done += 1
        self._num_failed += failed
        self._last_document = printable(name)
        self._show()

    def queues(self, depths: Mapping[Stage, int], in_flight_bytes: int) -> None:
        """Segments running or ready per stage, and bytes of encoded segments not scored yet."""
        self._depths.update(depths)
        self._in_flight_bytes = in_flight_bytes
        self._show()

    def admitted(self, document: str, num_tokens: int, num_segments: int) -> None:  # noqa: ARG002
        self.add_total(num_tokens)

    def task_ended(self, completion: "Completion") -> None:
        if completion.error is None:
            self.completed(completion.stage, len(completion.segment.targets), completion.busy_s)

    def document_ended(self, document: str, error: LongMemError | None, kept: bool) -> None:  # noqa: ARG002
        self.document_done(document, failed=error is not None)
        if error is not None:
            self.note(f"{document} failed: {error}")

    def levels(self, queue_depths: Mapping[Stage, int], in_flight_bytes: int, lag_segments: int) -> None:  # noqa: ARG002
        self.queues(queue_depths, in_flight_bytes)

    def worker_event(self, event: "ExecutorEvent") -> None:
        self.note(event.message)

    def note(self, text: str) -> None:
        """Print a line that stays, above the display."""
        self._console.print(Text(printable(text)), soft_wrap=True)

    def _show(self) -> None:
        now = self._clock()
        if now - self._last_shown < (REFRESH_S if self._live else LINE_S):
            return
        self._last_shown = now
        if self._live:
            self._live.refresh()
        else:
            self._print_line()

    def _print_line(self) -> None:
        self._console.print(Text(self._line()), soft_wrap=True)

    def _line(self) -> str:
        busy = ", ".join(f"{stage} {self._depths[stage]}" for stage in STAGES if self._depths[stage])
        parts = [
            duration(self._clock() - self._start),
            f"scored {self._of_total()} tokens",
            f"{self._rates['score'].per_second():,.0f} tokens/s",
            self._documents(),
            f"queued: {busy}" if busy else "",
            f"{self._in_flight_bytes / 1e6:,.0f} MB in flight" if self._in_flight_bytes else "",
            self._remaining(),
        ]
        return " · ".join(part for part in parts if part)

    def _display(self) -> Group:
        head = Table.grid(padding=(0, 2))
        head.add_row(
            ProgressBar(self._total_tokens or 1, self._tokens["score"], width=32),
            Text(f"{self._of_total()} tokens"),
            Text(duration(self._clock() - self._start), style="dim"),
            Text(self._remaining(), style="bold"),
        )
        stages = Table(box=None, padding=(0, 2), header_style="dim")
        stages.add_column("stage")
        for title in ("tokens/s", "tokens", "busy", "queued"):
            stages.add_column(title, justify="right")
        for stage in STAGES:
            stages.add_row(
                stage,
                f"{self._rates[stage].per_second():,.0f}",
                f"{self._tokens[stage]:,}",
                duration(self._busy_s[stage]),
                f"{self._depths[stage]:,}",
            )
        foot = Text(f"{self._documents()} · {self._in_flight_bytes / 1e6:,.0f} MB in flight", overflow="ellipsis")
        if self._last_document:
            foot.append(f" · last: {self._last_document}", style="dim")
        foot.no_wrap = True
        return Group(head, stages, foot)

    def _documents(self) -> str:
        done = (
            f"{self._num_done:,}" if self._total_documents is None else f"{self._num_done:,}/{self._total_documents:,}"
        )
        return f"documents {done}" + (f" ({self._num_failed:,} failed)" if self._num_failed else "")

    def _of_total(self) -> str:
        scored = self._tokens["score"]
        if not self._total_tokens:
            return f"{scored:,}"
        return f"{scored:,} of {self._total_tokens:,} ({scored / self._total_tokens:.0%})"

    def _remaining(self) -> str:
        """Time left for the tokens known so far, at the average pace of the job, which is steadier than the window."""
        elapsed = self._clock() - self._start
        if not self._tokens["score"] or not self._total_tokens or elapsed <= 0:
            return ""
        left = max(0, self._total_tokens - self._tokens["score"])
        # documents that nobody has opened yet have no length to count
        more_to_come = 0 < self._num_admitted < (self._total_documents or 0)
        time_left = duration(left * elapsed / self._tokens["score"])
        return f"{'at least ' if more_to_come else ''}{time_left} left" if left else ""


def duration(seconds: float) -> str:
    """As h:mm:ss."""
    minutes, whole = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{whole:02}"
