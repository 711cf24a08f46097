# SPDX-License-Identifier: Apache-2.0
"""Batching of puts, depending on the backlog of the other pools. Needs no running Ray.

Tests with real processes are in tests/fault/test_dispatch.py.
"""

from types import SimpleNamespace
from typing import Any

import pytest

from actors.executor.dispatch import PooledExecutor
from actors.executor.timeouts import Timeouts
from actors.workers.base import WorkerInfo
from actors.workers.pools import TASKS_PER_ACTOR, ActorPool
from actors.workers.running import Ticket
from actors.workers.start import Workers
from actors.workers.store import StorePool
from longmem.runtime.executor import PUT_SEGMENTS
from longmem.types import Segment
from tests.scripted_driver import segments_of


class Actor:
    """Actor handle that records calls like a store or an encoder, and never answers."""

    def __init__(self) -> None:
        self.groups: list[tuple[Any, ...]] = []
        self.prepared: list[bool] = []
        self.ready = SimpleNamespace(remote=object)
        self.put = SimpleNamespace(remote=self._put)
        self.encode = SimpleNamespace(options=lambda **_options: SimpleNamespace(remote=self._encode))

    def _encode(self, _ticket: Ticket, _segment: Segment, prepare: bool) -> tuple[object, object, object]:
        self.prepared.append(prepare)
        return object(), object(), object()

    def _put(self, _ticket: Ticket, *blocks: Any) -> object:
        self.groups.append(blocks)
        return object()


@pytest.fixture
def workers() -> Workers:
    """Return an encoder, a store that has just committed, and two readers, all ready."""
    pools = [kind([Actor() for _ in names], list(names)) for kind, names in _POOLS]
    for pool in pools:
        for worker in pool.workers:
            worker.info = WorkerInfo(pid=1, created_s=0.0, node_id="a", result=None)
    return Workers(*pools)  # type: ignore[arg-type]


_POOLS: tuple[tuple[Any, str], ...] = ((ActorPool, "e"), (StorePool, "s"), (ActorPool, "ab"))


@pytest.mark.parametrize(
    ("unread", "encodes", "scores", "waits"),
    [
        (1, 1, 0, False),
        (1, 0, 0, False),
        (3, 1, 2, False),
        (4, 0, 3, True),
        (4, 1, 3, True),
        (0, 1, 0, True),
        (0, 0, 0, False),
    ],
)
def test_dispatch_puts_wait_while_backlog_suffices_or_none_is_scored(
    workers: Workers, unread: int, encodes: int, scores: int, waits: bool
) -> None:
    """Check the threshold: more than one segment for each of the two readers."""
    executor = PooledExecutor(workers, Timeouts(), clock=lambda: 100.0)
    executor.set_backlog(unread, unsubmitted_segments=None)
    (store,) = workers.stores.workers
    vars(executor)["_write_batcher"].ended(store, 0.01)
    workers.encoders.workers[0].tasks = [object()] * encodes
    for number in range(scores):
        workers.readers.workers[number % 2].tasks.append(object())
    (segment,) = segments_of("a", 1)
    vars(executor)["_encoded"][segment.key, 0] = SimpleNamespace(block="block", node_id="a")
    assert executor.slots("put") == PUT_SEGMENTS * TASKS_PER_ACTOR
    executor.submit("put", segment)
    assert executor.slots("put") == PUT_SEGMENTS * TASKS_PER_ACTOR - 1
    assert store.actor.groups == ([] if waits else [("block",)])


@pytest.mark.parametrize("unread", [0, 30])
def test_only_what_is_to_be_read_is_prepared(workers: Workers, unread: int) -> None:
    """Count only segments that are to be scored, not those encoded and held because they wait for a store."""
    executor = PooledExecutor(workers, Timeouts())
    *held, last = segments_of("a", 31)
    for segment in held:
        vars(executor)["_encoded"][segment.key, segment.index] = SimpleNamespace(block="block", node_id="a")
    executor.set_backlog(unread, unsubmitted_segments=0)
    executor.submit("encode", last)
    assert workers.encoders.workers[0].actor.prepared == [unread > 0]
