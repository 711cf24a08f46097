# SPDX-License-Identifier: Apache-2.0
"""Executor protocol that runs stages: in this process (`inline_executor`), or on a cluster (`actors.executor`).

A segment passes three stages. `encode` does the work that needs no memory (in one pass it reads the memory, too), `put`
writes the block, `score` reads the memory. Encoded data never pass through the caller: the executor holds them, by
segment, until `release`. The caller receives only receipts: log-probabilities and statistics, a few kilobytes per
segment.

A request is answered as a whole by one worker that holds the whole model. It writes nothing.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal

import numpy as np
from jaxtyping import Float32

from longmem.errors import LongMemError
from longmem.model.source import ModelDescription
from longmem.runtime.requests import Request
from longmem.runtime.steps import OnStep, ignore_step
from longmem.stages import STAGES, Stage
from longmem.text.tokenizer import AbstractTokenizer
from longmem.types import DocumentKey, PutReceipt, Segment, SegmentInfo, SegmentScore

__all__ = [
    "STAGES",
    "AbstractExecutor",
    "Answer",
    "Completion",
    "EncodeReceipt",
    "EventKind",
    "ExecutorEvent",
    "Stage",
]


@dataclass(frozen=True)
class EncodeReceipt:
    """Summary of an encoded segment for the caller."""

    backbone_logprobs: Float32[np.ndarray, " targets"] | None
    """Those of the backbone alone; None in one pass, where it reads the memory."""
    num_bytes: int


@dataclass(frozen=True)
class Completion:
    """One finished task: a result, or the error that ended it."""

    stage: Stage
    segment: Segment
    result: EncodeReceipt | PutReceipt | SegmentScore | None
    error: LongMemError | None
    busy_s: float
    """Seconds of computation in a worker, without queueing."""


@dataclass(frozen=True)
class Answer:
    """Outcome of the request that `ask` numbered: a result, or the error that ended it."""

    number: int
    result: Any
    error: LongMemError | None
    busy_s: float


EventKind = Literal["lost", "back", "retry", "stalled", "killed", "encoded again", "quarantined"]


@dataclass(frozen=True)
class ExecutorEvent:
    """Event of interest to an operator that changes no result."""

    kind: EventKind
    message: str
    worker: str = ""
    stage: Stage | None = None
    segment: Segment | None = None


class AbstractExecutor(ABC):
    """Executor of tasks, at most `slots(stage)` ahead. Completions come in any order, each task exactly once."""

    @abstractmethod
    def describe(self) -> ModelDescription:
        """Return the description of the model that the workers hold."""

    @abstractmethod
    def tokenizer(self) -> AbstractTokenizer:
        """Return the model's tokenizer, for one other thread than the caller's; it may run in a worker."""

    @abstractmethod
    def slots(self, stage: Stage) -> int:
        """Return how many more tasks of a stage may be submitted now without queueing ahead of demand."""

    @abstractmethod
    def submit(self, stage: Stage, segment: Segment) -> None:
        """Start a task. `put` and `score` require that the segment's `encode` has completed; `score` also requires that
        its past is stored, and so does `encode` of a model of one pass."""

    def expect_puts(self) -> None:  # noqa: B027 - in one process the thread of puts imports; services have put before
        """Let the stores import what a put needs while documents are tokenised; does not affect results."""

    def set_backlog(self, unscored_segments: int, unsubmitted_segments: int | None) -> None:  # noqa: B027 - unused in one process
        """Give the executor the current backlog, used only for load balancing; does not affect results.

        Args:
            unscored_segments: segments that are encoded and not scored yet.
            unsubmitted_segments: upper bound of segments still to be submitted for encoding, or None if unknown.
        """

    @abstractmethod
    def ask(self, request: Request, on_step: OnStep = ignore_step) -> int:
        """Start a request in a slot of stage `encode` and return its number. Documents that it reads must be stored.

        `on_step` is called during `wait`, with steps of the running request; on a cluster not with every one.
        """

    @abstractmethod
    def wait(self, timeout_s: float) -> list[Completion]:
        """Return completions: at least one unless a request was answered, nothing is running or the timeout has passed.

        The error of one task is in its completion. An error of the executor itself (ClusterError) is raised.
        """

    @abstractmethod
    def answers(self) -> list[Answer]:
        """Return the requests that ended since the last call, in any order, each exactly once."""

    def events(self) -> list[ExecutorEvent]:
        """Return the worker events since the last call."""
        return []

    @abstractmethod
    def release(self, segment: Segment) -> None:
        """Free the block and all other data of a segment that needs no further stage."""

    @abstractmethod
    def stored(self, key: DocumentKey) -> list[SegmentInfo]:
        """Return the segments of a document that the store already holds."""

    @abstractmethod
    def trim(self, key: DocumentKey, first_segment: int) -> None:
        """Remove a document's segments below `first_segment` from the store. No segment still to be scored may read
        them."""

    @abstractmethod
    def delete(self, key: DocumentKey) -> None:
        """Delete a document from the store."""

    @abstractmethod
    def close(self) -> None:
        """Stop the workers. Tasks in flight are lost, stored blocks are kept."""

    def __enter__(self) -> "AbstractExecutor":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


PUT_SEGMENTS = 8
"""Segments per put, fewer when no other task is runnable or blocks are large (`blocks_at_once`). A commit costs the
same for all of them, and each waits in memory for the later ones. With 1, 4, 8 and 16 a segment costs 25, 9, 4.5 and
4 ms of CPU, written and read."""
