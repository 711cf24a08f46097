"""Who runs the SideNet's layers that need no memory: readers, or encoders while these are ahead.

Encoders that are ahead would soon wait for readers. How far they may be ahead is more than a store holds back in one
group of puts, which is no work that waits for a reader yet. In the end both are to be ready together: so when no more
segments are left to encode than are still to be read, encoders prepare all of them.
"""

from actors.workers.pools import TASKS_PER_ACTOR, Worker
from actors.workers.start import Workers
from longmem.runtime.executor import PUT_SEGMENTS


class PreparePolicy:
    """Told of each task that is sent, before its worker has it. A worker that gets one while it has none has waited."""

    def __init__(self, workers: Workers) -> None:
        self._workers = workers
        self._encoders_wait = False
        self.unscored_segments = 0
        """Segments that are encoded and still to be scored."""
        self.unsubmitted_segments: int | None = None
        """At most so many segments are still to be submitted for encoding, where that is known."""

    def set_backlog(self, unscored_segments: int, unsubmitted_segments: int | None) -> None:
        self.unscored_segments, self.unsubmitted_segments = unscored_segments, unsubmitted_segments

    def encodes(self, worker: Worker) -> bool:
        """An encoder gets a segment; returns whether it is to prepare it."""
        readers = self._workers.readers.workers
        if not worker.tasks and any(reader.tasks for reader in readers):
            # fewer than are enough here may be all that a job holds
            self._encoders_wait = True
        enough = PUT_SEGMENTS + TASKS_PER_ACTOR * len(readers)
        if self.unsubmitted_segments is not None:
            enough = min(enough, self.unsubmitted_segments)
        return self._encoders_wait or self.unscored_segments > enough

    def scores(self, worker: Worker) -> None:
        """A reader gets a segment."""
        if not worker.tasks and any(encoder.tasks for encoder in self._workers.encoders.workers):
            self._encoders_wait = False
