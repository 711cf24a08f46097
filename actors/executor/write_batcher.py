"""When encoded segments go to a store: several at a time, because a commit costs the same for all of them.

A store that commits every segment alone takes a core that models could use. Waiting for company costs nothing while
readers have enough to do; and then a store commits again once the pause since its last commit is long beside that
commit.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from math import inf

from actors.executor.routing import Router
from actors.executor.tasks import SegmentTask, Task
from actors.result import TaskResult
from actors.workers.pools import TASKS_PER_ACTOR, Worker
from longmem.errors import LongMemError
from longmem.runtime.executor import PUT_SEGMENTS

PAUSE = 20
"""Times as long as its last commit a store waits for company: commits take at most about a twentieth of its time."""
MOST_WAIT_S = 1.0
"""Also for a slow disk: readers wait for what is held back."""


def pause_s(busy_s: float) -> float:
    """How long a store waits for company after a commit that took `busy_s`."""
    return min(PAUSE * busy_s, MOST_WAIT_S)


@dataclass(eq=False)
class PutBatch(Task):
    """Puts to one store that go together."""

    members: list[SegmentTask]

    def __post_init__(self) -> None:
        self.exclusive = any(member.exclusive for member in self.members)

    def __str__(self) -> str:
        return f"{len(self.members)} puts, the first one {self.members[0]}"

    def outcomes(self, of_all: TaskResult) -> list[TaskResult]:
        """What came of each, in their order; all have the error of a store that could not even be opened."""
        busy_s = of_all.busy_s / len(self.members)
        if of_all.error is not None:
            return [TaskResult(None, of_all.error, busy_s)] * len(self.members)
        return [
            TaskResult(None, result, busy_s) if isinstance(result, LongMemError) else TaskResult(result, None, busy_s)
            for result in of_all.result
        ]


class WriteBatcher:
    """Makes groups of puts that wait, and knows how long each store still pauses."""

    def __init__(self, router: Router, clock: Callable[[], float]) -> None:
        self._router = router
        self._clock = clock
        self._pause_ends_s: dict[Worker, float] = {}
        self.wait_s = inf
        """After `take`: how long until some that it has left are due."""

    def ended(self, store: Worker, busy_s: float) -> None:
        """The store has committed, which took `busy_s`."""
        self._pause_ends_s[store] = self._clock() + pause_s(busy_s)

    def take(self, waiting: deque[Task], may_wait: bool) -> list[tuple[Worker, PutBatch]]:
        """Groups that are to be sent now, out of `waiting`. `may_wait`: for others that come."""
        by_store: dict[Worker, list[SegmentTask]] = {}
        for task in waiting:
            assert isinstance(task, SegmentTask), f"{task} is no put"
            store = self._router.choose("put", task.segment.key, None, task.exclusive)
            if store is not None and not (task.exclusive and by_store):
                by_store.setdefault(store, []).append(task)
            if task.exclusive:
                # it goes alone, once those before it have gone; and those behind it would keep every store busy
                break
        self.wait_s = inf
        taken = []
        for store, puts in by_store.items():
            num_whole = len(puts) // PUT_SEGMENTS
            for first in range(0, len(puts), PUT_SEGMENTS):
                group = PutBatch("put", puts[first : first + PUT_SEGMENTS])
                whole = len(group.members) == PUT_SEGMENTS
                wait_s = 0.0 if whole else self._wait_of(store, len(store.tasks) + num_whole, may_wait)
                if wait_s > 0:
                    self.wait_s = min(self.wait_s, wait_s)
                else:
                    taken.append((store, group))
        for _, group in taken:
            for put in group.members:
                waiting.remove(put)
        return taken

    def _wait_of(self, store: Worker, num_before: int, may_wait: bool) -> float:
        """Seconds until it is to get fewer puts than a whole group, behind so many groups. Behind the one that it works
        on another may wait, so that it never has nothing to do; more would be no faster than one."""
        if not may_wait:
            return inf if num_before >= TASKS_PER_ACTOR else 0.0
        return inf if num_before else max(0.0, self._pause_ends_s.get(store, 0.0) - self._clock())
