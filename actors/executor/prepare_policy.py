# SPDX-License-Identifier: Apache-2.0
"""Decides whether encoders or readers run the SideNet layers that need no memory.

Readers run them, until encoders are so far ahead that they would soon wait for readers. The threshold exceeds one batch
of puts, because segments that a store still holds back are no work for readers. Near the end both should finish
together: once no more segments are left to encode than to score, encoders prepare all of them.
"""

from actors.workers.pools import TASKS_PER_ACTOR, PoolWorker
from actors.workers.start import Workers
from longmem.runtime.executor import PUT_SEGMENTS


class PreparePolicy:
    """Policy that is updated before each task is sent. A worker that is idle when it gets a task has waited."""

    def __init__(self, workers: Workers) -> None:
        self._workers = workers
        self._encoders_wait = False
        self.unscored_segments = 0
        """Number of segments that are encoded and not scored."""
        self.unsubmitted_segments: int | None = None
        """Upper bound of segments still to be submitted for encoding; None if unknown."""

    def set_backlog(self, unscored_segments: int, unsubmitted_segments: int | None) -> None:
        self.unscored_segments, self.unsubmitted_segments = unscored_segments, unsubmitted_segments

    def encodes(self, worker: PoolWorker) -> bool:
        """Record that an encoder gets a segment. Return True if it must prepare it."""
        readers = self._workers.readers.workers
        if not worker.tasks and any(reader.tasks for reader in readers):
            # the limits of a job may hold fewer segments than the threshold below
            self._encoders_wait = True
        enough = PUT_SEGMENTS + TASKS_PER_ACTOR * len(readers)
        if self.unsubmitted_segments is not None:
            enough = min(enough, self.unsubmitted_segments)
        return self._encoders_wait or self.unscored_segments > enough

    def scores(self, worker: PoolWorker) -> None:
        """Record that a reader gets a segment."""
        if not worker.tasks and any(encoder.tasks for encoder in self._workers.encoders.workers):
            self._encoders_wait = False
