# SPDX-License-Identifier: Apache-2.0
"""Data-parallel training: each worker reads its own rows, and all apply the sum of their gradients (gloo)."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from time import monotonic
from typing import Any

import ray
import torch.distributed as dist
from torch import Tensor

from actors.capacity import Room
from actors.cluster import connect, say_nothing
from actors.errors import translated
from actors.result import TaskResult, run_task
from longmem.errors import ConfigError
from longmem.model.source import ModelDescription
from longmem.system.redaction import redacted
from longmem.training.trainer import StepResult
from longmem.training.validation import Validation
from longmem.training.worker import TrainingTask, TrainingWorker

START_S = 600.0
"""Seconds that workers may wait for resources."""
TICK_S = 1.0
"""Seconds between two checks that the cluster is alive."""


@ray.remote
class TrainingActor:
    """One rank. It is not restarted: a run whose worker died resumes from its checkpoint."""

    def __init__(self, task: TrainingTask, rank: int, rows: Sequence[int]) -> None:
        self._task = task
        self._rank = rank
        self._rows = rows
        self._worker: TrainingWorker | None = None

    def __repr__(self) -> str:
        return f"Training(rank={self._rank}, rows={len(self._rows)}, model={redacted(self._task.model.source)})"

    def address(self) -> str:
        """Return the address at which rank 0 accepts the other ranks."""
        with dist_free_port() as port:
            return f"tcp://{ray.util.get_node_ip_address()}:{port}"

    def open(self, address: str, size: int) -> TaskResult:
        return run_task(lambda: self._open(address, size))

    def _open(self, address: str, size: int) -> ModelDescription:
        dist.init_process_group("gloo", init_method=address, rank=self._rank, world_size=size)
        self._worker = TrainingWorker(self._task, self._rows, _sum_over_workers)
        # the calibration of a new model differs in the last bits between CPU types
        for parameter in self._worker.model.sidenet.parameters():
            dist.broadcast(parameter.data, 0)
        return self._worker.describe()

    def call(self, method: str, *arguments: Any) -> TaskResult:
        """Run one method of the worker."""
        assert self._worker is not None, f"{self!r} was asked to {method} before it was opened"
        return run_task(lambda: getattr(self._worker, method)(*arguments))


def _sum_over_workers(tensor: Tensor) -> None:
    dist.all_reduce(tensor, op=dist.ReduceOp.SUM)


class dist_free_port:  # noqa: N801 - reads as a statement: `with dist_free_port() as port`
    """A free TCP port, held until it is about to be used."""

    def __enter__(self) -> int:
        import socket

        self._socket = socket.socket()
        self._socket.bind(("", 0))
        return int(self._socket.getsockname()[1])

    def __exit__(self, *_: object) -> None:
        self._socket.close()


class RayTraining:
    """Training on many workers behind the interface of one TrainingWorker. Raises ClusterError when a worker or the
    cluster is lost."""

    def __init__(
        self, task: TrainingTask, num_workers: int, address: str, tell: Callable[[str], None] = say_nothing
    ) -> None:
        """`tell` receives messages for the operator: the cluster, and that workers wait for resources."""
        if task.config.rows % num_workers:
            raise ConfigError(f"rows={task.config.rows} must be a multiple of the {num_workers} workers")
        num_cpus = num_workers * task.threads
        num_gpus = num_workers if task.model.device == "cuda" else 0
        self._actors: list[Any] = []
        self._connection = connect(address, num_cpus, None, tell)
        share = task.config.rows // num_workers
        actor = TrainingActor.options(num_cpus=task.threads, num_gpus=num_gpus // num_workers)  # type: ignore[attr-defined]
        try:
            with self._explained("starting the training workers"):
                own, advice = self._connection.started_here, self._connection.advice("--workers or --threads")
                room = Room(num_cpus, num_gpus, START_S, tell, advice, own=own)
                self._actors = [
                    actor.remote(task, rank, range(rank * share, (rank + 1) * share)) for rank in range(num_workers)
                ]
                meeting = self._meeting(room)
                opened = self._gather([each.open.remote(meeting, num_workers) for each in self._actors])
        except BaseException:
            self.close()
            raise
        self._description: ModelDescription = opened[0]

    def _meeting(self, room: Room) -> str:
        """Wait until every worker has started, and return the address of rank 0. Raises ClusterError after START_S."""
        waiting = [each.address.remote() for each in self._actors]
        first, deadline_s = waiting[0], monotonic() + START_S
        while waiting:
            _, waiting = ray.wait(waiting, num_returns=len(waiting), timeout=TICK_S)
            self._connection.watch.check()
            if waiting:
                room.waiting(len(waiting))
                if monotonic() > deadline_s:
                    raise room.exhausted(len(waiting), len(waiting) / len(self._actors))
        return str(ray.get(first))

    def describe(self) -> ModelDescription:
        return self._description

    def step(self) -> StepResult:
        result: StepResult = self._all("step")[0]
        return result

    def validate(self) -> Validation | None:
        """Validate on rank 0, while the others wait."""
        result: Validation | None = self._first("validate")
        return result

    def row_states(self) -> list[dict[str, int]]:
        return [state for states in self._all("row_states") for state in states]

    def save(self, folder: Path, row_states: list[dict[str, int]]) -> Path:
        path: Path = self._first("save", folder, row_states)
        return path

    def load(self, checkpoint: Path) -> int:
        step: int = self._all("load", checkpoint)[0]
        return step

    def export(self, folder: Path, trained_steps: int) -> None:
        self._first("export", folder, trained_steps)

    def close(self) -> None:
        if not self._connection.started_here and not self._connection.watch.lost:
            for actor in self._actors:
                ray.kill(actor)
        self._connection.close()

    @contextmanager
    def _explained(self, doing: str) -> Iterator[None]:
        """Translate Ray's errors, and name the loss of the cluster as the cause if it is lost."""
        with self._connection.watch.explaining(), translated(doing):
            yield

    def _all(self, method: str, *arguments: Any) -> list[Any]:
        with self._explained(f"training ({method})"):
            return self._gather([actor.call.remote(method, *arguments) for actor in self._actors])

    def _first(self, method: str, *arguments: Any) -> Any:
        with self._explained(f"training ({method})"):
            return self._gather([self._actors[0].call.remote(method, *arguments)])[0]

    def _gather(self, refs: list[Any]) -> list[Any]:
        """Return all results, or raise the first error at once: the other workers would block in the all-reduce that
        the failed one does not join."""
        pending = list(refs)
        while pending:
            ready, pending = ray.wait(pending, num_returns=1, timeout=TICK_S)
            self._connection.watch.check()
            for ref in ready:
                outcome: TaskResult = ray.get(ref)
                if outcome.error is not None:
                    for actor in self._actors:
                        ray.kill(actor)
                    raise outcome.error
        return [outcome.result for outcome in ray.get(refs)]
