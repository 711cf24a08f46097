# SPDX-License-Identifier: Apache-2.0
"""Perplexity job, from its options to its output folder."""

import shutil
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from actors.config import ClusterShape
from longmem.errors import ConfigError, OutputError
from longmem.model.source import ModelDescription, ModelSource
from longmem.runtime.executor import STAGES, AbstractExecutor
from longmem.runtime.scheduler import Limits, SegmentScheduler
from longmem.scoring.evaluation_window import check_window, check_window_fits
from longmem.store.config import IN_MEMORY, StoreSettings
from longmem.store.lance.fsync import Durability
from longmem.text.dataset_rows import DatasetSource
from longmem.text.documents import FoundFiles
from longmem.types import DEFAULT_NAMESPACE, Document
from longmem.wording import counted
from pipelines.command.choices import Retention
from pipelines.command.console import printable
from pipelines.job.executors import MEMORY_FOLDER, least_in_flight, open_workers
from pipelines.job.folder import JobFolder
from pipelines.job.inputs import check_spans, find_inputs
from pipelines.job.journal import JOURNAL
from pipelines.job.prefetch import DocumentFeed
from pipelines.job.requested_model import describe_request
from pipelines.job.runner import run_to_end
from pipelines.job.service import ServiceChoice, find_parts
from pipelines.job.spec import AbstractJob, JobContext, Tell
from pipelines.job.work_slices import Slices
from pipelines.perplexity.inputs import JobDocuments
from pipelines.perplexity.journal import Journal
from pipelines.perplexity.run import PerplexityRun, RunTotals, StageTotals
from pipelines.perplexity.summary import summarise
from pipelines.perplexity.tables import GROUP_ROWS, documents_table, segments_table, tables_of_tokens
from pipelines.perplexity.windows import WindowRun, WindowShape, WindowTotals, collect_windows

TRIM_EVERY = 16
"""Segments removed at a time with retention `window`; each removal costs one commit of the catalogue."""

DEFAULT_STRIDE = 512
"""Distance of evaluation windows in tokens, as in the guide of transformers."""


@dataclass(frozen=True, kw_only=True)
class PerplexityJob:
    """Validated options of the job. Raises ConfigError."""

    inputs: tuple[str, ...]
    """Files and folders; empty for the Python language reference."""
    dataset: DatasetSource | None = None
    """Dataset to read instead of files."""
    out: Path
    model: ModelSource
    cluster: ClusterShape | None
    """Ray cluster and its workers; None runs everything in this process."""
    service: ServiceChoice | None = None
    """Running service whose model, store and pools replace those given here."""
    workers: int = 1
    """Workers of a job in this process: segments that are computed at a time."""
    threads: int
    """Torch threads of each worker."""
    threads_given: bool = True
    """False if `threads` is a default. A resumed job then keeps its first number, because results are bit-identical
    only for equal numbers of threads."""
    limits: Limits
    limits_given: bool = True
    """False if `limits` are a default. Large segments then have a lower one."""
    store: str | None = None
    """URI of the store for keys and values; None for a folder inside `out`."""
    namespace: str | None = None
    retention: Retention = "document"
    durability: Durability = "process"
    store_quota_bytes: int | None = None
    keep_tokens: bool = False
    write_memory: bool = True
    window: int | None = None
    """Tokens of an evaluation window of the backbone alone, a baseline next to memory; None for no such baseline."""
    stride: int | None = None
    """Distance of evaluation windows in tokens; None for `DEFAULT_STRIDE`, or the window if that is shorter."""
    limit_documents: int | None = None
    limit_tokens: int | None = None
    """Tokens of each document that are scored, from its start; None for all."""
    resume: bool = False
    command: str = ""

    def __post_init__(self) -> None:
        for name, value in vars(self.limits).items():
            if value < 1:
                raise ConfigError(f"--{name.replace('_', '-')} must be at least 1, got {value}")
        for option, limit in (("documents", self.limit_documents), ("tokens", self.limit_tokens)):
            if limit is not None and limit < 1:
                raise ConfigError(f"--limit-{option} must be at least 1, got {limit}")
        if self.keep_memory and self.store == IN_MEMORY:
            raise ConfigError(f"--retention forever needs a store on disk, {IN_MEMORY} ends with the process")
        if self.cluster is not None and self.store == IN_MEMORY:
            raise ConfigError(f"--store {IN_MEMORY} exists in one process only: use --address none, or a store on disk")
        if self.cluster is not None and self.cluster.readers < 1:
            raise ConfigError(f"readers must be at least 1, got {self.cluster.readers}: they score the segments")
        if self.namespace is not None and not self.keep_memory:
            raise ConfigError("--namespace names documents that are kept; add --keep-memory")
        if self.store_quota_bytes is not None and self.store_quota_bytes < 1:
            raise ConfigError(f"--store-quota-bytes must be at least 1, got {self.store_quota_bytes}")
        if self.dataset is not None and self.inputs:
            raise ConfigError(f"--dataset and inputs ({self.inputs[0]}, …) exclude each other; give one of them")
        if self.window is None and self.stride is not None:
            raise ConfigError(f"--stride {self.stride} needs --window: give the length of the windows as well")
        if (shape := self.window_shape) is not None:
            check_window(shape.window, shape.stride)

    @property
    def window_shape(self) -> WindowShape | None:
        """Windows of the baseline; None without one."""
        if self.window is None:
            return None
        return WindowShape(self.window, min(DEFAULT_STRIDE, self.window) if self.stride is None else self.stride)

    @property
    def keep_memory(self) -> bool:
        return self.retention == "forever"

    @property
    def store_uri(self) -> str:
        """URI of the store; local paths are absolute, because workers have other working directories."""
        if self.store is None:
            return str(self.out.absolute() / MEMORY_FOLDER)
        return self.store if "://" in self.store else str(Path(self.store).absolute())

    @property
    def store_settings(self) -> StoreSettings:
        """Settings with which every process of the job opens the store."""
        return StoreSettings(self.store_uri, self.durability, self.store_quota_bytes)

    def with_threads(self, threads: int) -> "PerplexityJob":
        """Return a copy of the job with another number of threads per worker, and no more threads in this process."""
        workers = max(1, min(self.workers, self.workers * self.threads // threads))
        return replace(
            self, threads=threads, workers=workers, cluster=self.cluster and replace(self.cluster, threads=threads)
        )


def run_job(job: PerplexityJob, console: Console) -> dict[str, Any]:
    """Run (or resume) a job and return its summary; see `pipelines.job.runner.run`."""
    inputs = job.inputs if job.dataset is None else (job.dataset,)
    return run_to_end(Perplexity(job, find_inputs(inputs, console)), console)


def open_executor(job: PerplexityJob, tell: Tell = lambda _text: None) -> AbstractExecutor:
    """Return an executor on the service, on the job's own Ray workers, or in this process."""
    return open_workers(job.model, job.store_settings, job.cluster, job.service, job.threads, tell, workers=job.workers)


class Perplexity(AbstractJob[AbstractExecutor]):
    """Scoring of long documents with memory and without: perplexities and their change."""

    name = "perplexity"

    def __init__(self, spec: PerplexityJob, files: FoundFiles) -> None:
        self._spec = on_service(spec, spec.service) if spec.service is not None else spec
        self._documents = JobDocuments(files, self._spec.limit_documents, self._spec.limit_tokens, self._spec.model)
        self.out, self.resume, self.command = spec.out, spec.resume, spec.command
        self.on_cluster = spec.cluster is not None or spec.service is not None
        self.store_limit_bytes = self._spec.store_quota_bytes

    def adopt(self, begun: dict[str, Any]) -> None:
        if not self._spec.threads_given:
            self._spec = self._spec.with_threads(begun.get("threads", self._spec.threads))

    def requested_model(self) -> dict[str, Any] | None:
        # the model of a service is known only on its cluster
        return None if self._spec.service else describe_request(self._spec.model)

    def given(self) -> dict[str, Any]:
        spec = self._spec
        return {
            "job": self.name,
            "inputs": [file.shown for file in self._documents.files],
            "limit_documents": spec.limit_documents,
            "search": spec.model.search,
            "write_memory": spec.write_memory,
            "keep_tokens": spec.keep_tokens,
            "threads": spec.threads,
            **({} if spec.limit_tokens is None else {"limit_tokens": spec.limit_tokens}),
            **(asdict(spec.window_shape) if spec.window_shape else {}),
        }

    def describe(self, worker: AbstractExecutor) -> ModelDescription | None:
        """Raise ConfigError for windows that the backbone cannot read, before the folder is claimed."""
        described = worker.describe()
        if self._spec.window is not None:
            check_window_fits(self._spec.window, described.max_tokens, described.name)
        return described

    def open(self, tell: Tell) -> AbstractExecutor:
        return open_executor(self._spec, tell)

    def is_resumed(self, folder: JobFolder) -> bool:
        return folder.has_results_in(JOURNAL)

    def check_unchanged(self, folder: JobFolder) -> None:
        with Journal(folder.path / JOURNAL) as journal:
            known = {name: record.text_digest for name, record in journal.documents.items()}
        seen = {
            document.id: document.digest if isinstance(document, Document) else str(document.error)
            for document in self._documents.read()
        }
        if changed := sorted(name for name in {*known, *seen} if known.get(name) != seen.get(name)):
            raise OutputError(
                f"{self.out} holds a finished job, and {printable(changed[0])} has changed since the job began"
                + (f" (and {counted(len(changed) - 1, 'other document')})" if len(changed) > 1 else "")
                + "; the results stay as they are: restore the text, or begin a new job in another folder"
            )

    def clean_up(self) -> None:
        if not self._spec.keep_memory and self._spec.store is None:
            shutil.rmtree(self.out / MEMORY_FOLDER, ignore_errors=True)

    def run(self, context: JobContext[AbstractExecutor]) -> dict[str, Any]:
        with Journal(self.out / JOURNAL) as journal:
            resumed = bool(journal.documents)
            totals = RunTotals()
            with _recorded(context.slices, totals):
                self._score(context, journal, totals)
                self._score_windows(context, journal, totals)
            total = context.slices.total(totals.work())
            totals = RunTotals(
                {stage: StageTotals(**total["stages"][stage]) for stage in STAGES},
                total["wall_s"],
                None if totals.window is None else WindowTotals(**total["window"]),
            )
            return self._write_results(context, journal, totals, resumed)

    def _score(self, context: JobContext[AbstractExecutor], journal: Journal, totals: RunTotals) -> None:
        spec, settings, slices = self._spec, context.model.settings, context.slices
        if needs_spans := "--tokens" if spec.keep_tokens else "--limit-tokens" if spec.limit_tokens else None:
            check_spans(context.model, needs_spans)
        if spec.write_memory:
            context.worker.expect_puts()
        tokenizer = context.worker.tokenizer()
        # a job that keeps no blocks must not find documents that other jobs put into the same store
        namespace = (spec.namespace or DEFAULT_NAMESPACE) if spec.keep_memory else f"job-{context.job_id}"
        scheduler = SegmentScheduler(
            self._limits(context.model.segment_bytes),
            context.model.segment_bytes,
            settings["segment_tokens"],
            settings["memory_tokens"],
            spec.write_memory,
            spec.keep_memory,
            settings["one_pass"],
        )
        feed = DocumentFeed(
            self._documents.read(tokenizer),
            tokenizer,
            settings["segment_tokens"],
            namespace,
            needs_work=lambda document: not journal.is_scored(document.id),
            keep_readings=spec.keep_tokens,
        )

        def record(totals: RunTotals) -> None:
            if slices.is_due:
                slices.record(totals.work())

        context.observer.planned("documents", self._documents.count)
        run = PerplexityRun(
            context.worker,
            scheduler,
            journal,
            context.observer,
            keep_memory=spec.keep_memory,
            keep_tokens=spec.keep_tokens,
            num_unscored_tokens=0 if context.model.start_token is not None else 1,
            # in one pass, an encoder that had two documents would read a window again for each segment
            admit_below=(1 if settings["one_pass"] else 2) * (spec.cluster.encoders if spec.cluster else 1),
            trim_every=TRIM_EVERY if spec.retention == "window" and spec.write_memory else None,
            record=record,
            totals=totals,
        )
        with closing(feed):
            run.run(feed)

    def _score_windows(self, context: JobContext[AbstractExecutor], journal: Journal, totals: RunTotals) -> None:
        """Score the documents that memory has scored in overlapping windows, if the job has that baseline."""
        spec, shape, slices = self._spec, self._spec.window_shape, context.slices
        if shape is None:
            return

        def record() -> None:
            if slices.is_due:
                slices.record(totals.work())

        totals.window = WindowTotals()
        segment_tokens = context.model.settings["segment_tokens"]
        run = WindowRun(
            context.worker,
            journal,
            context.observer,
            shape,
            totals.window,
            segment_tokens=segment_tokens,
            keep_tokens=spec.keep_tokens,
            record=record,
        )
        context.tell(f"backbone alone in windows of {counted(shape.window, 'token')}, stride {shape.stride:,}")
        tokenizer = context.worker.tokenizer()
        documents = self._documents.read(tokenizer)
        feed = DocumentFeed(documents, tokenizer, segment_tokens, DEFAULT_NAMESPACE, run.needs_work)
        with closing(feed):
            run.run(feed)

    def _limits(self, segment_bytes: int) -> Limits:
        spec, cluster = self._spec, self._spec.cluster
        if spec.limits_given:
            return spec.limits
        on_ray = None if cluster is None else cluster.encoders + cluster.readers
        return spec.limits.for_segments_of(segment_bytes, least_in_flight(on_ray, spec.workers))

    def _write_results(
        self, context: JobContext[AbstractExecutor], journal: Journal, totals: RunTotals, resumed: bool
    ) -> dict[str, Any]:
        spec, cluster = self._spec, self._spec.cluster
        documents = sorted(journal.documents.values(), key=lambda record: record.order)
        scored = [record for record in documents if record.status == "scored"]
        segments = [segment for record in scored for segment in journal.scored(record.document)]
        shape = spec.window_shape
        windows = None if shape is None else collect_windows(journal, scored, shape)
        summary = summarise(
            command=spec.command,
            model=context.model,
            executor={
                "address": cluster.address if cluster else "none",
                "service": spec.service.name if spec.service else None,
                "encoders": cluster.encoders if cluster else 0,
                "readers": cluster.readers if cluster else 0,
                "stores": cluster.stores if cluster else 0,
                "workers": 0 if cluster else spec.workers,
                "threads": spec.threads,
                "search": spec.model.search,
            },
            totals=totals,
            resumed=resumed,
            documents=documents,
            segments=segments,
            left_out=self._documents.files.left_out.as_dict(),
            limits={"documents": spec.limit_documents, "tokens": spec.limit_tokens},
            windows=windows,
        )
        tables = {
            "documents": documents_table(journal, documents, windows),
            "segments": segments_table(segments, windows),
        }
        if spec.keep_tokens:
            tables |= tables_of_tokens(segments, windows, context.tell)
        for name, table in tables.items():
            context.folder.write_table(f"{name}.parquet", table, GROUP_ROWS.get(name))
        # only now: it loads matplotlib, a tenth of what a job imports
        from pipelines.perplexity.report import write_report

        write_report(self.out, summary, tables["documents"], tables["segments"])
        return summary


def on_service(job: PerplexityJob, choice: ServiceChoice) -> PerplexityJob:
    """Return the job with model, store and pools of the service. Raises ClusterError if it does not exist."""
    parts = find_parts(choice, job.cluster.timeouts if job.cluster else None)
    limits = job.limits
    if not choice.limits_given:
        limits = replace(limits, max_in_flight_segments=parts.in_flight_segments)
    return replace(
        job,
        model=parts.model,
        store=parts.store.uri,
        durability=parts.store.durability,
        store_quota_bytes=parts.store.max_bytes,
        cluster=parts.cluster,
        threads=parts.cluster.threads,
        threads_given=True,
        limits=limits,
    )


@contextmanager
def _recorded(slices: Slices, totals: RunTotals) -> Iterator[None]:
    """Record the work of this process at the end, however it ends."""
    try:
        yield
    except BaseException:
        # keep the error that ended the run: it may be the cause of a failed write
        with suppress(OutputError):
            slices.record(totals.work())
        raise
    slices.record(totals.work())
