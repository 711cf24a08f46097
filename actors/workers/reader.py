# SPDX-License-Identifier: Apache-2.0
"""Reader actors: they hold a SideNet and memory windows of documents, and score segments."""

from typing import TYPE_CHECKING

import numpy as np
import ray

from actors.result import TaskResult
from actors.workers.base import HEALTH, UNTIL_DONE, import_model, opened
from actors.workers.running import Alive, RunningTask, Ticket
from actors.workers.store import RemoteBlockSource
from longmem.model.source import ModelSource
from longmem.system.redaction import redacted
from longmem.types import DocumentKey, Fingerprint, KVBlock, Segment, SegmentScore

if TYPE_CHECKING:
    from longmem.memory.window_cache import WindowCache
    from longmem.model.longmem import LongMem


@ray.remote(concurrency_groups=HEALTH)
class ReaderActor:
    """One worker of the reader pool. Its windows are a cache of the store: losing them costs only time."""

    def __init__(
        self, source: ModelSource, rank: int, threads: int, store: RemoteBlockSource, window_bytes: int
    ) -> None:
        import_model(threads)
        self._source = source
        self._rank = rank
        self._threads = threads
        self._store = store
        self._window_bytes = window_bytes
        self._opened: tuple[LongMem, WindowCache, Fingerprint] | None = None
        self._running = RunningTask()

    def __repr__(self) -> str:
        # shown in Ray's dashboard; the actor's name, `…-sidenet-N`, is older than readers without a SideNet
        return f"Reader(rank={self._rank}, model={redacted(self._source.source)}, threads={self._threads})"

    def _loaded(self) -> "tuple[LongMem, WindowCache, Fingerprint]":
        if self._opened is None:
            from longmem.memory.context import windows_of

            model = self._source.open()
            fingerprint = model.fingerprint
            if not model.sidenet.runs_backbone:
                model.backbone.drop_layers()
            self._opened = model, windows_of(model, self._store, self._window_bytes), fingerprint
        return self._opened

    @ray.method(max_task_retries=UNTIL_DONE)
    def ready(self) -> TaskResult:
        """Load the model; the result is a WorkerInfo with the model's fingerprint."""
        return opened(lambda: self._loaded()[2])

    @ray.method(concurrency_group="health")
    def alive(self) -> Alive:
        """Return which process this is, and the task that it runs."""
        return self._running.alive()

    def score(
        self, ticket: Ticket, segment: Segment, block: KVBlock, state: tuple[np.ndarray, np.ndarray]
    ) -> TaskResult:
        return self._running.run(ticket, lambda: self._score(segment, block, state))

    @ray.method(max_task_retries=UNTIL_DONE)
    def evict(self, key: DocumentKey) -> None:
        """Evict the document's window, after the scores that were submitted before."""
        if self._opened is not None:
            self._opened[1].evict(key)

    def _score(self, segment: Segment, block: KVBlock, state: tuple[np.ndarray, np.ndarray]) -> SegmentScore:
        model, windows, _ = self._loaded()
        view = windows.view(segment.key, segment.index)
        return model.score_segment(segment, block.keys, state[0], view, backbone_logprobs=state[1])
