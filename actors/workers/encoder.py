# SPDX-License-Identifier: Apache-2.0
"""Encoder actors: they hold a model and run the computation that needs no memory; in one pass they read it, too.

Their windows are a cache of the store; they have no other state between segments. They also answer requests that need
the whole model, and tokenise texts for the clients of a service.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import ray
from jaxtyping import Int32

from actors.result import TaskResult, run_task
from actors.workers.base import HEALTH, UNTIL_DONE, import_model, opened
from actors.workers.running import Alive, RunningTask, Ticket
from actors.workers.store import RemoteBlockSource
from longmem.model.source import ModelSource, describe
from longmem.runtime.executor import EncodeReceipt
from longmem.runtime.requests import Request
from longmem.system.redaction import redacted
from longmem.types import DocumentKey, EncodedSegment, KVBlock, Segment

if TYPE_CHECKING:
    from longmem.backbone.tokenizer import Tokenizer
    from longmem.memory.window_cache import WindowCache
    from longmem.model.longmem import LongMem


@dataclass(frozen=True)
class TokenizedText:
    """Tokens of a text, with the start token in front if the tokenizer has one."""

    sequence: Int32[np.ndarray, " tokens"]
    spans: Int32[np.ndarray, "tokens 2"] | None
    """Characters of each token, where they were asked for."""


@ray.remote(concurrency_groups={"text": 1, **HEALTH})
class EncoderActor:
    """One worker of the encoder pool. Its windows are a cache of the store: losing them costs only time."""

    def __init__(
        self, source: ModelSource, rank: int, threads: int, store: RemoteBlockSource, window_bytes: int
    ) -> None:
        import_model(threads)
        self._source = source
        self._rank = rank
        self._threads = threads
        self._store = store
        self._window_bytes = window_bytes
        self._model: LongMem | None = None
        self._windows: WindowCache | None = None
        self._tokenizer: Tokenizer | None = None
        self._running = RunningTask()

    def __repr__(self) -> str:
        return f"Encoder(rank={self._rank}, model={redacted(self._source.source)}, threads={self._threads})"

    def _loaded(self) -> "LongMem":
        # at first use, not in __init__: errors then reach the caller with their type, and a restarted actor loads its
        # model again
        if self._model is None:
            self._model = self._source.open()
        return self._model

    @ray.method(max_task_retries=UNTIL_DONE)
    def ready(self) -> TaskResult:
        """Load the model; the result is a WorkerInfo with the ModelDescription."""
        return opened(lambda: describe(self._loaded()))

    @ray.method(concurrency_group="health")
    def alive(self) -> Alive:
        """Return which process this is, and the task that it runs."""
        return self._running.alive()

    def encode(self, ticket: Ticket, segment: Segment, prepare: bool) -> tuple[TaskResult, KVBlock | None, object]:
        """Return receipt, block, and state with the backbone's log-probabilities, as three objects: only the receipt is
        sent to the driver."""
        outcome = self._running.run(ticket, lambda: self._encode(segment, prepare))
        encoded: EncodedSegment | None = outcome.result
        if encoded is None:
            return outcome, None, None
        receipt = EncodeReceipt(encoded.baseline, encoded.num_bytes)
        return TaskResult(receipt, None, outcome.busy_s), encoded.block, (encoded.state, encoded.backbone_logprobs)

    def _encode(self, segment: Segment, prepare: bool) -> EncodedSegment:
        model = self._loaded()
        return model.encode_in_document(
            segment, lambda: self._opened_windows(model).view(segment.key, segment.index), prepare
        )

    @ray.method(max_task_retries=UNTIL_DONE)
    def evict(self, key: DocumentKey) -> None:
        """Evict the document's window, after the segments that were submitted before."""
        if self._windows is not None:
            self._windows.evict(key)

    def answer(self, ticket: Ticket, request: Request) -> TaskResult:
        return self._running.run(ticket, lambda: self._answer(request))

    def _answer(self, request: Request) -> Any:
        model = self._loaded()
        return request.answer_in_steps(model, self._opened_windows(model), self._running.stepped)

    def _opened_windows(self, model: "LongMem") -> "WindowCache":
        if self._windows is None:
            from longmem.memory.context import windows_of

            self._windows = windows_of(model, self._store, self._window_bytes)
        return self._windows

    @ray.method(concurrency_group="text", max_task_retries=UNTIL_DONE)
    def tokenize(self, text: str, with_spans: bool = False) -> TaskResult:
        """Tokenise a text; the result is a TokenizedText.

        Runs concurrently with the model's tasks, with a separate tokenizer, because tokenizers are not thread-safe.
        """
        return run_task(lambda: self._tokenize(text, with_spans))

    def _tokenize(self, text: str, with_spans: bool) -> TokenizedText:
        if self._tokenizer is None:
            self._tokenizer = self._source.open_tokenizer()
        if with_spans:
            return TokenizedText(*self._tokenizer.sequence_with_spans(text))
        return TokenizedText(self._tokenizer.sequence(text), None)
