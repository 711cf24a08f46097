# SPDX-License-Identifier: Apache-2.0
"""Bounded dispatch of requests to an executor's workers."""

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from longmem.runtime.executor import AbstractExecutor
from longmem.runtime.requests import Request
from pipelines.job.observer import JobObserver

WAIT_S = 0.2
"""Longest wait for the workers, in seconds; Ctrl-C is checked between waits."""

T = TypeVar("T")


def ask_all(
    executor: AbstractExecutor,
    requests: Iterable[tuple[T, Request]],
    observer: JobObserver,
    answered: Callable[[T, Any, float], None],
    turned: Callable[[], None] = lambda: None,
) -> None:
    """Send every request and pass its tag, result and compute seconds to `answered`, in order of completion.

    `requests` is consumed lazily, as workers become free: all requests together may be as large as the text of the job.
    `turned` is called several times a second. Raises the first error of a request.
    """
    left = iter(requests)
    following = next(left, None)
    running: dict[int, T] = {}
    while following is not None or running:
        while following is not None and executor.slots("encode") > 0:
            tag, request = following
            running[executor.ask(request)] = tag
            following = next(left, None)
        executor.wait(WAIT_S)
        for answer in executor.answers():
            tag = running.pop(answer.number)
            if answer.error is not None:
                raise answer.error
            answered(tag, answer.result, answer.busy_s)
        for event in executor.events():
            observer.worker_event(event)
        turned()
