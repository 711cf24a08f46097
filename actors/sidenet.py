"""SideNet actor: holds a SideNet and windows of the documents it reads; scores segments."""

from functools import cached_property

import numpy as np
import ray
import torch

from actors.outcome import Outcome, attempt
from actors.store import RemoteBlockSource
from longmem.memory.window_cache import WindowCache
from longmem.model import LongMem
from longmem.model_source import ModelSource
from longmem.types import Segment, SegmentScore


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

    def __repr__(self) -> str:
        return f"SideNet(rank={self._rank}, model={self._source.source}, threads={self._threads})"

    @cached_property
    def _model(self) -> LongMem:
        model = self._source.open()
        model.backbone.drop_layers()
        return model

    @cached_property
    def _windows(self) -> WindowCache:
        config = self._model.config
        return WindowCache(
            self._store, config.segment_tokens, config.memory_tokens, self._window_bytes, self._model.backbone.device
        )

    def ready(self) -> Outcome:
        """Load the model."""
        return attempt(lambda: self._model.config)

    def score(self, segment: Segment, taps: np.ndarray) -> Outcome:
        return attempt(lambda: self._score(segment, taps))

    def _score(self, segment: Segment, taps: np.ndarray) -> SegmentScore:
        return self._model.score_segment(segment, taps, self._windows.view(segment.key, segment.index))
