# SPDX-License-Identifier: Apache-2.0
"""Job of many-shot in-context learning, from its options to its output folder."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from rich.console import Console

from actors.config import ClusterShape
from longmem.config import DemonstrationChoice, LongMemConfig
from longmem.errors import ConfigError, OutputError
from longmem.model.source import ModelSource
from longmem.runtime.executor import AbstractExecutor
from longmem.runtime.scheduler import SegmentScheduler
from longmem.store.config import IN_MEMORY, StoreSettings
from longmem.text.demonstrations import check_fits
from longmem.wording import counted
from pipelines.icl.calibration import PARTS, Calibration
from pipelines.icl.packs import memories_of, pack_demonstrations
from pipelines.icl.readings import GROUP_ROWS, in_context, tables_of_readings
from pipelines.icl.records import IclJournal
from pipelines.icl.report import write_report
from pipelines.icl.requests import WholeReading
from pipelines.icl.results import TaskResults, calibrations, item_rows
from pipelines.icl.run import IclRun, OpenPoint
from pipelines.icl.tables import grid_table, item_table
from pipelines.icl.task import IclTask
from pipelines.icl.task_data import GridPoint, PreparedTask
from pipelines.job.ask import RequestJob
from pipelines.job.executors import MEMORY_FOLDER, default_limits, least_in_flight
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
    workers: int = 1
    """Workers of a job in this process."""
    threads: int
    """Torch threads of each worker."""
    shots: tuple[int, ...]
    memory_shots: tuple[int, ...]
    seeds: int
    limit_items: int | None = None
    batch_items: int = 32
    demonstrations: Literal["tokens", "whole"] | None = None
    """Unit that items read of a memory; None for whole demonstrations where the model stores all layers."""
    read_demonstrations: int = 16
    choose: DemonstrationChoice = "idf"
    left_out: int = 128
    pack_tokens: int | None = None
    """Tokens of whole demonstrations that are encoded together; None for the shortest packs of
    at least `pipelines.icl.packs.PACK_TOKENS` that the memory holds."""
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
        for name in ("seeds", "limit_items", "batch_items", "read_demonstrations", "pack_tokens"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ConfigError(f"--{name.replace('_', '-')} must be at least 1, got {getattr(self, name)}")
        if self.left_out < 0:
            raise ConfigError(f"--left-out must be at least 0, got {self.left_out}")
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
    job = replace(job, demonstrations=_unit(job, config))
    tokenizer = job.model.open_tokenizer()
    tasks = {
        task.name: PreparedTask(task, tokenizer, config.segment_tokens, job.limit_items, max(job.shots))
        for task in job.tasks
    }
    largest = max(job.memory_shots)
    for task in tasks.values():
        task.check(largest)
    fixed = "memory_tokens" in job.model.settings or job.service is not None
    if job.demonstrations == "whole":
        held = config.memory_tokens if fixed else None
        packed = pack_demonstrations(tasks, job.seeds, largest, job.pack_tokens, config.segment_tokens, held)
        job = replace(job, pack_tokens=packed)
    needed = config.memory_tokens
    for name, seed, memory in memories_of(tasks, job.seeds, largest):
        if fixed:
            what = f"task {name}, seed {seed}: {largest} demonstrations"
            check_fits(memory.segments, config.memory_tokens, what, job.pack_tokens)
        needed = max(needed, memory.segments[-1].end_token)
    if job.service is not None:
        return job, tasks
    return replace(job, model=replace(job.model, settings=job.model.settings | {"memory_tokens": needed})), tasks


def _unit(job: IclJob, config: LongMemConfig) -> Literal["tokens", "whole"]:
    """Return the unit that items read of a memory. Raises ConfigError where the model or a task cannot read so, and for
    options of whole demonstrations where tokens are read."""
    unit = _readable_unit(job, config)
    idle = [
        name
        for name in ("read_demonstrations", "choose", "left_out", "pack_tokens")
        if getattr(job, name) != getattr(IclJob, name)
    ]
    if unit == "tokens" and idle:
        options = ", ".join(f"--{name.replace('_', '-')}" for name in idle)
        raise ConfigError(
            f"{options}: only for whole demonstrations, and this job reads tokens; use --memory-layers all with "
            "--demonstrations whole, or leave it out"
        )
    return unit


def _readable_unit(job: IclJob, config: LongMemConfig) -> Literal["tokens", "whole"]:
    if job.demonstrations == "tokens" or not config.reads_all_layers:
        if job.demonstrations == "whole":
            raise ConfigError(
                "--demonstrations whole reads keys and values of all layers, but the memory holds one: use "
                "--memory-layers all with a backbone of rotary or ALiBi positions, or --demonstrations tokens"
            )
        return "tokens"
    generated = [task.name for task in job.tasks if task.generates]
    if generated and job.demonstrations == "whole":
        raise ConfigError(
            f"--demonstrations whole chooses among labels, but answers of {', '.join(generated)} are generated: leave "
            "these tasks out, or use --demonstrations tokens"
        )
    return "tokens" if len(generated) == len(job.tasks) else "whole"


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
            # not named where no task reads so: earlier jobs stay resumable
            # parts too: results of a version with other parts cannot be calibrated together
            **({"whole": asdict(whole) | {"parts": list(PARTS["longmem"])}} if (whole := self._whole) else {}),
        }

    @property
    def _whole(self) -> WholeReading | None:
        spec = self._spec
        if spec.demonstrations != "whole":
            return None
        assert spec.pack_tokens is not None, "decided by prepare"
        return WholeReading(spec.read_demonstrations, spec.choose, spec.left_out, spec.pack_tokens)

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
        if any(point.memory_shots for point in spec.grid_points):
            context.worker.expect_puts()
        whole = {name: None if task.task.generates else self._whole for name, task in self._tasks.items()}
        sizes, held = {}, {}
        for point in spec.grid_points:
            task, reading = self._tasks[point.task], whole[point.task]
            calibrated = reading is not None and point.memory_shots
            left_out = len(task.left_out(point, spec.left_out)) if calibrated else 0
            if calibrated and spec.left_out and not left_out:
                context.tell(
                    f"{point.task}, {counted(point.memory_shots, 'demonstration')} in memory: all in one pack, so "
                    "none can be left out, and nothing is calibrated"
                )
            sizes[point] = len(task.items) + left_out
            held[point] = len(results.get(point, {})) + len(run.journal.left_out.get(point, {}))
        context.observer.planned("items", sum(sizes.values()), sum(held.values()))
        open_points = [point for point, size in sizes.items() if held[point] < size]
        memories = {
            point: self._tasks[point.task].memory(point.seed, point.memory_shots)
            for point in open_points
            if point.memory_shots
        }
        workers = spec.cluster.encoders if spec.cluster else None, spec.workers
        scheduler = SegmentScheduler(
            default_limits(*workers).for_segments_of(context.model.segment_bytes, least_in_flight(*workers)),
            context.model.segment_bytes,
            settings["segment_tokens"],
            settings["memory_tokens"],
            write=True,
        )
        last = run.write([memory for memory in memories.values() if memory is not None], scheduler)
        unanswered = {}
        for point in open_points:
            memory = memories.get(point)
            block = None if memory is None else last[memory.key]
            unanswered[point] = OpenPoint(self._tasks[point.task], block, memory, whole[point.task])
        run.ask(unanswered, spec.batch_items)

    def _write_results(
        self, context: JobContext[AbstractExecutor], run: IclRun, resumed: bool, total: dict[str, Any]
    ) -> dict[str, Any]:
        spec, tasks, cluster = self._spec, self._tasks, self._spec.cluster
        fitted = {name: calibrations(task, run.journal, spec.grid_points) for name, task in tasks.items()}
        rows = {name: item_rows(task, run.journal, spec.grid_points, fitted[name]) for name, task in tasks.items()}
        results = {name: TaskResults(task, rows[name]) for name, task in tasks.items()}
        grids = {name: result.grid() for name, result in results.items()}
        where = {
            "address": cluster.address if cluster else "none",
            "workers": cluster.encoders if cluster else spec.workers,
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
                **({"whole": asdict(whole)} if (whole := self._whole) else {}),
            },
            "demonstrations": {**asdict(run.written), **total["written"]},
            "asked": total["asked"],
            "wall_s": total["written"]["wall_s"] + total["asked"]["wall_s"],
            "tasks": {
                name: _task_summary(spec, tasks[name], results[name], grids[name], run)
                | ({"calibration": _calibration_summary(fitted[name], run)} if fitted[name] else {})
                for name in tasks
            },
        }
        items = [row for task_rows in rows.values() for row in task_rows]
        context.folder.write_table("items.parquet", item_table(items, self._whole is not None))
        context.folder.write_table("grid.parquet", grid_table([row for grid in grids.values() for row in grid]))
        readings = tables_of_readings(tasks, run.journal, spec.grid_points, self._whole is not None, context.tell)
        for name, table in readings.items():
            context.folder.write_table(f"{name}.parquet", table, GROUP_ROWS)
        write_report(self.out, summary, {name: result.answered() for name, result in results.items()})
        return summary


def _task_summary(
    job: IclJob, task: PreparedTask, results: TaskResults, grid: Sequence[dict[str, Any]], run: IclRun
) -> dict[str, Any]:
    return {
        "template": task.task.template,
        "in_context": [in_context(task, seed, max(job.shots)) for seed in range(job.seeds)],
        "labels": task.task.words,
        "items": len(task.items),
        "items_left_out": task.num_long_items,
        "demonstrations": len(task.demonstrations),
        "demonstrations_left_out": task.num_long_demonstrations,
        "baselines": results.baselines(),
        "grid": list(grid),
        "finding": results.finding(),
        "confusion": results.confusion(),
        "comparisons": results.comparisons(),
        "predicted": results.predicted(),
        "costs": list(_costs(job, task, run)),
    }


def _calibration_summary(fitted: Mapping[GridPoint, Calibration], run: IclRun) -> list[dict[str, Any]]:
    """Return weights and biases of each grid point, and the compute seconds of its left-out demonstrations."""
    return [
        {
            "seed": point.seed,
            "shots": point.shots,
            "memory_shots": point.memory_shots,
            "busy_s": run.journal.left_out_busy_s[point],
            "models": calibration.coefficients(),
        }
        for point, calibration in fitted.items()
    ]


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
