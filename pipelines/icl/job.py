"""One in-context-learning job from its options to its output folder."""

import shutil
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from actors.config import ClusterShape
from longmem.config import LongMemConfig
from longmem.errors import ConfigError, OutputError
from longmem.model.checkpoint import is_checkpoint, read_config
from longmem.model.source import ModelDescription, ModelSource
from longmem.runtime.scheduler import Limits, SegmentScheduler
from longmem.store.config import IN_MEMORY, StoreSettings
from longmem.text.demonstrations import check_fits
from longmem.types import SegmentInfo
from pipelines.icl.progress import Shown
from pipelines.icl.records import IclJournal
from pipelines.icl.report import write_report
from pipelines.icl.results import TaskResults, grid_table, item_rows, item_table
from pipelines.icl.run import IclRun
from pipelines.icl.task import IclTask
from pipelines.icl.task_data import GridPoint, PreparedTask
from pipelines.job.executors import start_executor
from pipelines.job.folder import FinishedSummary, JobFolder
from pipelines.job.requested_model import asked_model
from pipelines.job.summary import about
from pipelines.job.work_slices import Slices
from pipelines.perplexity.job import default_in_flight

MEMORY_FOLDER = "memory.lance"
RESULTS = "summary.json"


@dataclass(frozen=True, kw_only=True)
class IclJob:
    """What the command line says, checked. Raises ConfigError."""

    tasks: tuple[IclTask, ...]
    out: Path
    model: ModelSource
    cluster: ClusterShape | None
    """None runs everything in this process."""
    threads: int
    shots: tuple[int, ...]
    memory_shots: tuple[int, ...]
    seeds: int
    limit_items: int | None = None
    batch_items: int = 32
    store: str | None = None
    """Where demonstrations stay for later jobs; None for a folder inside `out` that goes with the job."""
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
            raise ConfigError(f"--store {IN_MEMORY} lives in one process: use --address none, or a store on disk")

    @property
    def store_uri(self) -> str:
        """Absolute where it is a local path, because workers have other working directories."""
        if self.store is None:
            return str(self.out.absolute() / MEMORY_FOLDER)
        return self.store if "://" in self.store else str(Path(self.store).absolute())

    @property
    def cells(self) -> list[GridPoint]:
        """The grid, cells that read the same memory together."""
        return [
            GridPoint(task.name, seed, shots, memory_shots)
            for task in self.tasks
            for seed in range(self.seeds)
            for memory_shots in sorted(self.memory_shots)
            for shots in sorted(self.shots)
        ]


def run_icl(job: IclJob, console: Console) -> dict[str, Any]:
    """Run (or resume) a job; returns its summary: a FinishedSummary where there was nothing left to do, and nothing
    was changed. Every LongMemError that ends it leaves the folder resumable."""

    def tell(text: str) -> None:
        console.print(escape(text), soft_wrap=True)

    job, tasks = prepare(job)
    with JobFolder(job.out, job.resume) as folder:
        asked = {**_given(job, tasks), "model": asked_model(job.model)}
        if (finished := folder.finished(RESULTS, asked)) is not None:
            return _unchanged(job, finished)
        with start_executor(job.model, StoreSettings(job.store_uri), job.cluster, job.threads, tell) as executor:
            model = executor.describe()
            folder.claim(identity(job, tasks, model), asked)
            if (finished := folder.finished(RESULTS)) is not None:
                return _unchanged(job, finished)
            with IclJournal(folder.path / "journal.jsonl") as journal, Shown(console, job, tasks) as shown:
                resumed = bool(journal.results)
                slices = Slices(job.out)
                run = IclRun(executor, journal, tell, slices)
                try:
                    _run(job, tasks, run, model, shown)
                except BaseException:
                    # what ended the run matters more, and may be the reason why nothing can be written
                    with suppress(OutputError):
                        slices.record(run.work())
                    raise
                slices.record(run.work())
                summary = _write_results(job, tasks, folder, run, model, resumed, slices.total(run.work()))
        if job.store is None:
            shutil.rmtree(job.out / MEMORY_FOLDER, ignore_errors=True)
    return summary


def prepare(job: IclJob) -> tuple[IclJob, dict[str, PreparedTask]]:
    """Read all data before a model is loaded; without a --memory-tokens of the user the memory becomes as large as the
    demonstrations need. Raises ConfigError and DocumentError for data that cannot be used."""
    config = _settings(job.model)
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
            if "memory_tokens" in job.model.settings:
                what = f"task {task.task.name}, seed {seed}: {largest} demonstrations"
                check_fits(memory.segments, config.memory_tokens, what)
            needed = max(needed, memory.segments[-1].end_token)
    return replace(job, model=replace(job.model, settings=job.model.settings | {"memory_tokens": needed})), tasks


def _settings(source: ModelSource) -> LongMemConfig:
    """The configuration that a model will have, without loading its weights."""
    stored = read_config(Path(source.source))["longmem"] if is_checkpoint(source.source) else {}
    return LongMemConfig.from_dict({**stored, **source.settings})


def identity(job: IclJob, tasks: dict[str, PreparedTask], model: ModelDescription) -> dict[str, Any]:
    """What decides the results of a job. Where it runs, with how many workers and in what batches does not."""
    return {
        **_given(job, tasks),
        "model": {**asdict(model.fingerprint), "sidenet": model.sidenet},
        "settings": model.settings,
    }


def _given(job: IclJob, tasks: dict[str, PreparedTask]) -> dict[str, Any]:
    """The part of a job's identity that the command and its data give."""
    return {
        "job": "icl",
        "tasks": {name: task.digest() for name, task in tasks.items()},
        "shots": sorted(job.shots),
        "memory_shots": sorted(job.memory_shots),
        "seeds": job.seeds,
        "limit_items": job.limit_items,
        "search": job.model.search,
    }


def _unchanged(job: IclJob, finished: FinishedSummary) -> FinishedSummary:
    if job.store is None:
        # left where a job was killed between its last result and its end
        shutil.rmtree(job.out / MEMORY_FOLDER, ignore_errors=True)
    return finished


def _run(job: IclJob, tasks: dict[str, PreparedTask], run: IclRun, model: ModelDescription, shown: Shown) -> None:
    """Memories first, then items: only those that cells without all results need."""
    open_cells = [cell for cell in job.cells if len(run.journal.results.get(cell, {})) < len(tasks[cell.task].items)]
    memories = {cell: tasks[cell.task].memory(cell.seed, cell.memory_shots) for cell in open_cells if cell.memory_shots}
    scheduler = SegmentScheduler(
        Limits(default_in_flight(job.cluster.encoders if job.cluster else None), 2**30),
        model.segment_bytes,
        model.settings["segment_tokens"],
        model.settings["memory_tokens"],
        write=True,
    )
    last = run.write([memory for memory in memories.values() if memory is not None], scheduler)
    asked: dict[GridPoint, tuple[PreparedTask, SegmentInfo | None]] = {}
    for cell in open_cells:
        memory = memories.get(cell)
        asked[cell] = tasks[cell.task], None if memory is None else last[memory.key]
    run.ask(asked, job.batch_items, shown.done)


def _write_results(
    job: IclJob,
    tasks: dict[str, PreparedTask],
    folder: JobFolder,
    run: IclRun,
    model: ModelDescription,
    resumed: bool,
    total: dict[str, Any],
) -> dict[str, Any]:
    rows = {name: item_rows(task, run.journal, job.cells) for name, task in tasks.items()}
    results = {name: TaskResults(task, rows[name]) for name, task in tasks.items()}
    grids = {name: each.grid() for name, each in results.items()}
    cluster = job.cluster
    where = {
        "address": cluster.address if cluster else "none",
        "workers": cluster.encoders if cluster else 0,
        "threads": job.threads,
        "batch_items": job.batch_items,
    }
    summary = {
        **about(job.command, model, where, resumed),
        "grid": {
            "shots": sorted(job.shots),
            "memory_shots": sorted(job.memory_shots),
            "seeds": job.seeds,
            "limit_items": job.limit_items,
        },
        "demonstrations": {**asdict(run.written), **total["written"]},
        "asked": total["asked"],
        "wall_s": total["written"]["wall_s"] + total["asked"]["wall_s"],
        "tasks": {name: _task_summary(job, tasks[name], results[name], grids[name], run) for name in tasks},
    }
    folder.write_table("items.parquet", item_table([row for of_task in rows.values() for row in of_task]))
    folder.write_table("grid.parquet", grid_table([row for of_task in grids.values() for row in of_task]))
    write_report(job.out, summary)
    folder.write_json(RESULTS, summary)
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
    """Seconds that workers computed per item, over all runs of the job, and what a shot more costs: in memory its
    tokens once, in context its tokens for every item."""
    for shots in sorted(job.shots):
        for memory_shots in sorted(job.memory_shots):
            cells = [GridPoint(task.task.name, seed, shots, memory_shots) for seed in range(job.seeds)]
            results = [result for cell in cells for result in run.journal.results[cell].values()]
            memories = [task.memory(cell.seed, memory_shots) for cell in cells]
            memory_tokens = sum(memory.num_tokens for memory in memories if memory is not None)
            yield {
                "shots": shots,
                "memory_shots": memory_shots,
                "busy_s_per_item": sum(run.journal.busy_s[cell] for cell in cells) / len(results),
                "tokens_per_item": sum(result.num_tokens for result in results) / len(results),
                "memory_tokens": memory_tokens / len(cells),
                "memory_tokens_per_shot": memory_tokens / len(cells) / memory_shots if memory_shots else None,
            }
