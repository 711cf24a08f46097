"""The executor on Ray: an encoder pool that writes, store actors, and a SideNet pool that reads.

    driver ──segment──► EncoderActor ──block──► StoreActor ◄──blocks── SideNetActor ◄──segment── driver
                              └──────────────block, taps─────────────────────┘

Blocks and taps go from worker to worker through Ray's object store; the driver holds only references to them. Actors
restart by themselves and lost calls are repeated: encoding and scoring are functions of their input, and a put is
idempotent, so a repeated call changes nothing.
"""

from dataclasses import dataclass
from typing import Any

import ray

from actors.cluster import Connection, check_capacity, connect
from actors.encoder import EncoderPool
from actors.failures import translated
from actors.outcome import Outcome
from actors.pool import ActorPool
from actors.shape import ClusterShape
from actors.sidenet import SideNetPool
from actors.store import RemoteBlockSource, StorePool
from longmem.errors import ClusterError
from longmem.executor import AbstractExecutor, Completion, Stage
from longmem.memory.store import check_fingerprint
from longmem.model_source import ModelDescription, ModelSource
from longmem.types import DocumentKey, Segment, SegmentInfo

CLOSE_S = 60.0
"""How long closing waits for writes that have begun."""


@dataclass(frozen=True)
class _Task:
    stage: Stage
    segment: Segment
    actor: int


class RayExecutor(AbstractExecutor):
    """Raises ClusterError when Ray cannot be reached or is too small, and the workers' own errors (ModelError,
    StoreError) when they cannot open the model or the store."""

    def __init__(self, source: ModelSource, store_uri: str, shape: ClusterShape) -> None:
        self.connection: Connection = connect(shape.address, shape.num_cpus, shape.object_store_bytes)
        self._pools: dict[Stage, ActorPool] = {}
        self._encoded: dict[tuple[DocumentKey, int], tuple[Any, Any]] = {}
        self._running: dict[Any, _Task] = {}
        try:
            check_capacity(shape.num_cpus, shape.num_gpus)
            self._start(source, store_uri, shape)
        except BaseException:
            self._stop()
            raise

    def _start(self, source: ModelSource, store_uri: str, shape: ClusterShape) -> None:
        self._pools["put"] = self._stores = StorePool(store_uri, shape.stores)
        self._pools["encode"] = self._encoders = EncoderPool(source, shape.encoders, shape.threads, shape.encoder_gpus)
        blocks = RemoteBlockSource(self._stores.names)
        self._pools["score"] = self._readers = SideNetPool(
            source, shape.readers, shape.threads, shape.reader_gpus, blocks, shape.window_bytes
        )
        asked = {stage: pool.ask_ready() for stage, pool in self._pools.items()}
        with translated("starting the workers"):
            outcomes: dict[Stage, list[Outcome]] = {stage: ray.get(refs) for stage, refs in asked.items()}
        for outcome in (each for stage in outcomes.values() for each in stage):
            if outcome.error is not None:
                raise outcome.error
        descriptions: list[ModelDescription] = [outcome.result for outcome in outcomes["encode"]]
        self._description = descriptions[0]
        for other in descriptions[1:]:
            if other.fingerprint != self._description.fingerprint:
                raise ClusterError(
                    "the workers hold different models (one encoder != another): "
                    f"{self._description.fingerprint.differences(other.fingerprint)}; put the same model on every node"
                )
        check_fingerprint(outcomes["put"][0].result, self._description.fingerprint)

    def describe(self) -> ModelDescription:
        return self._description

    def slots(self, stage: Stage) -> int:
        return self._pools[stage].slots

    def submit(self, stage: Stage, segment: Segment) -> None:
        place = (segment.key, segment.index)
        if stage == "encode":
            actor, (outcome, block, taps) = self._encoders.encode(segment)
            self._encoded[place] = (block, taps)
        elif stage == "put":
            actor, outcome = self._stores.put(segment.key, self._encoded[place][0])
        else:
            actor, outcome = self._readers.score(segment, *self._encoded[place])
        self._running[outcome] = _Task(stage, segment, actor)

    def wait(self, timeout_s: float) -> list[Completion]:
        if not self._running:
            return []
        refs = list(self._running)
        ready, _ = ray.wait(refs, num_returns=1, timeout=timeout_s)
        if ready:
            ready, _ = ray.wait(refs, num_returns=len(refs), timeout=0)
        completions = []
        for ref in ready:
            task = self._running.pop(ref)
            self._pools[task.stage].done(task.actor)
            with translated(f"{task.stage} of {task.segment.key} segment {task.segment.index}"):
                outcome: Outcome = ray.get(ref)
            completions.append(Completion(task.stage, task.segment, outcome.result, outcome.error, outcome.busy_s))
        return completions

    def release(self, segment: Segment) -> None:
        self._encoded.pop((segment.key, segment.index), None)

    def stored(self, key: DocumentKey) -> list[SegmentInfo]:
        return self._stores.segments(key)

    def forget(self, key: DocumentKey) -> None:
        self._stores.delete(key)
        self._readers.forget(key)

    def close(self) -> None:
        if not self._pools or not ray.is_initialized():
            return
        try:
            self._stores.close(CLOSE_S)
        finally:
            self._stop()

    def _stop(self) -> None:
        # a cluster of our own ends with all that is in it
        if not self.connection.started_here:
            for pool in self._pools.values():
                pool.stop()
        self._pools = {}
        self._running.clear()
        self._encoded.clear()
        self.connection.close()
