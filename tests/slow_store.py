# SPDX-License-Identifier: Apache-2.0
"""Store actor on a slow disk: each write is delayed, everything else is the real actor."""

import time

import ray

from actors.result import TaskResult
from actors.workers.base import HEALTH
from actors.workers.running import Ticket
from actors.workers.store import StoreActor
from longmem.types import KVBlock

PUT_S = 0.06


@ray.remote(concurrency_groups={"write": 1, "read": 2, "control": 1, **HEALTH})
class SlowStoreActor(StoreActor.__ray_metadata__.modified_class):  # type: ignore[misc, name-defined]
    @ray.method(concurrency_group="write")
    def put(self, ticket: Ticket, *blocks: KVBlock) -> TaskResult:
        time.sleep(PUT_S)
        outcome: TaskResult = super().put(ticket, *blocks)
        return outcome
