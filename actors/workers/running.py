# SPDX-License-Identifier: Apache-2.0
"""The task that a worker process runs, recorded in a file that outlives the process.

Workers of a service run tasks of several jobs, and a job sees its own only. When a process dies, each job reads the
record, so the death is charged to the task that ran and to no other. What a process has written is in the page cache
of its node, where SIGKILL does not reach it. The records lie in Ray's session folder, 200 bytes for each process.
"""

import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from actors.result import TaskResult, run_task


@dataclass(frozen=True)
class Ticket:
    """Identity of a task among those of all jobs."""

    job: str
    """Random name of the executor that sent it."""
    number: int
    name: str
    """Stage and segment, or the request, for messages."""
    deadline_s: float
    """Time that it may run, in seconds."""


class RunningTask:
    """Record of the task that this process runs. One thread writes it."""

    def __init__(self) -> None:
        self.ticket: Ticket | None = None
        """The running task; None between two tasks."""
        self._path: Path | None = None

    def run(self, ticket: Ticket, work: Callable[[], Any]) -> TaskResult:
        """Return the result of `run_task`; the record names `ticket` meanwhile. Costs 0.1 ms."""
        self._write(ticket)
        try:
            return run_task(work)
        finally:
            self._write(None)

    def _write(self, ticket: Ticket | None) -> None:
        if self._path is None:
            self._path = _record(os.getpid(), psutil.Process().create_time())
            self._path.parent.mkdir(exist_ok=True)
        whole = self._path.with_suffix(".new")
        whole.write_text(json.dumps(ticket and asdict(ticket)))
        # a process that dies between two writes leaves the record before or after, never half of one
        whole.replace(self._path)
        self.ticket = ticket


def _record(pid: int, created_s: float) -> Path:
    context = ray.get_runtime_context()
    return Path(context.get_temp_dir(), context.get_session_name(), "longmem-running", f"{pid}-{created_s}.json")


@ray.remote(num_cpus=0, max_retries=0)
def _read(pid: int, created_s: float) -> Ticket | None:
    path = _record(pid, created_s)
    # a process that has begun no task has no record
    values = json.loads(path.read_text()) if path.exists() else None
    return values and Ticket(**values)


def last_ticket(pid: int, created_s: float, node_id: str) -> Any:
    """Return a reference to the Ticket that a dead process ran, or None if it ran none; reads it on its node.

    The reference raises a RayError if the node is gone.
    """
    strategy = NodeAffinitySchedulingStrategy(node_id, soft=False)
    return _read.options(scheduling_strategy=strategy).remote(pid, created_s)
