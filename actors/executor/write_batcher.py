# SPDX-License-Identifier: Apache-2.0
"""Batching of writes: a commit costs the same for one small block or eight.

A store that commits every segment separately takes CPU time from the models. While readers have a backlog, delaying a
write does not reduce throughput. A store then commits again after a pause that is long compared with its last commit.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from math import inf

from actors.executor.model_check import ModelCheck
from actors.executor.routing import Router
from actors.executor.tasks import SegmentTask, Task
from actors.result import TaskResult
from actors.workers.pools import TASKS_PER_ACTOR, PoolWorker
from longmem.errors import LongMemError

PAUSE = 20
"""Pause between commits as a multiple of the last commit: commits take at most about 1/20 of a store's time."""
MOST_WAIT_S = 1.0
"""Upper bound of the pause, for slow disks: readers wait for delayed writes."""


def pause_s(busy_s: float) -> float:
    """Return the seconds for which a store batches writes after a commit that took `busy_s`."""
    return min(PAUSE * busy_s, MOST_WAIT_S)


@dataclass(eq=False)
class PutBatch(Task):
    """Puts to one store that share a commit."""

    members: list[SegmentTask]

    def __post_init__(self) -> None:
        self.exclusive = any(member.exclusive for member in self.members)

    def __str__(self) -> str:
        return f"{len(self.members)} puts, the first one {self.members[0]}"

    def outcomes(self, result: TaskResult) -> list[TaskResult]:
        """Return the result of each member, in their order; all get the error of a store that could not be opened."""
        busy_s = result.busy_s / len(self.members)
        if result.error is not None:
            return [TaskResult(None, result.error, busy_s)] * len(self.members)
        return [
            TaskResult(None, each, busy_s) if isinstance(each, LongMemError) else TaskResult(each, None, busy_s)
            for each in result.result
        ]


class WriteBatcher:
    """Groups waiting puts into batches, bounded by number and bytes, and tracks the pause of each store."""

    def __init__(self, router: Router, clock: Callable[[], float], model: ModelCheck) -> None:
        self._router = router
        self._clock = clock
        self._model = model
        self._pause_ends_s: dict[PoolWorker, float] = {}
        self.wait_s = inf
        """Seconds until one of the batches that the last `take` left is due."""

    def slots(self, num_stores: int) -> int:
        """Return how many puts so many stores take before their queues are full."""
        return self._model.put_segments * TASKS_PER_ACTOR * num_stores

    def ended(self, store: PoolWorker, busy_s: float) -> None:
        """Record that the store has committed, which took `busy_s`."""
        self._pause_ends_s[store] = self._clock() + pause_s(busy_s)

    def take(self, waiting: deque[Task], may_wait: bool) -> list[tuple[PoolWorker, PutBatch]]:
        """Remove from `waiting` and return the batches to be sent now.

        `may_wait` allows to wait for further puts, except in one pass, where encoders wait for them.
        """
        may_wait = may_wait and not self._model.one_pass
        by_store: dict[PoolWorker, list[SegmentTask]] = {}
        for task in waiting:
            assert isinstance(task, SegmentTask), f"{task} is no put"
            store = self._router.choose("put", task.segment.key, None, task.exclusive)
            if store is not None and not (task.exclusive and by_store):
                by_store.setdefault(store, []).append(task)
            if task.exclusive:
                # it is sent once those before it are gone; those behind it would keep every store busy
                break
        self.wait_s = inf
        taken = []
        most = self._model.put_segments
        for store, puts in by_store.items():
            num_whole = len(puts) // most
            for first in range(0, len(puts), most):
                group = PutBatch("put", puts[first : first + most])
                whole = len(group.members) == most
                wait_s = 0.0 if whole else self._wait_of(store, len(store.tasks) + num_whole, may_wait)
                if wait_s > 0:
                    self.wait_s = min(self.wait_s, wait_s)
                else:
                    taken.append((store, group))
        for _, group in taken:
            for put in group.members:
                waiting.remove(put)
        return taken

    def _wait_of(self, store: PoolWorker, num_before: int, may_wait: bool) -> float:
        """Return the seconds until a partial batch is due, with `num_before` batches before it.

        One batch may queue behind the running one, so that the store never idles; more would not be faster.
        """
        if not may_wait:
            return inf if num_before >= TASKS_PER_ACTOR else 0.0
        return inf if num_before else max(0.0, self._pause_ends_s.get(store, 0.0) - self._clock())
