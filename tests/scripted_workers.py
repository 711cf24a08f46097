# SPDX-License-Identifier: Apache-2.0
"""Real Ray actors without a model, which follow a script for each segment: for tests of the driver's side.

They have only the methods that the pools call. Their results have realistic sizes, so that they are stored in Ray's
object store.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from time import sleep
from typing import TYPE_CHECKING, Any

import numpy as np
import ray

from actors.result import TaskResult
from actors.workers.base import HEALTH, UNTIL_DONE, opened
from actors.workers.running import Alive, RunningTask, Ticket
from longmem.types import DocumentKey, Segment, SegmentInfo

if TYPE_CHECKING:
    # loads torch, without which these actors start in a tenth of the time
    from longmem.runtime.executor import Stage

BLOCK_BYTES = 200_000
"""Result size above Ray's limit for inlined results."""


@dataclass(frozen=True)
class Script:
    """Actions at (stage, document, segment); all other tasks succeed."""

    folder: Path
    """Folder with a file for every task that began, so that a test can wait for it."""
    deadly: frozenset[tuple[str, str, int]] = frozenset()
    """Tasks that end their process."""
    faulty: frozenset[tuple[str, str, int]] = frozenset()
    """Tasks that raise an exception caused by a bug of longmem."""
    endless: frozenset[tuple[str, str, int]] = frozenset()
    """Tasks that never end while the process lives."""
    linger_s: float = 0.0
    """Seconds before a deadly task ends its process; other tasks are queued behind it meanwhile."""

    def begin(self, stage: "Stage", segment: Segment) -> None:
        place = stage, segment.key.document, segment.index
        with (self.folder / "-".join(map(str, place))).open("a") as file:
            file.write(f"{os.getpid()}\n")
        if place in self.deadly:
            sleep(self.linger_s)
            os._exit(1)
        if place in self.faulty:
            raise RuntimeError("a bug of ours")
        if place in self.endless:
            Event().wait()

    def begun(self, stage: "Stage", document: str, index: int) -> list[int]:
        """Return the processes that began the task, in order."""
        file = self.folder / f"{stage}-{document}-{index}"
        return [int(pid) for pid in file.read_text().split()] if file.exists() else []


@dataclass(frozen=True)
class NoModel:
    """Model description of a scripted encoder."""

    fingerprint: None = None


class _Scripted:
    description: NoModel | None = None

    def __init__(self, script: Script) -> None:
        self._script = script
        self._running = RunningTask()

    @ray.method(max_task_retries=UNTIL_DONE)
    def ready(self) -> TaskResult:
        return opened(lambda: self.description)

    @ray.method(concurrency_group="health")
    def alive(self) -> Alive:
        return self._running.alive()

    def begin(self, ticket: Ticket, stage: "Stage", segment: Segment) -> TaskResult:
        return self._running.run(ticket, lambda: self._script.begin(stage, segment))


@ray.remote(concurrency_groups=HEALTH)
class ScriptedEncoder(_Scripted):
    description = NoModel()

    def encode(self, ticket: Ticket, segment: Segment, prepare: bool) -> tuple[TaskResult, Any, Any]:
        outcome = self.begin(ticket, "encode", segment)
        return outcome, (segment, np.zeros(BLOCK_BYTES, np.uint8)), np.zeros(BLOCK_BYTES, np.uint8)


@ray.remote(concurrency_groups={"read": 1, **HEALTH})
class ScriptedStore(_Scripted):
    def put(self, ticket: Ticket, *blocks: Any) -> TaskResult:
        return self._running.run(ticket, lambda: [self._script.begin("put", block[0]) for block in blocks])

    @ray.method(concurrency_group="read", max_task_retries=UNTIL_DONE)
    def segments(self, key: DocumentKey) -> list[SegmentInfo]:
        return []

    @ray.method(concurrency_group="read", max_task_retries=UNTIL_DONE)
    def delete(self, key: DocumentKey) -> int:
        return 0


@ray.remote(concurrency_groups=HEALTH)
class ScriptedReader(_Scripted):
    def score(self, ticket: Ticket, segment: Segment, block: Any, state: Any) -> TaskResult:
        assert block[0].index == segment.index
        return self.begin(ticket, "score", segment)

    def evict(self, key: DocumentKey) -> None:
        pass
