# SPDX-License-Identifier: Apache-2.0
"""Envelope of a worker's answer: a result or an expected error, and the compute time."""

from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter
from typing import Any

from longmem.errors import LongMemError


@dataclass(frozen=True)
class TaskResult:
    """Result of one task. Expected errors are values, because Ray wraps exceptions and loses their type."""

    result: Any
    error: LongMemError | None
    busy_s: float
    """Seconds of computation in the worker."""


def run_task(work: Callable[[], Any]) -> TaskResult:
    """Run `work` and return its timed result. A LongMemError becomes part of it; any other exception is a bug and is
    raised."""
    start = perf_counter()
    try:
        result, error = work(), None
    except LongMemError as caught:
        result, error = None, caught
    return TaskResult(result, error, perf_counter() - start)
