"""What goes through the pools: one stage of a segment, or a request; and what is known of it meanwhile."""

from dataclasses import dataclass, field
from typing import Any

from actors.workers.base import WorkerInfo
from actors.workers.pools import Worker
from longmem.runtime.executor import Stage
from longmem.runtime.requests import Request
from longmem.types import DocumentKey, Segment

SegmentId = tuple[DocumentKey, int]


@dataclass(frozen=True)
class Encoded:
    """References to a segment's block and SideNet state, and the node that made them."""

    block: Any
    state: Any
    node_id: str


@dataclass(eq=False)
class Task:
    """One piece of work on its way through the pools."""

    stage: Stage
    """Whose pool does it."""
    tries: int = field(default=0, init=False)
    """How often it ended its worker, or met a bug."""
    exclusive: bool = field(default=False, init=False)
    """It was lost with its worker: from now on it is tried alone, so that it is known whether it is to blame."""
    worker: Worker | None = field(default=None, init=False)
    sent_to: WorkerInfo | None = field(default=None, init=False)
    """The incarnation of the worker."""


@dataclass(eq=False)
class SegmentTask(Task):
    """One stage of a segment."""

    segment: Segment
    reported: bool = True
    """False for an encoding that the caller did not ask for, because a block was lost."""
    encoded: Encoded | None = field(default=None, init=False)
    """What a running encoding makes; of other tasks, what they were given."""

    @property
    def segment_id(self) -> SegmentId:
        return self.segment.key, self.segment.index

    def __str__(self) -> str:
        return f"{self.stage} of {self.segment.key} segment {self.segment.index}"


@dataclass(eq=False)
class RequestTask(Task):
    """A request, answered by a worker of stage `encode`, because those hold the whole model."""

    number: int
    request: Request

    def __str__(self) -> str:
        return str(self.request)
