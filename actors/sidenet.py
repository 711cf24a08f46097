"""The SideNet pool: actors that hold a SideNet and windows of the documents they read, and score segments."""

from typing import Any

import numpy as np
import ray
import torch

from actors.outcome import Outcome, attempt
from actors.pool import RESTART, ActorPool
from actors.store import RemoteBlockSource
from longmem.memory.window_cache import WindowCache
from longmem.model import LongMem
from longmem.model_source import ModelSource
from longmem.types import DocumentKey, KVBlock, Segment, SegmentScore


@ray.remote
class SideNetActor:
    """One replica of the SideNet pool. Its windows are a cache of the store: losing them costs time only."""

    def __init__(
        self, source: ModelSource, rank: int, threads: int, store: RemoteBlockSource, window_bytes: int
    ) -> None:
        torch.set_num_threads(threads)
        self._source = source
        self._rank = rank
        self._threads = threads
        self._store = store
        self._window_bytes = window_bytes
        self._opened: tuple[LongMem, WindowCache] | None = None

    def __repr__(self) -> str:
        return f"SideNet(rank={self._rank}, model={self._source.source}, threads={self._threads})"

    def _loaded(self) -> tuple[LongMem, WindowCache]:
        if self._opened is None:
            model = self._source.open()
            model.backbone.drop_layers()
            config, device = model.config, model.backbone.device
            windows = WindowCache(
                self._store, config.segment_tokens, config.memory_tokens, self._window_bytes, device, model.key_space
            )
            self._opened = model, windows
        return self._opened

    def ready(self) -> Outcome:
        """Load the model."""
        return attempt(lambda: self._loaded()[0].config)

    def score(self, segment: Segment, block: KVBlock, taps: np.ndarray) -> Outcome:
        return attempt(lambda: self._score(segment, block, taps))

    def forget(self, key: DocumentKey) -> None:
        """Drop the document's window. Runs after the scores that were submitted before it."""
        if self._opened is not None:
            self._opened[1].forget(key)

    def _score(self, segment: Segment, block: KVBlock, taps: np.ndarray) -> SegmentScore:
        model, windows = self._loaded()
        return model.score_segment(segment, block.keys, taps, windows.view(segment.key, segment.index))


class SideNetPool(ActorPool):
    """Readers: any of them may score any segment whose past is stored."""

    def __init__(
        self, source: ModelSource, size: int, threads: int, num_gpus: float, store: RemoteBlockSource, window_bytes: int
    ) -> None:
        actor = SideNetActor.options(num_cpus=threads, num_gpus=num_gpus, **RESTART)  # type: ignore[attr-defined]
        placed = source.on_gpu() if num_gpus else source
        super().__init__([actor.remote(placed, rank, threads, store, window_bytes) for rank in range(size)])

    def forget(self, key: DocumentKey) -> None:
        """Tell every reader; not waited for, because an actor keeps the order in which it is called."""
        for actor in self.actors:
            actor.forget.remote(key)

    def score(self, segment: Segment, block: Any, taps: Any) -> tuple[int, Any]:
        """Start scoring with references to block and taps; returns the actor's index and a reference to the outcome."""
        return self.send(lambda actor: actor.score.remote(segment, block, taps))
