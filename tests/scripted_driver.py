# SPDX-License-Identifier: Apache-2.0
"""Executor on scripted actors, with a record of its output, for tests of the driver's side."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from time import monotonic
from typing import Any

import numpy as np

from actors.executor.timeouts import Timeouts
from longmem.errors import LongMemError
from longmem.runtime.executor import Completion, ExecutorEvent, Stage
from longmem.types import DocumentKey, Segment

LIMIT_S = 60.0
"""Timeout of a test in seconds."""


def segments_of(document: str, count: int) -> list[Segment]:
    tokens = np.arange(4, dtype=np.int32)
    return [Segment(DocumentKey("test", document), index, 4 * index, tokens, tokens) for index in range(count)]


@dataclass(eq=False)
class Driver:
    """Executor on scripted actors, with all its completions and events."""

    executor: Any
    workers: Any
    script: Any
    completions: list[Completion] = field(default_factory=list)
    events: list[ExecutorEvent] = field(default_factory=list)

    def until(self, done: Callable[[], bool]) -> None:
        deadline = monotonic() + LIMIT_S
        while not done():
            assert monotonic() < deadline, f"stuck after {self.events}"
            self.completions += self.executor.wait(0.2)
            self.events += self.executor.events()

    def run(self, stage: Stage, segments: list[Segment]) -> dict[int, LongMemError | None]:
        """Submit all segments, even beyond the slots; return errors by segment."""
        for segment in segments:
            self.executor.submit(stage, segment)
        wanted = len(self.completions) + len(segments)
        self.until(lambda: len(self.completions) >= wanted)
        mine = self.completions[wanted - len(segments) :]
        assert Counter((each.stage, each.segment.index) for each in mine) == Counter(
            (stage, segment.index) for segment in segments
        )
        return {each.segment.index: each.error for each in mine}

    def pid(self, stage: Stage) -> int:
        pid: int = self.workers.by_stage()[stage].workers[0].info.pid
        return pid

    def kinds(self, *kinds: str) -> list[str]:
        return [event.kind for event in self.events if event.kind in kinds]


def start(
    script: Any, timeouts: Timeouts, encoders: list[dict[str, Any]], others: dict[str, Any] | None = None
) -> Driver:
    """Start an encoder for each of `encoders`, one store and one reader, with Ray's options; wait until all are ready.

    Ray must be running.
    """
    from actors.executor.dispatch import PooledExecutor
    from actors.workers.base import NAMESPACE, RESTART
    from actors.workers.pools import ActorPool
    from actors.workers.start import Workers
    from actors.workers.store import StorePool
    from tests.scripted_workers import ScriptedEncoder, ScriptedReader, ScriptedStore

    class Executor(PooledExecutor):
        def close(self) -> None:
            self._workers.stop()

    def pool(kind: Any, actor: Any, each: list[dict[str, Any]]) -> Any:
        common = {"namespace": NAMESPACE, "num_cpus": 0, **RESTART}
        made = [actor.options(**common, **options).remote(script) for options in each]
        return kind(made, [f"{kind.__name__}-{rank}" for rank in range(len(each))])

    workers = Workers(
        pool(ActorPool, ScriptedEncoder, encoders),
        pool(StorePool, ScriptedStore, [others or {}]),
        pool(ActorPool, ScriptedReader, [others or {}]),
    )
    return _ready(Driver(Executor(workers, timeouts), workers, script))


def attach(other: Driver, timeouts: Timeouts) -> Driver:
    """Return a second driver on the workers of another, as two jobs on one service."""
    from actors.executor.dispatch import PooledExecutor
    from actors.workers.pools import ActorPool
    from actors.workers.start import Workers

    pools = other.workers.encoders, other.workers.stores, other.workers.readers
    actors: list[ActorPool] = [
        type(pool)([worker.actor for worker in pool.workers], [worker.name for worker in pool.workers])
        for pool in pools
    ]
    workers = Workers(*actors)  # type: ignore[arg-type]
    return _ready(Driver(PooledExecutor(workers, timeouts), workers, other.script))


def _ready(driver: Driver) -> Driver:
    """Wait until all workers are ready."""
    supervisor = vars(driver.executor)["_supervisor"]
    driver.until(lambda: supervisor.num_starting == 0)
    supervisor.begin()
    return driver
