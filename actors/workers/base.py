# SPDX-License-Identifier: Apache-2.0
"""Common parts of all pool actors: Ray options, process information, liveness, and killing one process."""

import os
import signal
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import psutil
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from actors.result import TaskResult, run_task
from actors.workers.running import begun_s
from longmem.system.heap import keep_freed_memory
from longmem.system.imports import uncollected

NAMESPACE = "longmem"
"""Ray namespace of every named actor of the project, so that any job can find those of a service."""

RESTART = {"max_restarts": -1, "max_task_retries": 0}
"""Ray restarts a lost actor without limit: it notices a lost node only after 15 s, which would use up finite restarts.
The driver retries lost tasks, because it can choose another actor and detects documents that kill workers."""

HEALTH = {"health": 1}
"""Concurrency group of its own, so that `alive` never waits for other tasks."""

UNTIL_DONE = -1
"""`max_task_retries` of idempotent calls: Ray retries them itself while the actor restarts."""


def import_model(threads: int) -> None:
    """Import in a worker what a model needs, and set the heap and torch's threads.

    The modules of the actors do not import it: the driver, which imports them, starts its workers before torch.
    """
    keep_freed_memory()
    with uncollected():
        import torch

        import_module("longmem.memory.context")
        import_module("longmem.model.longmem")
    torch.set_num_threads(threads)


@dataclass(frozen=True)
class WorkerInfo:
    """One process of an actor. A restarted actor has another."""

    pid: int
    created_s: float
    """Unix time at which the process began; distinguishes processes with a reused pid."""
    node_id: str
    result: Any
    """Description of the model or store that the actor opened; its type depends on the stage."""


def here(result: Any) -> WorkerInfo:
    """Return the WorkerInfo of this process."""
    return WorkerInfo(os.getpid(), begun_s(), ray.get_runtime_context().get_node_id(), result)


def opened(work: Callable[[], Any]) -> TaskResult:
    """Run `work` as an actor's `ready`; the result is a WorkerInfo that holds what `work` returned."""
    return run_task(lambda: here(work()))


@ray.remote(num_cpus=0, max_retries=0)
def _kill(pid: int, created_s: float) -> None:
    # a process that is already gone is no error
    with suppress(psutil.NoSuchProcess, ProcessLookupError):
        if psutil.Process(pid).create_time() == created_s:
            os.kill(pid, signal.SIGKILL)


def kill_process(info: WorkerInfo) -> Any:
    """Send SIGKILL to the process from its own node. Return a reference that resolves afterwards.

    `ray.kill` needs the process to handle a message, which a stopped one does not.
    """
    strategy = NodeAffinitySchedulingStrategy(info.node_id, soft=False)
    return _kill.options(scheduling_strategy=strategy).remote(info.pid, info.created_s)
