"""A pool of identical actors with a bounded number of tasks each.

Not `ray.util.ActorPool`: that one loses the task and shrinks when an actor dies, and keeps one task per actor, so
that each worker idles for a round trip after every task.
"""

from collections import Counter
from collections.abc import Callable
from typing import Any

import ray

TASKS_PER_ACTOR = 2
"""One running and one waiting: hides the round trip, and bounds what a slow worker can hold back."""

RESTART = {"max_restarts": -1, "max_task_retries": -1}
"""Finite retries are used up within seconds, while a lost node takes 15 s to be noticed."""


class ActorPool:
    """Sends each task to the least loaded actor; the order of tasks is kept within an actor."""

    def __init__(self, actors: list["ray.actor.ActorHandle"]) -> None:
        assert actors, "a pool needs at least one actor"
        self.actors = actors
        self._load: Counter[int] = Counter()

    @property
    def slots(self) -> int:
        """Tasks that can be sent before every actor has its fill."""
        return TASKS_PER_ACTOR * len(self.actors) - self._load.total()

    def send(self, call: Callable[["ray.actor.ActorHandle"], Any], choose: int | None = None) -> tuple[int, Any]:
        """Start a task on the least loaded actor (or on actor `choose`); returns the actor's index and the refs."""
        index = min(range(len(self.actors)), key=lambda i: (self._load[i], i)) if choose is None else choose
        self._load[index] += 1
        return index, call(self.actors[index])

    def ask_ready(self) -> list[Any]:
        """References to every actor's `ready()`: they load what they need, all at the same time."""
        return [actor.ready.remote() for actor in self.actors]

    def stop(self) -> None:
        """End the actors without waiting for their tasks."""
        for actor in self.actors:
            ray.kill(actor)

    def done(self, index: int) -> None:
        """Say that a task of actor `index` has ended."""
        assert self._load[index] > 0, f"actor {index} had no task"
        self._load[index] -= 1
