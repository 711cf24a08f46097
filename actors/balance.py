"""Who runs the SideNet's layers that need no memory: encoders while they would wait for readers, else readers."""

from actors.pool import Worker
from actors.workers import Workers


class Balance:
    """Told of each task that is sent, before its worker has it. A worker that gets one while it has none has waited."""

    def __init__(self, workers: Workers) -> None:
        self._workers = workers
        self._encoders_wait = False

    def encodes(self, worker: Worker) -> bool:
        """An encoder gets a segment; returns whether it is to prepare it."""
        if not worker.tasks and any(reader.tasks for reader in self._workers.readers.workers):
            self._encoders_wait = True
        return self._encoders_wait

    def scores(self, worker: Worker) -> None:
        """A reader gets a segment."""
        if not worker.tasks and any(encoder.tasks for encoder in self._workers.encoders.workers):
            self._encoders_wait = False
