# SPDX-License-Identifier: Apache-2.0
"""Locality-aware routing: sends a task to a worker near its data.

Encoded segments are held on the encoder's node, and windows in readers. A document is therefore encoded on the nodes of
readers that hold its window, of equally busy encoders by the one that encoded it last: in one pass, that has the
window too. A segment is scored on the node that encoded it, preferably by a reader with the window.
"""

from typing import Any

from actors.workers.pools import PoolWorker
from actors.workers.start import Workers
from longmem.runtime.executor import Stage
from longmem.types import DocumentKey

MAX_TRACKED_DOCUMENTS = 1000
"""Documents whose readers are tracked. Evicting one costs a window that is read twice."""


class Router:
    """Chooses workers, and tracks the readers of each document."""

    def __init__(self, workers: Workers) -> None:
        self._workers = workers
        self._preferred: dict[DocumentKey, list[PoolWorker]] = {}
        """Preferred readers by document: those that hold its window, in order of their first score."""
        self._encoders: dict[DocumentKey, list[PoolWorker]] = {}
        """Encoders of each document, the latest last."""

    def choose(self, stage: Stage, key: DocumentKey, made_on: str | None, exclusive: bool = False) -> PoolWorker | None:
        """Return the worker for a task, or None while none has a free slot.

        `made_on` is the node that holds the segment's block; an `exclusive` task must not share its worker.
        """
        if stage == "put":
            shard = self._workers.stores.shard(key)
            return None if shard.info is None or shard.exclusive or (exclusive and shard.tasks) else shard
        preferred = [worker for worker in self._preferred.get(key, []) if worker.info is not None]
        nodes = {worker.info.node_id for worker in preferred if worker.info}

        def is_far(worker: PoolWorker) -> bool:
            assert worker.info is not None, f"{worker.name} is not there"
            return worker.info.node_id not in nodes

        def is_off(worker: PoolWorker) -> bool:
            assert worker.info is not None, f"{worker.name} is not there"
            return worker.info.node_id != made_on

        if stage == "encode":
            latest = self._encoders.get(key, [None])[-1]
            return self._workers.encoders.choose(
                lambda worker: (is_far(worker), len(worker.tasks), worker is not latest), exclusive
            )
        # node before window: a remote state costs more than a second window, which costs one block per segment
        return self._workers.readers.choose(lambda worker: (is_off(worker), worker not in preferred), exclusive)

    def sent(self, stage: Stage, worker: PoolWorker, key: DocumentKey) -> None:
        """Record that `worker` was sent a segment of the document to encode or to score."""
        tracked = self._encoders if stage == "encode" else self._preferred
        workers = tracked.setdefault(key, [])
        if stage == "encode" and worker in workers:
            workers.remove(worker)
        if worker not in workers:
            workers.append(worker)
        if len(tracked) > MAX_TRACKED_DOCUMENTS:
            del tracked[next(iter(tracked))]

    def evict(self, key: DocumentKey) -> list[Any]:
        """Return the workers that may hold a window of the document, and evict the document."""
        return self._preferred.pop(key, []) + self._encoders.pop(key, [])
