"""The executor on Ray: an encoder pool that writes, store actors, and a SideNet pool that reads.

    driver ──segment──► EncoderActor ──block──► StoreActor ◄──blocks── SideNetActor ◄──segment── driver
                              └───────────────taps───────────────────────────┘

Blocks and taps go from worker to worker through Ray's object store; the driver holds only references to them. Actors
restart by themselves and lost calls are repeated: encoding and scoring are functions of their input, and a put is
idempotent, so a repeated call changes nothing.
"""

from dataclasses import dataclass
from secrets import token_hex
from typing import Any

import ray

from actors.cluster import Connection, check_capacity, connect
from actors.encoder import EncoderActor
from actors.failures import translated
from actors.outcome import Outcome
from actors.pool import RESTART, ActorPool
from actors.shape import ClusterShape
from actors.sidenet import SideNetActor
from actors.store import RemoteBlockSource, StoreActor, shard_of
from longmem.errors import ClusterError
from longmem.executor import STAGES, AbstractExecutor, Completion, Stage
from longmem.memory.store import check_fingerprint
from longmem.model_source import ModelDescription, ModelSource
from longmem.types import DocumentKey, Segment, SegmentInfo


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
        try:
            check_capacity(shape.num_cpus, shape.num_gpus)
            self._start(source, store_uri, shape)
        except BaseException:
            self.close()
            raise
        self._encoded: dict[tuple[DocumentKey, int], tuple[Any, Any]] = {}
        self._running: dict[Any, _Task] = {}

    def _start(self, source: ModelSource, store_uri: str, shape: ClusterShape) -> None:
        names = [f"longmem-store-{token_hex(4)}-{shard}" for shard in range(shape.stores)]
        stores = [
            StoreActor.options(num_cpus=0, name=name, **RESTART).remote(store_uri, shard)  # type: ignore[attr-defined]
            for shard, name in enumerate(names)
        ]
        self._pools["put"] = ActorPool(stores)
        self._pools["encode"] = ActorPool(
            [
                EncoderActor.options(num_cpus=shape.threads, num_gpus=shape.encoder_gpus, **RESTART).remote(  # type: ignore[attr-defined]
                    _on(source, shape.encoder_gpus), rank, shape.threads
                )
                for rank in range(shape.encoders)
            ]
        )
        self._pools["score"] = ActorPool(
            [
                SideNetActor.options(num_cpus=shape.threads, num_gpus=shape.reader_gpus, **RESTART).remote(  # type: ignore[attr-defined]
                    _on(source, shape.reader_gpus), rank, shape.threads, RemoteBlockSource(names), shape.window_bytes
                )
                for rank in range(shape.readers)
            ]
        )
        with translated("starting the workers"):
            outcomes: dict[Stage, list[Outcome]] = {
                stage: ray.get([actor.ready.remote() for actor in self._pools[stage].actors]) for stage in STAGES
            }
        for stage in STAGES:
            for outcome in outcomes[stage]:
                if outcome.error is not None:
                    raise outcome.error
        self._description: ModelDescription = outcomes["encode"][0].result
        for outcome in outcomes["encode"]:
            if outcome.result.fingerprint != self._description.fingerprint:
                raise ClusterError(
                    f"the workers hold different models (encoder 0 != another): "
                    f"{self._description.fingerprint.differences(outcome.result.fingerprint)}; put the same model on "
                    "every node"
                )
        check_fingerprint(outcomes["put"][0].result, self._description.fingerprint)

    def describe(self) -> ModelDescription:
        return self._description

    def slots(self, stage: Stage) -> int:
        return self._pools[stage].slots

    def submit(self, stage: Stage, segment: Segment) -> None:
        place = (segment.key, segment.index)
        pool = self._pools[stage]
        if stage == "encode":
            actor, (outcome, block, taps) = pool.send(lambda a: a.encode.options(num_returns=3).remote(segment))
            self._encoded[place] = (block, taps)
        elif stage == "put":
            block = self._encoded[place][0]
            shard = pool.actors.index(shard_of(pool.actors, segment.key))
            actor, outcome = pool.send(lambda a: a.put.remote(block), choose=shard)
        else:
            taps = self._encoded[place][1]
            actor, outcome = pool.send(lambda a: a.score.remote(segment, taps))
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
        with translated(f"listing {key}"):
            infos: list[SegmentInfo] = ray.get(shard_of(self._pools["put"].actors, key).segments.remote(key))
        return infos

    def forget(self, key: DocumentKey) -> None:
        with translated(f"deleting {key}"):
            ray.get(shard_of(self._pools["put"].actors, key).delete.remote(key))

    def close(self) -> None:
        if not ray.is_initialized():
            return
        try:
            if "put" in self._pools:
                with translated("closing the store"):
                    ray.get([actor.close.remote() for actor in self._pools["put"].actors], timeout=60)
        finally:
            for pool in self._pools.values():
                for actor in pool.actors:
                    ray.kill(actor)
            self._pools.clear()
            self.connection.close()


def _on(source: ModelSource, gpus: float) -> ModelSource:
    """The source, on the GPU where the actor gets one."""
    return ModelSource(source.source, source.dtype, "cuda" if gpus else source.device, source.search, source.settings)
