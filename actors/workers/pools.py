"""A pool of identical actors with a bounded number of tasks each.

Not `ray.util.ActorPool`: that one loses the task and shrinks when an actor dies, and keeps one task per actor, so
that each worker idles for a round trip after every task.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import ray

from actors.workers.base import WorkerInfo

TASKS_PER_ACTOR = 2
"""One running and one waiting: hides the round trip, and bounds what a slow worker can hold back. Since every job keeps
to it, jobs that share a pool get equal numbers of tasks through it: each actor works in the order of arrival."""


@dataclass(eq=False)
class Worker:
    """One actor as the driver sees it."""

    actor: Any
    name: str
    info: WorkerInfo | None = None
    """None while it starts, or starts again."""
    tasks: list[Any] = field(default_factory=list)
    """Sent and not ended, in order: the first one is in the actor's hands."""
    exclusive: bool = False
    """Its task must have no company, so that it is known who ended the actor if it ends."""
    first_since_s: float = 0.0
    """Since when (monotonic) the first task is the first."""
    crash_suspect: Any = None
    """The task that ended the actor when it was last lost; None if it had several, of which any may be to blame."""
    overdue: bool = False
    """This incarnation is killed because its first task takes too long."""
    killed: bool = False
    """This incarnation was killed by us, and its calls have not failed yet."""
    gone: bool = False
    """Ended for good: Ray will not start it again."""


class ActorPool:
    """Chooses who gets a task; the order of tasks is kept within an actor."""

    def __init__(self, actors: list[Any], names: list[str]) -> None:
        assert len(actors) == len(names), f"{len(actors)} actors, {len(names)} names"
        self.workers = [Worker(actor, name) for actor, name in zip(actors, names, strict=True)]

    @property
    def usable(self) -> list[Worker]:
        return [worker for worker in self.workers if worker.info is not None]

    @property
    def slots(self) -> int:
        """Tasks that can be sent before every usable actor has its fill."""
        return sum(TASKS_PER_ACTOR - len(worker.tasks) for worker in self.usable if not worker.exclusive)

    @property
    def can_accept_tasks(self) -> bool:
        """Whether every task could be sent, sooner or later, as things are."""
        return any(worker.info is not None for worker in self.workers)

    @property
    def ended(self) -> bool:
        """Whether some task can never be sent again."""
        return all(worker.gone for worker in self.workers)

    def choose(self, rank: Callable[[Worker], Any] = lambda _worker: 0, exclusive: bool = False) -> Worker | None:
        """The usable actor with room that has the lowest `rank`, then the least load; None if all are full. A task that
        must be `alone` gets an idle one."""
        most = 0 if exclusive else TASKS_PER_ACTOR - 1
        free = [worker for worker in self.usable if len(worker.tasks) <= most and not worker.exclusive]
        return min(free, key=lambda worker: (rank(worker), len(worker.tasks)), default=None)

    def stop(self) -> None:
        """End the actors without waiting for their tasks."""
        for worker in self.workers:
            ray.kill(worker.actor)
