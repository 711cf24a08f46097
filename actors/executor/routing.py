"""Which worker gets a task: near to what the task needs.

Encoded segments lie on the encoder's node and are read by the reader and the store; windows live in readers. A document
is therefore encoded on the nodes of readers that hold its window, and each segment is read where it was encoded, there
by a reader that holds the window if one does.
"""

from typing import Any

from actors.workers.pools import Worker
from actors.workers.start import Workers
from longmem.runtime.executor import Stage
from longmem.types import DocumentKey

MAX_TRACKED_DOCUMENTS = 1000
"""Documents whose readers are remembered: forgetting one costs a window that is read twice."""


class Router:
    """Chooses workers, and remembers which readers hold which document."""

    def __init__(self, workers: Workers) -> None:
        self._workers = workers
        self._preferred: dict[DocumentKey, list[Worker]] = {}
        """Readers that hold a window of the document, the first one to read it first."""

    def choose(self, stage: Stage, key: DocumentKey, made_on: str | None, exclusive: bool = False) -> Worker | None:
        """Who gets a task now; None while nobody can. `made_on`: the node that holds the segment's block; `alone`: the
        task must have its worker for itself."""
        if stage == "put":
            shard = self._workers.stores.shard(key)
            return None if shard.info is None or shard.exclusive or (exclusive and shard.tasks) else shard
        preferred = [worker for worker in self._preferred.get(key, []) if worker.info is not None]
        nodes = {worker.info.node_id for worker in preferred if worker.info}

        def is_far(worker: Worker) -> bool:
            assert worker.info is not None, f"{worker.name} is not there"
            return worker.info.node_id not in nodes

        def is_off(worker: Worker) -> bool:
            assert worker.info is not None, f"{worker.name} is not there"
            return worker.info.node_id != made_on

        if stage == "encode":
            return self._workers.encoders.choose(is_far, exclusive)
        # the state is larger than the block, which is all that a second window costs per segment
        return self._workers.readers.choose(lambda worker: (is_off(worker), worker not in preferred), exclusive)

    def reads(self, worker: Worker, key: DocumentKey) -> None:
        """`worker` was given a segment of the document to score."""
        preferred = self._preferred.setdefault(key, [])
        if worker not in preferred:
            preferred.append(worker)
        if len(self._preferred) > MAX_TRACKED_DOCUMENTS:
            del self._preferred[next(iter(self._preferred))]

    def evict(self, key: DocumentKey) -> list[Any]:
        """The workers that hold a window of the document."""
        return self._preferred.pop(key, [])
