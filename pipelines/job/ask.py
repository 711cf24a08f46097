# SPDX-License-Identifier: Apache-2.0
"""Jobs of requests, and the bounded dispatch of their requests to an executor's workers."""

import shutil
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from actors.config import ClusterShape
from longmem.errors import LongMemError
from longmem.model.source import ModelSource
from longmem.runtime.executor import AbstractExecutor
from longmem.runtime.requests import Request
from longmem.store.config import IN_MEMORY, StoreSettings
from pipelines.command.command_line import num_cores
from pipelines.job.executors import MEMORY_FOLDER, open_workers
from pipelines.job.folder import JobFolder
from pipelines.job.journal import JOURNAL
from pipelines.job.observer import JobObserver
from pipelines.job.requested_model import describe_request
from pipelines.job.service import ServiceChoice, find_parts
from pipelines.job.spec import AbstractJob, Tell

WAIT_S = 0.2
"""Longest wait for the workers, in seconds; Ctrl-C is checked between waits."""

T = TypeVar("T")


def _raise(_tag: Any, error: LongMemError) -> None:
    raise error


def ask_all(
    executor: AbstractExecutor,
    requests: Iterable[tuple[T, Request]],
    observer: JobObserver,
    answered: Callable[[T, Any, float], None],
    turned: Callable[[], None] = lambda: None,
    failed: Callable[[T, LongMemError], None] = _raise,
) -> None:
    """Send every request and pass its tag, result and compute seconds to `answered`, in order of completion.

    `requests` is consumed lazily, as workers become free: all requests together may be as large as the text of the job.
    `turned` is called several times a second. `failed` takes the error of a request; by default the first is raised.
    """
    left = iter(requests)
    following = next(left, None)
    running: dict[int, tuple[T, str]] = {}
    while following is not None or running:
        while following is not None and executor.slots("encode") > 0:
            tag, request = following
            running[executor.ask(request, partial(observer.stepped, str(request)))] = tag, str(request)
            following = next(left, None)
        executor.wait(WAIT_S)
        for answer in executor.answers():
            tag, name = running.pop(answer.number)
            observer.request_ended(name)
            if answer.error is not None:
                failed(tag, answer.error)
            else:
                answered(tag, answer.result, answer.busy_s)
        for event in executor.events():
            observer.worker_event(event)
        observer.turned()
        turned()


class RequestSpec(Protocol):
    """Options that every job of requests has."""

    @property
    def out(self) -> Path: ...
    @property
    def model(self) -> ModelSource: ...
    @property
    def cluster(self) -> ClusterShape | None: ...
    @property
    def service(self) -> ServiceChoice | None: ...
    @property
    def workers(self) -> int: ...
    @property
    def threads(self) -> int | None: ...
    @property
    def resume(self) -> bool: ...
    @property
    def command(self) -> str: ...


S = TypeVar("S", bound=RequestSpec)


def on_service(spec: S) -> S:
    """Return the options with what their service decides, where there is one. Raises ClusterError where it is gone."""
    if spec.service is None:
        return spec
    parts = find_parts(spec.service)
    shared: Any = spec
    changed: S = replace(shared, model=parts.model, cluster=parts.cluster, threads=parts.cluster.threads)
    return changed


class RequestJob(AbstractJob[AbstractExecutor], Generic[S]):
    """A job of requests that reads no stored document; it runs in one process, on Ray, or on a service."""

    def __init__(self, spec: S) -> None:
        self._spec = spec
        self.out, self.resume, self.command = spec.out, spec.resume, spec.command
        self.on_cluster = spec.cluster is not None

    def requested_model(self) -> dict[str, Any] | None:
        return None if self._spec.service else describe_request(self._spec.model)

    def store(self) -> StoreSettings:
        """Return a store for a job that keeps nothing: in memory, or a folder where workers are other processes."""
        in_process = self._spec.cluster is None
        return StoreSettings(IN_MEMORY if in_process else str(self.out.absolute() / MEMORY_FOLDER))

    def cluster(self) -> ClusterShape | None:
        """Return where the job runs; None for this process."""
        return self._spec.cluster

    def open(self, tell: Tell) -> AbstractExecutor:
        spec = self._spec
        threads = spec.threads or max(1, num_cores() // spec.workers)
        return open_workers(spec.model, self.store(), self.cluster(), spec.service, threads, tell, spec.workers)

    def is_resumed(self, folder: JobFolder) -> bool:
        return folder.has_results_in(JOURNAL)

    def clean_up(self) -> None:
        shutil.rmtree(self.out / MEMORY_FOLDER, ignore_errors=True)
