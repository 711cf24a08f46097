# SPDX-License-Identifier: Apache-2.0
"""Tasks of the pools (one stage of a segment, or a request) and their state in the driver."""

from dataclasses import dataclass, field
from typing import Any

from actors.workers.base import WorkerInfo
from actors.workers.pools import PoolWorker
from actors.workers.running import Ticket
from longmem.runtime.executor import Stage
from longmem.runtime.requests import Request
from longmem.runtime.steps import OnStep, Step
from longmem.types import DocumentKey, Segment

SegmentId = tuple[DocumentKey, int]
"""Document and index of a segment."""


@dataclass(frozen=True)
class Encoded:
    """References to a segment's block and SideNet state, and the node that made them."""

    block: Any
    state: Any
    """State, and the backbone's log-probabilities."""
    node_id: str


@dataclass(eq=False)
class Task:
    """One unit of work for a worker."""

    stage: Stage
    """Stage whose pool executes it."""
    tries: int = field(default=0, init=False)
    """Number of times that it killed its worker or raised a bug."""
    exclusive: bool = field(default=False, init=False)
    """True once its worker died of an unknown task: it is then retried without other tasks of the job."""
    worker: PoolWorker | None = field(default=None, init=False)
    sent_to: WorkerInfo | None = field(default=None, init=False)
    """Process of the worker that it was sent to."""
    ticket: Ticket | None = field(default=None, init=False)
    """Identity of this try, which the worker records while it runs."""

    def stepped(self, step: Step) -> None:
        """Report a step of a running request."""


@dataclass(eq=False)
class SegmentTask(Task):
    """One stage of a segment."""

    segment: Segment
    reported: bool = True
    """False for a repeated encoding after the loss of a block, which the caller did not submit."""
    encoded: Encoded | None = field(default=None, init=False)
    """Output of an encoding, or input of the other stages."""

    @property
    def segment_id(self) -> SegmentId:
        return self.segment.key, self.segment.index

    def __str__(self) -> str:
        return f"{self.stage} of {self.segment.key} segment {self.segment.index}"


@dataclass(eq=False)
class RequestTask(Task):
    """A request, answered by an encoder, because encoders hold the whole model."""

    number: int
    request: Request
    on_step: OnStep

    def stepped(self, step: Step) -> None:
        self.on_step(step)

    def __str__(self) -> str:
        return str(self.request)
