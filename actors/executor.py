"""The executor on Ray: an encoder pool that writes, store actors, and a SideNet pool that reads.

    driver ──segment──► EncoderActor ──block──► StoreActor ◄──blocks── SideNetActor ◄──segment── driver
                              └──────────────block, taps─────────────────────┘

Blocks and taps go from worker to worker through Ray's object store; the driver holds only references to them.
"""

from math import ceil
from secrets import token_hex
from time import monotonic
from typing import Any

import ray

from actors.cluster import Connection, check_capacity, connect
from actors.dispatch import PooledExecutor
from actors.shape import ClusterShape
from actors.workers import start_workers
from longmem.errors import ClusterError
from longmem.executor import Stage
from longmem.memory.store import check_fingerprint
from longmem.model_source import ModelDescription, ModelSource
from longmem.types import Fingerprint

CLOSE_S = 60.0
"""How long closing waits for writes that have begun."""

LATE_S = 10.0
"""How long an elastic job waits for the rest of its workers once it could begin."""


class RayExecutor(PooledExecutor):
    """Workers of this job alone, which end with it.

    Raises ClusterError when Ray cannot be reached or is too small, and the workers' own errors (ModelError,
    StoreError) when they cannot open the model or the store.
    """

    def __init__(self, source: ModelSource, store_uri: str, shape: ClusterShape) -> None:
        self.connection: Connection = connect(shape.address, ceil(shape.num_cpus), shape.object_store_bytes)
        self._description: ModelDescription | None = None
        self._model: Fingerprint | None = None
        self._stored: Fingerprint | None = None
        self._open = True
        try:
            check_capacity(shape.min_cpus, shape.min_gpus)
            workers = start_workers(source, store_uri, shape, f"longmem-{token_hex(4)}")
            super().__init__(workers, shape.patience, self._accept)
        except BaseException:
            self.connection.close()
            raise
        try:
            self._begin(shape)
        except BaseException:
            self._stop()
            raise

    def _begin(self, shape: ClusterShape) -> None:
        could_begin_s: float | None = None
        while self._supervisor.num_starting:
            self.turn(1.0)
            self._supervisor.check()
            manned = all(pool.usable for pool in self._pools.values())
            stores = self._workers.stores
            if shape.elastic and manned and len(stores.usable) == len(stores.workers):
                could_begin_s = could_begin_s or monotonic()
                if monotonic() - could_begin_s > LATE_S:
                    break
        self._supervisor.begin()

    def _accept(self, stage: Stage, opened: Any) -> None:
        """All workers must hold the same model, which must be the one that wrote the store."""
        fingerprint: Fingerprint | None = opened.fingerprint if stage == "encode" else opened
        if stage == "encode":
            self._description = self._description or opened
        if stage == "put":
            self._stored = fingerprint
        elif self._model is None:
            self._model = fingerprint
        elif fingerprint is not None and fingerprint != self._model:
            raise ClusterError(
                "the workers hold different models (one worker != another): "
                f"{self._model.differences(fingerprint)}; put the same model on every node"
            )
        if self._model is not None:
            check_fingerprint(self._stored, self._model)

    def describe(self) -> ModelDescription:
        assert self._description is not None, "no encoder was ever ready"
        return self._description

    def close(self) -> None:
        if not self._open or not ray.is_initialized():
            return
        try:
            self._workers.stores.close(CLOSE_S)
        finally:
            self._stop()

    def _stop(self) -> None:
        self._open = False
        # a cluster of our own ends with all that is in it
        if not self.connection.started_here:
            self._workers.stop()
        self._running.clear()
        self._encoded.clear()
        self.connection.close()
