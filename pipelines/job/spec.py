"""The contract between one kind of job and what all jobs share (`pipelines.job.runner`)."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, TypeVar, cast

from rich.console import Console

from longmem.model.source import ModelDescription
from pipelines.job.folder import JobFolder
from pipelines.job.observer import JobObserver
from pipelines.job.reporter import JobReporter
from pipelines.job.work_slices import Slices

Tell = Callable[[str], None]
"""Receives one line for the operator."""


class Worker(Protocol):
    """What computes for a job that begins with a model: an executor, or the processes of a training."""

    def describe(self) -> ModelDescription: ...


W = TypeVar("W")
"""What computes for a job: a Worker, or anything else where the job brings its own `describe`."""


@dataclass(frozen=True, kw_only=True)
class JobContext(Generic[W]):
    """Everything that a job needs while it runs."""

    folder: JobFolder
    job_id: str
    worker: W
    described: ModelDescription | None
    observer: JobObserver
    """Display, log, status and metrics of the job."""
    reporter: JobReporter
    slices: Slices
    """Record of the work that earlier runs and this one have done."""
    console: Console
    tell: Tell

    @property
    def model(self) -> ModelDescription:
        """The model of a job that begins with one."""
        assert self.described is not None, f"{self.folder.path.name}: a job that makes its model has none to describe"
        return self.described


class AbstractJob(ABC, Generic[W]):
    """One kind of job with its checked options and its inputs.

    The runner owns the folder, its lock, resume, identity, redaction, status, log, metrics and progress. A job names
    what decides its results, opens what computes, and computes.
    """

    name: ClassVar[str]
    """Value of `job` in job.json."""
    results: ClassVar[str] = "summary.json"
    """File whose presence means that the job has finished."""

    out: Path
    resume: bool
    command: str
    on_cluster: bool
    """True where the job runs on Ray."""
    store_limit_bytes: int | None = None
    """Quota of the store, where there is one."""

    @abstractmethod
    def given(self) -> dict[str, Any]:
        """Return the part of the identity that the command and its data give, as JSON values."""

    @abstractmethod
    def requested_model(self) -> dict[str, Any] | None:
        """Return the requested model as far as it is known without loading it; None where only the cluster knows."""

    def describe(self, worker: W) -> ModelDescription | None:
        """Return the model before any work; None for a job that makes one."""
        return cast(Worker, worker).describe()

    def identity(self, model: ModelDescription | None) -> dict[str, Any]:
        """Return everything that decides the results. Where a job runs and with how many workers does not."""
        if model is None:
            return self.given()
        weights = {**asdict(model.fingerprint), "sidenet": model.sidenet}
        return {**self.given(), "model": weights, "settings": model.settings}

    def adopt(self, begun: dict[str, Any]) -> None:
        """Take over from the identity of the job to be resumed what the command leaves open."""

    def check_inputs(self, console: Console) -> None:
        """Find the inputs and print what is left out, once it is known that there is something to do."""

    @abstractmethod
    def open(self, tell: Tell) -> AbstractContextManager[W]:
        """Open what computes: this process, workers on Ray, or a service."""

    @abstractmethod
    def is_resumed(self, context: JobContext[W]) -> bool:
        """Return whether an earlier run has left results."""

    @abstractmethod
    def run(self, context: JobContext[W]) -> dict[str, Any] | None:
        """Do the work, write tables and report, and return the summary. None: a time limit ended the run before.

        Raises LongMemError for what the user can fix; what was done stays for `--resume`.
        """

    def check_unchanged(self, folder: JobFolder) -> None:
        """Raise OutputError where an input of a finished job has changed."""

    def clean_up(self) -> None:
        """Remove what only a running job needs."""
