# SPDX-License-Identifier: Apache-2.0
"""Job of many-shot in-context learning, from its options to its output folder."""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from actors.config import ClusterShape
from longmem.errors import ConfigError, OutputError
from longmem.model.source import ModelSource
from longmem.runtime.executor import AbstractExecutor
from longmem.runtime.scheduler import Limits, SegmentScheduler
from longmem.store.config import IN_MEMORY, StoreSettings
from longmem.text.demonstrations import check_fits
from longmem.types import SegmentInfo
from pipelines.icl.records import IclJournal
from pipelines.icl.report import write_report
from pipelines.icl.results import TaskResults, grid_table, item_rows, item_table
from pipelines.icl.run import IclRun
from pipelines.icl.task import IclTask
from pipelines.icl.task_data import GridPoint, PreparedTask
from pipelines.job.ask import RequestJob
from pipelines.job.executors import MEMORY_FOLDER, default_in_flight
from pipelines.job.journal import JOURNAL
from pipelines.job.runner import run_to_end
from pipelines.job.service import ServiceChoice, find_parts
from pipelines.job.spec import JobContext
from pipelines.job.summary import about


@dataclass(frozen=True, kw_only=True)
class IclJob:
    """Validated options of the job. Raises ConfigError."""

    tasks: tuple[IclTask, ...]
    out: Path
    model: ModelSource
    cluster: ClusterShape | None
    """Ray cluster and its workers; None runs everything in this process."""
    threads: int
    shots: tuple[int, ...]
    memory_shots: tuple[int, ...]
    seeds: int
    limit_items: int | None = None
    batch_items: int = 32
    store: str | None = None
    """Store that keeps demonstrations for later jobs; None for a folder inside `out`, removed after the job."""
    service: ServiceChoice | None = None
    """Running service whose model, store and pools replace those given here."""
    resume: bool = False
    command: str = ""

    def __post_init__(self) -> None:
        for name in ("shots", "memory_shots"):
            numbers = getattr(self, name)
            option = f"--{name.replace('_', '-')}"
            if not numbers or min(numbers) < 0 or len(set(numbers)) < len(numbers):
                raise ConfigError(f"{option} needs different numbers of at least 0, got {','.join(map(str, numbers))}")
        for name in ("seeds", "limit_items", "batch_items"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ConfigError(f"--{name.replace('_', '-')} must be at least 1, got {getattr(self, name)}")
        names = [task.name for task in self.tasks]
        if not names or len(set(names)) < len(names):
            raise ConfigError(f"expected tasks with different names, got {', '.join(names) or 'none'}")
        if self.cluster is not None and self.store == IN_MEMORY:
            raise ConfigError(f"--store {IN_MEMORY} exists in one process only: use --address none, or a store on disk")

    @property
    def store_uri(self) -> str:
        """URI of the store; local paths are absolute, because workers have other working directories."""
        if self.store is None:
            return str(self.out.absolute() / MEMORY_FOLDER)
        return self.store if "://" in self.store else str(Path(self.store).absolute())

    @property
    def grid_points(self) -> list[GridPoint]:
        """Points of the grid; points that read the same memory are adjacent."""
        return [
            GridPoint(task.name, seed, shots, memory_shots)
            for task in self.tasks
            for seed in range(self.seeds)
            for memory_shots in sorted(self.memory_shots)
            for shots in sorted(self.shots)
        ]


def run_icl(job: IclJob, console: Console) -> dict[str, Any]:
    """Run (or resume) a job and return its summary; see `pipelines.job.runner.run`."""
    return run_to_end(Icl(*prepare(on_service(job))), console)


def on_service(job: IclJob) -> IclJob:
    """Return the job with model, store and pools of its service, if any. Raises ClusterError if it does not exist."""
    if job.service is None:
        return job
    parts = find_parts(job.service)
    return replace(job, model=parts.model, store=parts.store.uri, cluster=parts.cluster, threads=parts.cluster.threads)


def prepare(job: IclJob) -> tuple[IclJob, dict[str, PreparedTask]]:
    """Read all data and size the memory before a model is loaded.

    Unless the user gives --memory-tokens or a service (whose model is fixed), `memory_tokens` becomes as large as the
    demonstrations need. Raises ConfigError and DocumentError for unusable data.
    """
    config = job.model.config()
    tokenizer = job.model.open_tokenizer()
    tasks = {
        task.name: PreparedTask(task, tokenizer, config.segment_tokens, job.limit_items, max(job.shots))
        for task in job.tasks
    }
    largest = max(job.memory_shots)
    needed = config.memory_tokens
    for task in tasks.values():
        task.check(largest)
        for seed in range(job.seeds):
            memory = task.memory(seed, largest)
            if memory is None:
                continue
            if "memory_tokens" in job.model.settings or job.service is not None:
                what = f"task {task.task.name}, seed {seed}: {largest} demonstrations"
                check_fits(memory.segments, config.memory_tokens, what)
            needed = max(needed, memory.segments[-1].end_token)
    if job.service is not None:
        return job, tasks
    return replace(job, model=replace(job.model, settings=job.model.settings | {"memory_tokens": needed})), tasks


class Icl(RequestJob[IclJob]):
    """Many-shot in-context learning: demonstrations in context, in memory, and both."""

    name = "icl"

    def __init__(self, spec: IclJob, tasks: dict[str, PreparedTask]) -> None:
        super().__init__(spec)
        self._tasks = tasks

    def given(self) -> dict[str, Any]:
        spec = self._spec
        return {
            "job": self.name,
            "tasks": {name: task.digest() for name, task in self._tasks.items()},
            "shots": sorted(spec.shots),
            "memory_shots": sorted(spec.memory_shots),
            "seeds": spec.seeds,
            "limit_items": spec.limit_items,
            "search": spec.model.search,
        }

    def store(self) -> StoreSettings:
        return StoreSettings(self._spec.store_uri)

    def clean_up(self) -> None:
        if self._spec.store is None:
            super().clean_up()

    def run(self, context: JobContext[AbstractExecutor]) -> dict[str, Any]:
        slices = context.slices
        with IclJournal(self.out / JOURNAL) as journal:
            resumed = bool(journal.results)
            run = IclRun(context.worker, journal, context.tell, context.observer, slices)
            try:
                self._run(context, run)
            except BaseException:
                # keep the error that ended the run: it may be the cause of a failed write
                with suppress(OutputError):
                    slices.record(run.work())
                raise
            slices.record(run.work())
            return self._write_results(context, run, resumed, slices.total(run.work()))

    def _run(self, context: JobContext[AbstractExecutor], run: IclRun) -> None:
        """Write the memories, then answer the items of all grid points with missing results."""
        spec, settings, results = self._spec, context.model.settings, run.journal.results
        sizes = {point: len(self._tasks[point.task].items) for point in spec.grid_points}
        context.observer.planned("items", sum(sizes.values()), sum(len(results.get(point, {})) for point in sizes))
        open_points = [point for point, size in sizes.items() if len(results.get(point, {})) < size]
        memories = {
            point: self._tasks[point.task].memory(point.seed, point.memory_shots)
            for point in open_points
            if point.memory_shots
        }
        scheduler = SegmentScheduler(
            Limits(default_in_flight(spec.cluster.encoders if spec.cluster else None), 2**30),
            context.model.segment_bytes,
            settings["segment_tokens"],
            settings["memory_tokens"],
            write=True,
        )
        last = run.write([memory for memory in memories.values() if memory is not None], scheduler)
        unanswered: dict[GridPoint, tuple[PreparedTask, SegmentInfo | None]] = {}
        for point in open_points:
            memory = memories.get(point)
            unanswered[point] = self._tasks[point.task], None if memory is None else last[memory.key]
        run.ask(unanswered, spec.batch_items)

    def _write_results(
        self, context: JobContext[AbstractExecutor], run: IclRun, resumed: bool, total: dict[str, Any]
    ) -> dict[str, Any]:
        spec, tasks, cluster = self._spec, self._tasks, self._spec.cluster
        rows = {name: item_rows(task, run.journal, spec.grid_points) for name, task in tasks.items()}
        results = {name: TaskResults(task, rows[name]) for name, task in tasks.items()}
        grids = {name: result.grid() for name, result in results.items()}
        where = {
            "address": cluster.address if cluster else "none",
            "workers": cluster.encoders if cluster else 0,
            "threads": spec.threads,
            "batch_items": spec.batch_items,
        }
        summary = {
            **about(spec.command, context.model, where, resumed),
            "grid": {
                "shots": sorted(spec.shots),
                "memory_shots": sorted(spec.memory_shots),
                "seeds": spec.seeds,
                "limit_items": spec.limit_items,
            },
            "demonstrations": {**asdict(run.written), **total["written"]},
            "asked": total["asked"],
            "wall_s": total["written"]["wall_s"] + total["asked"]["wall_s"],
            "tasks": {name: _task_summary(spec, tasks[name], results[name], grids[name], run) for name in tasks},
        }
        items = [row for task_rows in rows.values() for row in task_rows]
        context.folder.write_table("items.parquet", item_table(items))
        context.folder.write_table("grid.parquet", grid_table([row for grid in grids.values() for row in grid]))
        write_report(self.out, summary)
        return summary


def _task_summary(
    job: IclJob, task: PreparedTask, results: TaskResults, grid: Sequence[dict[str, Any]], run: IclRun
) -> dict[str, Any]:
    return {
        "template": task.task.template,
        "labels": task.task.words,
        "items": len(task.items),
        "items_left_out": task.num_long_items,
        "demonstrations": len(task.demonstrations),
        "demonstrations_left_out": task.num_long_demonstrations,
        "baselines": results.baselines(),
        "grid": list(grid),
        "comparisons": results.comparisons(),
        "predicted": results.predicted(),
        "costs": list(_costs(job, task, run)),
    }


def _costs(job: IclJob, task: PreparedTask, run: IclRun) -> Iterator[dict[str, Any]]:
    """Yield costs per grid point: compute seconds per item over all runs, and tokens.

    A shot in memory costs its tokens once; a shot in context costs its tokens for every item.
    """
    for shots in sorted(job.shots):
        for memory_shots in sorted(job.memory_shots):
            points = [GridPoint(task.task.name, seed, shots, memory_shots) for seed in range(job.seeds)]
            results = [result for point in points for result in run.journal.results[point].values()]
            memories = [task.memory(point.seed, memory_shots) for point in points]
            memory_tokens = sum(memory.num_tokens for memory in memories if memory is not None)
            yield {
                "shots": shots,
                "memory_shots": memory_shots,
                "busy_s_per_item": sum(run.journal.busy_s[point] for point in points) / len(results),
                "tokens_per_item": sum(result.num_tokens for result in results) / len(results),
                "memory_tokens": memory_tokens / len(points),
                "memory_tokens_per_shot": memory_tokens / len(points) / memory_shots if memory_shots else None,
            }
