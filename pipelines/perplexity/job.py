"""One perplexity job from its options to its output folder."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.markup import escape

from actors.config import ClusterShape
from longmem.errors import ConfigError, OutputError
from longmem.model.source import ModelDescription, ModelSource
from longmem.runtime.executor import PUT_SEGMENTS, STAGES, AbstractExecutor
from longmem.runtime.scheduler import Limits, SegmentScheduler
from longmem.store.config import IN_MEMORY, StoreSettings
from longmem.store.lance.fsync import Durability
from longmem.text.documents import FoundFiles, LeftOut, UnreadableDocument, read_documents
from longmem.text.language_reference import language_reference
from longmem.types import DEFAULT_NAMESPACE, Document
from pipelines.command.console import printable
from pipelines.job.executors import start_executor
from pipelines.job.folder import FinishedSummary, JobFolder
from pipelines.job.inputs import find_inputs
from pipelines.job.journal import Journal
from pipelines.job.observer import Observers
from pipelines.job.prefetch import DocumentFeed
from pipelines.job.progress import Progress
from pipelines.job.reporter import JobReporter
from pipelines.job.requested_model import asked_model
from pipelines.job.service import ServiceChoice, attach_to, on_service
from pipelines.job.summary import summarise
from pipelines.job.work_slices import Slices
from pipelines.perplexity.report import write_report
from pipelines.perplexity.run import PerplexityRun, RunTotals, StageTotals
from pipelines.perplexity.tables import documents_table, segments_table, tokens_table

MEMORY_FOLDER = "memory.lance"
RESULTS = "summary.json"

IN_FLIGHT_PER_WORKER = 8
IN_FLIGHT_IN_PROCESS = 2 * PUT_SEGMENTS
"""Encoded segments that may wait by default: some are written while others are read."""

Retention = Literal["window", "document", "forever"]
"""How long blocks stay: while a window may reach them, while their document is scored, or after the job too."""

TRIM_EVERY = 16
"""With retention `window`: segments removed at a time. Each time costs one commit of the catalogue."""


@dataclass(frozen=True, kw_only=True)
class PerplexityJob:
    """What the command line says, checked. Raises ConfigError."""

    inputs: tuple[str, ...]
    """Files and folders; empty for the Python language reference."""
    out: Path
    model: ModelSource
    cluster: ClusterShape | None
    """None runs everything in this process."""
    service: ServiceChoice | None = None
    """A running service whose model, store and pools take the place of those that are given here."""
    threads: int
    """Torch threads of each worker, or of this process."""
    threads_given: bool = True
    """False where `threads` is only a default: a resumed job then goes on with the number that it began with, because
    results are equal to the last bit only for equal numbers of threads."""
    limits: Limits
    store: str | None = None
    """Where keys and values go; None for a folder inside `out`."""
    namespace: str | None = None
    retention: Retention = "document"
    durability: Durability = "process"
    store_quota_bytes: int | None = None
    keep_tokens: bool = False
    write_memory: bool = True
    limit_documents: int | None = None
    resume: bool = False
    command: str = ""

    def __post_init__(self) -> None:
        for name, value in vars(self.limits).items():
            if value < 1:
                raise ConfigError(f"--{name.replace('_', '-')} must be at least 1, got {value}")
        if self.limit_documents is not None and self.limit_documents < 1:
            raise ConfigError(f"--limit-documents must be at least 1, got {self.limit_documents}")
        if self.keep_memory and self.store == IN_MEMORY:
            raise ConfigError(f"--retention forever needs a store on disk, {IN_MEMORY} ends with the process")
        if self.cluster is not None and self.store == IN_MEMORY:
            raise ConfigError(f"--store {IN_MEMORY} lives in one process: use --address none, or a store on disk")
        if self.cluster is not None and self.cluster.readers < 1:
            raise ConfigError(f"readers must be at least 1, got {self.cluster.readers}: they score the segments")
        if self.namespace is not None and not self.keep_memory:
            raise ConfigError("--namespace names documents that are kept; add --keep-memory")
        if self.store_quota_bytes is not None and self.store_quota_bytes < 1:
            raise ConfigError(f"--store-quota-bytes must be at least 1, got {self.store_quota_bytes}")

    @property
    def keep_memory(self) -> bool:
        return self.retention == "forever"

    @property
    def store_uri(self) -> str:
        """Absolute where it is a local path, because workers have other working directories."""
        if self.store is None:
            return str(self.out.absolute() / MEMORY_FOLDER)
        return self.store if "://" in self.store else str(Path(self.store).absolute())

    @property
    def store_settings(self) -> StoreSettings:
        """How whoever runs the job opens the store."""
        return StoreSettings(self.store_uri, self.durability, self.store_quota_bytes)

    def with_threads(self, threads: int) -> "PerplexityJob":
        """The same job with other threads for its workers."""
        cluster = self.cluster and replace(self.cluster, threads=threads)
        return replace(self, threads=threads, cluster=cluster)


def default_in_flight(num_workers: int | None) -> int:
    """Encoded segments that may wait, for so many workers on a cluster; None for everything in this process."""
    return IN_FLIGHT_IN_PROCESS if num_workers is None else IN_FLIGHT_PER_WORKER * num_workers


def run_job(job: PerplexityJob, console: Console) -> dict[str, Any]:
    """Run (or resume) a job; returns its summary: a FinishedSummary where there was nothing left to do, and nothing
    was changed. Every LongMemError that ends it leaves the folder resumable.

    Raises ConfigError, OutputError (also where a document of a finished job has changed), ModelError, StoreError,
    ClusterError.
    """
    files = find_inputs(job.inputs, console)
    if job.service is not None:
        job = on_service(job, job.service)
    with JobFolder(job.out, job.resume) as folder:
        begun = folder.stored_identity()
        if begun is not None and not job.threads_given:
            job = job.with_threads(begun.get("threads", job.threads))
        # which model a service has is only known on its cluster
        asked = None if job.service else {**_given(job, files), "model": asked_model(job.model)}
        if asked is not None and (finished := folder.finished(RESULTS, asked)) is not None:
            return _unchanged(job, files, folder, finished)
        with open_executor(job, lambda text: console.print(escape(text), soft_wrap=True)) as executor:
            model = executor.describe()
            job_id = folder.claim(identity(job, files, model), asked)
            if (finished := folder.finished(RESULTS)) is not None:
                return _unchanged(job, files, folder, finished)
            with (
                folder.open_journal() as journal,
                JobReporter(
                    folder, job_id, on_cluster=bool(job.cluster), store_limit_bytes=job.store_quota_bytes
                ) as reporter,
            ):
                resumed = bool(journal.documents)
                reporter.log.started(job.command, resumed)
                slices = Slices(job.out)
                totals = _score(job, files, executor, model, journal, job_id, reporter, slices, console)
                summary = _write_results(job, folder, journal, model, totals, resumed, files.left_out)
        if not job.keep_memory and job.store is None:
            shutil.rmtree(job.out / MEMORY_FOLDER, ignore_errors=True)
    return summary


def open_executor(job: PerplexityJob, tell: Callable[[str], None] = lambda _text: None) -> AbstractExecutor:
    """The service's workers, those of the job on Ray, or this process. `tell` gets what the user should know
    meanwhile."""
    if job.service is not None:
        return attach_to(job.service, job, tell)
    return start_executor(job.model, job.store_settings, job.cluster, job.threads, tell)


def identity(job: PerplexityJob, files: FoundFiles, model: ModelDescription) -> dict[str, Any]:
    """What decides the results of a job. Where it runs and with how many workers does not."""
    return {
        **_given(job, files),
        "model": {**asdict(model.fingerprint), "sidenet": model.sidenet},
        "settings": model.settings,
    }


def _given(job: PerplexityJob, files: FoundFiles) -> dict[str, Any]:
    """The part of a job's identity that the command gives."""
    return {
        "job": "perplexity",
        "inputs": [file.shown for file in files],
        "limit_documents": job.limit_documents,
        "search": job.model.search,
        "write_memory": job.write_memory,
        "keep_tokens": job.keep_tokens,
        "threads": job.threads,
    }


def _unchanged(job: PerplexityJob, files: FoundFiles, folder: JobFolder, finished: FinishedSummary) -> FinishedSummary:
    """A finished job, after its texts were compared with those that it had. Raises OutputError for others."""
    with folder.open_journal() as journal:
        known = {name: record.text_digest for name, record in journal.documents.items()}
    seen = {each.id: each.digest if isinstance(each, Document) else str(each.error) for each in _documents(job, files)}
    if changed := sorted(name for name in {*known, *seen} if known.get(name) != seen.get(name)):
        raise OutputError(
            f"{job.out} holds a finished job, and {printable(changed[0])} has changed since the job began"
            + (f" (and {len(changed) - 1:,} other documents)" if len(changed) > 1 else "")
            + "; the results stay as they are: restore the text, or begin a new job in another folder"
        )
    if not job.keep_memory and job.store is None:
        # left where a job was killed between its last result and its end
        shutil.rmtree(job.out / MEMORY_FOLDER, ignore_errors=True)
    return finished


def _score(
    job: PerplexityJob,
    files: FoundFiles,
    executor: AbstractExecutor,
    model: ModelDescription,
    journal: Journal,
    job_id: str,
    reporter: JobReporter,
    slices: Slices,
    console: Console,
) -> RunTotals:
    settings = model.settings
    tokenizer = job.model.open_tokenizer()
    # a job that keeps nothing must not meet documents that other jobs put into the same store
    namespace = (job.namespace or DEFAULT_NAMESPACE) if job.keep_memory else f"job-{job_id}"
    scheduler = SegmentScheduler(
        job.limits,
        model.segment_bytes,
        settings["segment_tokens"],
        settings["memory_tokens"],
        job.write_memory,
        job.keep_memory,
    )
    feed = DocumentFeed(
        _documents(job, files),
        tokenizer,
        settings["segment_tokens"],
        namespace,
        needs_work=lambda document: not _is_scored(journal, document),
    )

    def record(totals: RunTotals) -> None:
        if slices.is_due:
            slices.record(asdict(totals))

    try:
        with Progress(console, total_tokens=None) as progress:
            run = PerplexityRun(
                executor,
                scheduler,
                journal,
                Observers([progress, reporter]),
                keep_memory=job.keep_memory,
                keep_tokens=job.keep_tokens,
                num_unscored_tokens=0 if tokenizer.start_token is not None else 1,
                admit_below=2 * (job.cluster.encoders if job.cluster else 1),
                trim_every=TRIM_EVERY if job.retention == "window" and job.write_memory else None,
                record=record,
            )
            try:
                run.run(feed)
            except BaseException:
                # what ended the run matters more, and may be the reason why nothing can be written
                with suppress(OutputError):
                    slices.record(asdict(run.totals))
                raise
    finally:
        feed.close()
    slices.record(asdict(run.totals))
    total = slices.total(asdict(run.totals))
    return RunTotals({stage: StageTotals(**total["stages"][stage]) for stage in STAGES}, total["wall_s"])


def _documents(job: PerplexityJob, files: FoundFiles) -> Iterator[Document | UnreadableDocument]:
    documents = read_documents(files) if files else iter([language_reference()])
    return islice(documents, job.limit_documents)


def _is_scored(journal: Journal, document: Document) -> bool:
    record = journal.documents.get(document.id)
    return record is not None and record.status == "scored"


def _write_results(
    job: PerplexityJob,
    folder: JobFolder,
    journal: Journal,
    model: ModelDescription,
    totals: RunTotals,
    resumed: bool,
    left_out: LeftOut,
) -> dict[str, Any]:
    documents = sorted(journal.documents.values(), key=lambda record: record.order)
    scored = [record for record in documents if record.status == "scored"]
    segments = [segment for record in scored for segment in journal.scored(record.document)]
    cluster = job.cluster
    summary = summarise(
        command=job.command,
        model=model,
        executor={
            "address": cluster.address if cluster else "none",
            "service": job.service.name if job.service else None,
            "encoders": cluster.encoders if cluster else 0,
            "readers": cluster.readers if cluster else 0,
            "stores": cluster.stores if cluster else 0,
            "threads": job.threads,
            "search": job.model.search,
        },
        totals=totals,
        resumed=resumed,
        documents=documents,
        segments=segments,
        left_out=left_out.as_dict(),
    )
    tables = {"documents": documents_table(journal, documents), "segments": segments_table(segments)}
    if job.keep_tokens:
        tables["tokens"] = tokens_table(segments)
    for name, table in tables.items():
        folder.write_table(f"{name}.parquet", table)
    write_report(job.out, summary, tables["documents"], tables["segments"])
    folder.write_json(RESULTS, summary)
    return summary
