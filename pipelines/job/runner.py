# SPDX-License-Identifier: Apache-2.0
"""Runner of all jobs: lock, resume, identity, status, log, metrics, progress and the order of writes.

lock folder ─► finished? ─► open workers ─► claim identity ─► finished? ─► run ─► results file (last)
                  └──────────────── nothing is changed ───────────┘
"""

from contextlib import ExitStack
from typing import Any, TypeVar

from rich.console import Console
from rich.markup import escape

from pipelines.command.console import is_verbose
from pipelines.job.event_log import EventNotes
from pipelines.job.folder import FinishedSummary, JobFolder
from pipelines.job.observer import JobObserver, Observers
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
    """Run (or resume) a job and return the content of its results file; None if a time limit ended the run.

    Return a FinishedSummary, without changing anything, if no work was left. The folder stays resumable after every
    LongMemError and after Ctrl-C.

    Raises ConfigError, OutputError, DocumentError, ModelError, StoreError, ClusterError, NumericError.
    """

    def tell(text: str) -> None:
        console.print(escape(text), soft_wrap=True)

    with JobFolder(job.out, job.resume) as folder:
        if (begun := folder.stored_identity()) is not None:
            job.adopt(begun)
        model_request = job.requested_model()
        requested = None if model_request is None else {**job.given(), "model": model_request}
        if requested is not None and (finished := folder.finished(job.results, requested)) is not None:
            return _unchanged(job, folder, finished)
        job.check_inputs(console)
        with job.open(tell) as worker:
            model = job.describe(worker)
            job_id = folder.claim(job.identity(model), requested)
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
                observers: list[JobObserver] = [progress, reporter]
                if is_verbose(console):
                    notes = EventNotes(progress.note)
                    notes.started(job_id, job.command, model)
                    observers.append(notes)
                context = JobContext(
                    folder=folder,
                    job_id=job_id,
                    worker=worker,
                    described=model,
                    observer=Observers(observers),
                    slices=Slices(job.out),
                    tell=progress.note,
                )
                reporter.log.started(job.command, job.is_resumed(folder))
                summary = job.run(context)
                if summary is None:
                    reporter.stopped_early()
                    return None
                # last: the results file marks a finished job
                folder.write_json(job.results, summary)
        job.clean_up()
    return summary


def _unchanged(job: AbstractJob[W], folder: JobFolder, finished: FinishedSummary) -> FinishedSummary:
    """Return the results of a finished job. Raises OutputError if its inputs have changed since."""
    job.check_unchanged(folder)
    # leftovers of a job that was killed between its last result and its clean-up
    job.clean_up()
    return finished
