"""Who runs the SideNet's layers that need no memory: readers, or encoders while these are ahead.

Encoders that are ahead would soon wait for readers. How far they may be ahead is more than one group of puts, or
readers would wait for groups to fill. In the end they are to be ready together: so when no more segments are left to
encode than wait for readers, encoders prepare all of them.
"""

from math import inf

from actors.pool import TASKS_PER_ACTOR, Worker
from actors.workers import Workers
from longmem.executor import PUT_SEGMENTS


class Balance:
    """Told of each task that is sent, before its worker has it. A worker that gets one while it has none has waited."""

    def __init__(self, workers: Workers) -> None:
        self._workers = workers
        self._encoders_wait = False
        self.num_left: float = inf
        """At most so many segments are to be encoded after this one."""

    def encodes(self, worker: Worker, num_unread: int) -> bool:
        """An encoder gets a segment while `num_unread` are encoded and not read; returns whether it prepares it."""
        readers = self._workers.readers.workers
        if not worker.tasks and any(reader.tasks for reader in readers):
            # fewer than are enough here may be all that a job holds
            self._encoders_wait = True
        enough = PUT_SEGMENTS + TASKS_PER_ACTOR * len(readers)
        return self._encoders_wait or num_unread > min(enough, self.num_left)

    def scores(self, worker: Worker) -> None:
        """A reader gets a segment."""
        if not worker.tasks and any(encoder.tasks for encoder in self._workers.encoders.workers):
            self._encoders_wait = False
