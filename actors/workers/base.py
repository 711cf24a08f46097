"""What all actors of the pools have in common: where they run, that they live, and that one at a time can be ended."""

import ctypes
import os
import signal
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import psutil
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from actors.result import TaskResult, run_task

NAMESPACE = "longmem"
"""Ray namespace of every named actor of the project, so that any job can find those of a service."""

RESTART = {"max_restarts": -1, "max_task_retries": 0}
"""Ray starts a lost actor again, for ever: it notices a lost node only after 15 s, when finite restarts are used up.
Lost tasks are repeated by the driver, which can send them to another actor and knows when a document is to blame."""

HEALTH = {"health": 1}
"""A concurrency group of its own, so that the answer to `alive` never waits for work."""

UNTIL_DONE = -1
"""For calls that may be repeated at will: Ray repeats them itself while the actor starts again."""


M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Options of the C library's `mallopt`."""

KEPT_BYTES = 2**29
"""Freed memory that a worker's process may keep; more than the intermediate results of a segment take."""

LARGEST_IN_HEAP_BYTES = 2**25
"""The most that the C library allows."""


def keep_freed_memory() -> None:
    """Have the C library use freed memory again instead of giving it back to the system, where it can be told so.

    Ray runs tasks in threads, whose heaps it otherwise trims after each large tensor: a reader had 40,000 page faults a
    second, which took it 12% of its time.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)
        mallopt(M_MMAP_THRESHOLD, LARGEST_IN_HEAP_BYTES)


@dataclass(frozen=True)
class WorkerInfo:
    """One incarnation of an actor."""

    pid: int
    created_s: float
    """When the process began: pids are used again."""
    node_id: str
    result: Any
    """What the actor says of what it has opened."""


def here(result: Any) -> WorkerInfo:
    process = psutil.Process()
    return WorkerInfo(process.pid, process.create_time(), ray.get_runtime_context().get_node_id(), result)


def opened(work: Callable[[], Any]) -> TaskResult:
    """Outcome of an actor's `ready`: where it is, with what `work` returned."""
    return run_task(lambda: here(work()))


@ray.remote(num_cpus=0, max_retries=0)
def _kill(pid: int, created_s: float) -> None:
    # one that has ended by itself is what was wanted
    with suppress(psutil.NoSuchProcess, ProcessLookupError):
        if psutil.Process(pid).create_time() == created_s:
            os.kill(pid, signal.SIGKILL)


def kill_process(info: WorkerInfo) -> Any:
    """SIGKILL the process on its own node; returns a reference that resolves when that is done. `ray.kill` would ask
    the process itself, and a stopped one does not listen."""
    strategy = NodeAffinitySchedulingStrategy(info.node_id, soft=False)
    return _kill.options(scheduling_strategy=strategy).remote(info.pid, info.created_s)
