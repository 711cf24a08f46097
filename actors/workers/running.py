# SPDX-License-Identifier: Apache-2.0
"""The task that a worker process runs, recorded in a mapped file that outlives the process.

Workers of a service run tasks of several jobs, and a job sees its own only. When a process dies, each job reads the
record, so the death is charged to the task that ran and to no other. What a process wrote into a mapped file is in the
page cache of its node, where SIGKILL does not reach it. The records lie in Ray's session folder, one for each process.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache
from mmap import mmap
from pathlib import Path
from socket import gethostname
from struct import calcsize, pack, unpack
from typing import Any

import psutil
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from actors.result import TaskResult, run_task
from longmem.errors import ClusterError
from longmem.runtime.steps import Step
from longmem.wording import reason_of

FIELDS = "<16sqd"
"""Job, number and deadline of a ticket; a text, because Ray pickles what `_read` uses, and a Struct cannot be."""
EMPTY, WRITTEN = 0, 1
"""First byte of a record. It is written last, so a process that dies meanwhile leaves no half of a ticket."""


@dataclass(frozen=True)
class Ticket:
    """Identity of a task among those of all jobs."""

    job: str
    """Random name of the executor that sent it: 16 hexadecimal digits."""
    number: int
    deadline_s: float
    """Time that it may run, in seconds."""
    step: Step | None = field(default=None, compare=False)
    """Newest step of a running request that has steps; not recorded."""


@dataclass(frozen=True)
class Alive:
    """Answer of a process to a liveness check."""

    pid: int
    created_s: float
    """Unix time at which the process began."""
    node_id: str
    running: Ticket | None
    """Task that it runs; None between two tasks."""


@cache
def begun_s() -> float:
    """Return the Unix time at which this process began, the same in every call.

    psutil adds the time since the start of the system to that of the start, which a step of the clock moves.
    """
    began: float = psutil.Process().create_time()
    return began


class RunningTask:
    """Record of the task that this process runs. One thread writes it."""

    def __init__(self) -> None:
        self.ticket: Ticket | None = None
        """The running task; None between two tasks."""
        self._record: mmap | None = None

    def run(self, ticket: Ticket, work: Callable[[], Any]) -> TaskResult:
        """Return the result of `run_task`; the record holds `ticket` meanwhile. Costs microseconds.

        The result is a ClusterError, and `work` does not run, where the record cannot be made. That is no fault of the
        task, and an exception would count as one.
        """
        try:
            record = self._mapped()
        except ClusterError as error:
            return TaskResult(None, error, 0.0)
        record[1 : 1 + calcsize(FIELDS)] = pack(FIELDS, ticket.job.encode(), ticket.number, ticket.deadline_s)
        record[0] = WRITTEN
        self.ticket = ticket
        try:
            return run_task(work)
        finally:
            self.ticket = None
            record[0] = EMPTY

    def alive(self) -> Alive:
        """Return which process this is, and what it runs."""
        return Alive(os.getpid(), begun_s(), ray.get_runtime_context().get_node_id(), self.ticket)

    def stepped(self, step: Step) -> None:
        """Add a step to the running task, where liveness checks read it."""
        assert self.ticket is not None, f"{step} of no task"
        self.ticket = replace(self.ticket, step=step)

    def _mapped(self) -> mmap:
        if self._record is None:
            path = _path(os.getpid(), begun_s())
            try:
                path.parent.mkdir(exist_ok=True)
                path.write_bytes(bytes(1 + calcsize(FIELDS)))
                with path.open("r+b") as file:
                    self._record = mmap(file.fileno(), 0)
            except OSError as error:
                raise ClusterError(
                    f"cannot record the running task in {path} on {gethostname()}: {reason_of(error)}; Ray keeps its "
                    "files there: make room, then continue the job"
                ) from error
        return self._record


def _path(pid: int, created_s: float) -> Path:
    context = ray.get_runtime_context()
    return Path(context.get_temp_dir(), context.get_session_name(), "longmem-running", f"{pid}-{created_s}")


@ray.remote(num_cpus=0, max_retries=0)
def _read(pid: int, created_s: float) -> Ticket | None:
    path = _path(pid, created_s)
    # a process that has begun no task has no record; one on a full disk has an empty file
    record = path.read_bytes() if path.exists() else b""
    if not record or record[0] == EMPTY:
        return None
    job, number, deadline_s = unpack(FIELDS, record[1:])
    return Ticket(job.decode(), number, deadline_s)


def last_ticket(pid: int, created_s: float, node_id: str) -> Any:
    """Return a reference to the Ticket that a dead process ran, or None if it ran none; reads it on its node.

    The reference raises a RayError if the node is gone.
    """
    strategy = NodeAffinitySchedulingStrategy(node_id, soft=False)
    return _read.options(scheduling_strategy=strategy).remote(pid, created_s)
