"""What a running job shows: a bar on a terminal, a line for each finished cell in a log file."""

from collections import Counter
from types import TracebackType
from typing import TYPE_CHECKING, Self

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from pipelines.icl.task_data import GridPoint, PreparedTask

if TYPE_CHECKING:
    from pipelines.icl.job import IclJob


class Shown:
    """Context manager; `done` is called for every batch that was answered."""

    def __init__(self, console: Console, job: "IclJob", tasks: dict[str, PreparedTask]) -> None:
        self._console = console
        self._sizes = {name: len(task.items) for name, task in tasks.items()}
        self._asked: Counter[GridPoint] = Counter()
        columns = TextColumn("items"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn()
        self._bar = Progress(*columns, console=console, disable=not console.is_terminal)
        self._line = self._bar.add_task("items", total=sum(self._sizes[cell.task] for cell in job.cells))

    def done(self, cell: GridPoint, num_items: int) -> None:
        """So many items more of a cell have results."""
        self._asked[cell] += num_items
        self._bar.advance(self._line, num_items)
        if not self._console.is_terminal and self._asked[cell] == self._sizes[cell.task]:
            place = f"seed {cell.seed}, {cell.shots} in context, {cell.memory_shots} in memory"
            self._console.print(escape(f"{cell.task}: {place}: {self._asked[cell]:,} items"), soft_wrap=True)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()
