# SPDX-License-Identifier: Apache-2.0
"""A pool of identical actors with a bounded number of tasks each.

Replaces `ray.util.ActorPool`, which loses the task and the actor when an actor dies. It also keeps one task per actor,
so that each worker idles for a round trip after every task.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import ray

from actors.workers.base import WorkerInfo
from actors.workers.running import Ticket

TASKS_PER_ACTOR = 2
"""Tasks per actor: one running and one queued. Hides the round trip, and bounds what a slow worker delays. Actors work
in order of arrival, so jobs that share a pool complete equal numbers of tasks."""


@dataclass(eq=False)
class PoolWorker:
    """State of one actor in the driver."""

    actor: Any
    name: str
    info: WorkerInfo | None = None
    """Current process of the actor; None while it starts or restarts."""
    tasks: list[Any] = field(default_factory=list)
    """Tasks sent and not ended, in order; the actor executes the first."""
    exclusive: bool = False
    """True while its only task must not share the actor with others of its job."""
    first_since_s: float = 0.0
    """Monotonic time at which the first task became the first, or was last seen to wait or run."""
    crash_suspect: Any = None
    """This driver's only task when the actor last died, or None if there were several; for deaths without a record."""
    running: Ticket | None = None
    """Task, of any job, that it ran at the last liveness check; None if there was none."""
    running_since_s: float = 0.0
    """Monotonic time at which that task was first seen."""
    killed: bool = False
    """True if this process was killed by the driver, and its calls have not failed yet."""
    gone: bool = False
    """True if Ray will not restart the actor."""


class ActorPool:
    """Identical actors of one stage. Tasks of one actor keep their order."""

    def __init__(self, actors: list[Any], names: list[str]) -> None:
        assert len(actors) == len(names), f"{len(actors)} actors, {len(names)} names"
        self.workers = [PoolWorker(actor, name) for actor, name in zip(actors, names, strict=True)]

    @property
    def usable(self) -> list[PoolWorker]:
        """Workers with a running process."""
        return [worker for worker in self.workers if worker.info is not None]

    @property
    def slots(self) -> int:
        """Number of tasks that can be sent before every usable actor is full."""
        return sum(TASKS_PER_ACTOR - len(worker.tasks) for worker in self.usable if not worker.exclusive)

    @property
    def can_accept_tasks(self) -> bool:
        """True if at least one worker is usable."""
        return any(worker.info is not None for worker in self.workers)

    @property
    def ended(self) -> bool:
        """True if some task can never be sent again."""
        return all(worker.gone for worker in self.workers)

    def choose(
        self, rank: Callable[[PoolWorker], Any] = lambda _worker: 0, exclusive: bool = False
    ) -> PoolWorker | None:
        """Return the usable actor with the lowest `rank`, then the fewest tasks; None if all are full.

        An `exclusive` task gets an idle actor.
        """
        most = 0 if exclusive else TASKS_PER_ACTOR - 1
        free = [worker for worker in self.usable if len(worker.tasks) <= most and not worker.exclusive]
        return min(free, key=lambda worker: (rank(worker), len(worker.tasks)), default=None)

    def stop(self) -> None:
        """End the actors without waiting for their tasks."""
        for worker in self.workers:
            ray.kill(worker.actor)
