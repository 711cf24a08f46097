"""The executor on Ray: an encoder pool that writes, store actors, and a SideNet pool that reads.

    driver ──segment──► EncoderActor ──block──► StoreActor ◄──blocks── SideNetActor ◄──segment── driver
                              └──────────────block, state────────────────────┘

Encoded segments go from worker to worker through Ray's object store; the driver holds only references to them.
"""

from collections.abc import Callable
from math import ceil
from secrets import token_hex

import ray

from actors.cluster import Connection, check_capacity, connect, describe_lack
from actors.dispatch import PooledExecutor
from actors.shape import ClusterShape
from actors.workers import start_workers
from longmem.memory.opening import StoreSettings
from longmem.model_source import ModelSource

CLOSE_S = 60.0
"""How long closing waits for writes that have begun."""


class RayExecutor(PooledExecutor):
    """Workers of this job alone, which end with it.

    Raises ClusterError when Ray cannot be reached or is too small, and the workers' own errors (ModelError,
    StoreError) when they cannot open the model or the store.
    """

    def __init__(
        self,
        source: ModelSource,
        store: StoreSettings | str,
        shape: ClusterShape,
        tell: Callable[[str], None] = lambda _text: None,
    ) -> None:
        """`tell` gets what an operator should know while the workers start."""
        self.connection: Connection = connect(shape.address, ceil(shape.num_cpus), shape.object_store_bytes)
        self._open = True
        try:
            check_capacity(shape.min_cpus, shape.min_gpus)
            if (lack := describe_lack(shape.min_cpus, shape.min_gpus)) is not None:
                tell(f"the job has no room yet: {lack}")
            workers = start_workers(source, store, shape, f"longmem-{token_hex(4)}")
            super().__init__(workers, shape.patience)
        except BaseException:
            self.connection.close()
            raise
        try:
            self.begin(shape.elastic, lambda num_missing: _explain(shape, num_missing))
        except BaseException:
            self._stop()
            raise

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
        super().close()
        self.connection.close()


def _explain(shape: ClusterShape, num_missing: int) -> str:
    # stores may be missing too, and need no room
    share = min(1.0, num_missing / shape.num_workers)
    lack = describe_lack(share * shape.num_cpus, share * shape.num_gpus)
    return (
        f"{lack or 'there is room for them, see `ray status`'}; let other jobs end, use fewer --encoders, --readers or "
        "--threads, a smaller --cpu-share, or --elastic"
    )
