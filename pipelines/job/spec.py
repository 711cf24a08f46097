# SPDX-License-Identifier: Apache-2.0
"""Contract between a kind of job and the shared runner (`pipelines.job.runner`)."""

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
from pipelines.job.work_slices import Slices

Tell = Callable[[str], None]
"""Callback that prints one line for the operator."""


class ComputeBackend(Protocol):
    """Executor, or processes of a training, of a job that begins with a model."""

    def describe(self) -> ModelDescription: ...


W = TypeVar("W")
"""Type of a job's compute backend: a ComputeBackend, or any type if the job overrides `describe`."""


@dataclass(frozen=True, kw_only=True)
class JobContext(Generic[W]):
    """Resources of a running job."""

    folder: JobFolder
    job_id: str
    worker: W
    described: ModelDescription | None
    observer: JobObserver
    """Receiver of the job's events for display, log, status and metrics."""
    slices: Slices
    """Work record of earlier runs and this one."""
    tell: Tell

    @property
    def model(self) -> ModelDescription:
        """Description of the model of a job that begins with one."""
        assert self.described is not None, f"{self.folder.path.name}: a job that makes its model has none to describe"
        return self.described


class AbstractJob(ABC, Generic[W]):
    """Kind of job with its checked options and inputs.

    The runner owns the folder, its lock, resume, identity, redaction, status, log, metrics and progress. A job
    gives its identity, opens its compute backend, and computes.
    """

    name: ClassVar[str]
    """Value of `job` in job.json."""
    results: ClassVar[str] = "summary.json"
    """Name of the results file, whose presence means that the job has finished."""

    out: Path
    resume: bool
    command: str
    on_cluster: bool
    """True if the job runs on Ray."""
    store_limit_bytes: int | None = None
    """Quota of the store in bytes; None for no quota."""

    @abstractmethod
    def given(self) -> dict[str, Any]:
        """Return the part of the identity that command and data determine, as JSON values."""

    @abstractmethod
    def requested_model(self) -> dict[str, Any] | None:
        """Return the requested model as described without loading it; None for none, or one on a cluster."""

    def describe(self, worker: W) -> ModelDescription | None:
        """Return the description of the model before any work; None for a job that creates the model."""
        return cast(ComputeBackend, worker).describe()

    def identity(self, model: ModelDescription | None) -> dict[str, Any]:
        """Return everything that decides the results. Place of execution and number of workers are not part of it."""
        if model is None:
            return self.given()
        weights = {**asdict(model.fingerprint), "sidenet": model.sidenet}
        return {**self.given(), "model": weights, "settings": model.settings}

    def adopt(self, begun: dict[str, Any]) -> None:
        """Set options that the command leaves open from the identity of the job to be resumed."""

    def check_inputs(self, console: Console) -> None:
        """Find the inputs and print what is skipped. Called only if work is left."""

    @abstractmethod
    def open(self, tell: Tell) -> AbstractContextManager[W]:
        """Open the compute backend: this process, workers on Ray, or a service."""

    @abstractmethod
    def is_resumed(self, folder: JobFolder) -> bool:
        """Return whether an earlier run has left results."""

    @abstractmethod
    def run(self, context: JobContext[W]) -> dict[str, Any] | None:
        """Do the work, write tables and report, and return the summary; None if a time limit ended the run.

        Raises LongMemError for errors that the user can fix; finished work stays for `--resume`.
        """

    def check_unchanged(self, folder: JobFolder) -> None:
        """Raise OutputError if an input of a finished job has changed."""

    def clean_up(self) -> None:
        """Remove files that only a running job needs."""
