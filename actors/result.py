"""What a worker sends back: a result or an expected error, and how long it computed."""

from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter
from typing import Any

from longmem.errors import LongMemError


@dataclass(frozen=True)
class TaskResult:
    """Expected errors travel as values: an exception would lose its type and arrive as a remote traceback."""

    result: Any
    error: LongMemError | None
    busy_s: float


def run_task(work: Callable[[], Any]) -> TaskResult:
    """Run `work`; LongMemErrors become part of the outcome, anything else is a bug and is raised."""
    start = perf_counter()
    try:
        result, error = work(), None
    except LongMemError as caught:
        result, error = None, caught
    return TaskResult(result, error, perf_counter() - start)
