# SPDX-License-Identifier: Apache-2.0
"""The executor on Ray: encoder, store and reader actors.

    driver ──segment──► EncoderActor ──block──► StoreActor ◄──blocks── ReaderActor ◄──segment── driver
                              └──────────────block, state────────────────────┘

Encoded segments pass between workers through Ray's object store; the driver holds only references.
"""

from collections.abc import Callable
from math import ceil
from secrets import token_hex

import ray

from actors.capacity import FEWER, Room
from actors.cluster import Connection, connect, say_nothing
from actors.config import ClusterShape
from actors.errors import translated
from actors.executor.dispatch import PooledExecutor
from actors.workers.start import start_workers
from longmem.model.source import ModelSource
from longmem.store.config import StoreSettings

CLOSE_S = 60.0
"""Seconds that `close` waits for running writes."""


class RayExecutor(PooledExecutor):
    """Executor with workers of its own, which end with the job.

    Raises ClusterError when Ray cannot be reached or is too small, and the workers' own errors (ModelError,
    StoreError) when they cannot open the model or the store.
    """

    def __init__(
        self,
        source: ModelSource,
        store: StoreSettings | str,
        shape: ClusterShape,
        tell: Callable[[str], None] = say_nothing,
    ) -> None:
        """`tell` receives messages for the operator: the cluster, and that the job waits for resources."""
        self.connection: Connection = connect(shape.address, ceil(shape.num_cpus), shape.object_store_bytes, tell)
        self._open = True
        try:
            with self.connection.watch.explaining(), translated("starting the workers"):
                limit_s, advice = shape.timeouts.no_worker_s, self.connection.advice(FEWER)
                own = self.connection.started_here
                room = Room(shape.min_cpus, shape.min_gpus, limit_s, tell, advice, own=own)
                workers = start_workers(source, store, shape, f"longmem-{token_hex(4)}")
            super().__init__(workers, shape.timeouts, connection=self.connection)
        except BaseException:
            self.connection.close()
            raise
        try:
            self.begin(shape.elastic, room)
        except BaseException:
            self._stop()
            raise

    def expect_puts(self) -> None:
        with self._explaining():
            for store in self._workers.stores.workers:
                store.actor.expect_puts.remote()

    def close(self) -> None:
        if not self._open or not ray.is_initialized():
            return
        try:
            # the stores of a lost cluster have ended or do not answer
            if not self.connection.watch.lost:
                self._workers.stores.close(CLOSE_S)
        finally:
            self._stop()

    def _stop(self) -> None:
        self._open = False
        # a cluster of its own ends with all its actors
        if not self.connection.started_here and not self.connection.watch.lost:
            self._workers.stop()
        super().close()
        self.connection.close()
