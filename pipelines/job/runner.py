"""Runs any job: lock, resume, identity, status, log, metrics, progress and the order of what is written.

lock folder ─► finished? ─► open workers ─► claim identity ─► finished? ─► run ─► results file (last)
                  └──────────────── nothing is changed ───────────┘
"""

from contextlib import ExitStack
from typing import Any, TypeVar

from rich.console import Console
from rich.markup import escape

from pipelines.job.folder import FinishedSummary, JobFolder
from pipelines.job.observer import Observers
from pipelines.job.progress import JobProgress
from pipelines.job.reporter import JobReporter
from pipelines.job.spec import AbstractJob, JobContext
from pipelines.job.work_slices import Slices

W = TypeVar("W")


def run_to_end(job: AbstractJob[W], console: Console) -> dict[str, Any]:
    """Run (or resume) a job that has no time limit, and return the content of its results file. See `run`."""
    summary = run(job, console)
    assert summary is not None, f"{job.name} has ended early without a time limit"
    return summary


def run(job: AbstractJob[W], console: Console) -> dict[str, Any] | None:
    """Run (or resume) a job and return the content of its results file; None where a time limit ended it before.

    A FinishedSummary is returned where nothing was left to do, and nothing was changed. Every LongMemError that ends
    the job, and Ctrl-C, leaves the folder resumable.

    Raises ConfigError, OutputError, DocumentError, ModelError, StoreError, ClusterError, NumericError.
    """

    def tell(text: str) -> None:
        console.print(escape(text), soft_wrap=True)

    with JobFolder(job.out, job.resume) as folder:
        if (begun := folder.stored_identity()) is not None:
            job.adopt(begun)
        requested = job.requested_model()
        asked = None if requested is None else {**job.given(), "model": requested}
        if asked is not None and (finished := folder.finished(job.results, asked)) is not None:
            return _unchanged(job, folder, finished)
        job.check_inputs(console)
        with job.open(tell) as worker:
            model = job.describe(worker)
            job_id = folder.claim(job.identity(model), asked)
            if (finished := folder.finished(job.results)) is not None:
                return _unchanged(job, folder, finished)
            with ExitStack() as stack:
                reporter = stack.enter_context(
                    JobReporter(
                        folder,
                        job_id,
                        job.name,
                        on_cluster=job.on_cluster,
                        store_limit_bytes=job.store_limit_bytes,
                    )
                )
                progress = stack.enter_context(JobProgress(console))
                context = JobContext(
                    folder=folder,
                    job_id=job_id,
                    worker=worker,
                    described=model,
                    observer=Observers([progress, reporter]),
                    reporter=reporter,
                    slices=Slices(job.out),
                    console=console,
                    tell=progress.note,
                )
                reporter.log.started(job.command, job.is_resumed(context))
                summary = job.run(context)
                if summary is None:
                    reporter.stopped_early()
                    return None
                # last: a job whose results file is there has finished
                folder.write_json(job.results, summary)
        job.clean_up()
    return summary


def _unchanged(job: AbstractJob[W], folder: JobFolder, finished: FinishedSummary) -> FinishedSummary:
    """Return the results of a finished job. Raises OutputError where its inputs have changed since."""
    job.check_unchanged(folder)
    # left where a job was killed between its last result and its end
    job.clean_up()
    return finished
