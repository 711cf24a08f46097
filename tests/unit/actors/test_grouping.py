# SPDX-License-Identifier: Apache-2.0
"""Unit tests of the write batching with a fake clock. Needs no running Ray."""

from collections import deque
from dataclasses import dataclass
from math import inf
from types import SimpleNamespace

import pytest

from actors.executor.model_check import ModelCheck
from actors.executor.routing import Router
from actors.executor.tasks import SegmentTask, Task
from actors.executor.write_batcher import MOST_WAIT_S, PAUSE, PutBatch, WriteBatcher
from actors.result import TaskResult
from actors.workers.base import WorkerInfo
from actors.workers.pools import TASKS_PER_ACTOR, ActorPool, PoolWorker
from actors.workers.start import Workers
from actors.workers.store import StorePool
from longmem.errors import ConflictError, StoreError
from longmem.runtime.executor import PUT_SEGMENTS
from longmem.types import Fingerprint
from tests.scripted_driver import segments_of


@dataclass
class Clock:
    now_s: float = 100.0

    def __call__(self) -> float:
        return self.now_s


class Stores:
    """Some stores with waiting puts, and a record of the sent batches."""

    def __init__(self, count: int = 1) -> None:
        stores = StorePool([None] * count, [str(rank) for rank in range(count)])
        for store in stores.workers:
            store.info = WorkerInfo(pid=1, created_s=0.0, node_id="a", result=None)
        self.workers: list[PoolWorker] = stores.workers
        self.clock = Clock()
        self.waiting: deque[Task] = deque()
        nobody = ActorPool([], [])
        self.model = ModelCheck()
        self.batcher = WriteBatcher(Router(Workers(nobody, stores, nobody)), self.clock, self.model)

    def wait(self, document: str, count: int, exclusive: tuple[int, ...] = ()) -> None:
        for segment in segments_of(document, count):
            task = SegmentTask("put", segment)
            task.exclusive = segment.index in exclusive
            self.waiting.append(task)

    def taken(self, may_wait: bool = True) -> list[list[int]]:
        """Return the segments of each sent batch."""
        groups = []
        for store, group in self.batcher.take(self.waiting, may_wait):
            store.tasks.append(group)
            store.exclusive = group.exclusive
            groups.append([put.segment.index for put in group.members])
        return groups

    def committed(self, busy_s: float) -> None:
        for store in self.workers:
            if store.tasks:
                store.tasks.pop(0)
                store.exclusive = False
                self.batcher.ended(store, busy_s)


def test_the_first_put_does_not_wait() -> None:
    stores = Stores()
    stores.wait("a", 1)
    assert stores.taken() == [[0]]
    assert not stores.waiting


def test_grouping_waits_for_pause_proportional_to_commit() -> None:
    stores = Stores()
    stores.wait("a", 1)
    stores.taken()
    stores.wait("a", 3)
    assert stores.taken() == []
    assert stores.batcher.wait_s == inf, "the end of the commit is what they wait for"
    stores.committed(busy_s=0.01)
    assert stores.taken() == []
    assert stores.batcher.wait_s == pytest.approx(0.01 * PAUSE)
    stores.clock.now_s += 0.01 * PAUSE
    assert stores.taken() == [[0, 1, 2]]
    assert stores.batcher.wait_s == inf


def test_a_slow_disk_does_not_hold_readers_up_for_long() -> None:
    stores = Stores()
    stores.wait("a", 1)
    stores.taken()
    stores.committed(busy_s=10.0)
    stores.wait("a", 1)
    assert stores.taken() == []
    assert stores.batcher.wait_s == MOST_WAIT_S


def test_grouping_sends_when_no_further_put_is_coming() -> None:
    stores = Stores()
    stores.wait("a", 1)
    stores.taken()
    stores.committed(busy_s=0.01)
    stores.wait("a", 2)
    assert stores.taken(may_wait=False) == [[0, 1]]


def test_a_store_that_falls_behind_commits_more_at_a_time() -> None:
    """Check larger commits even under demand from readers."""
    stores = Stores()
    for number in range(TASKS_PER_ACTOR + 2):
        stores.wait("abcdef"[number], 1)
        assert len(stores.taken(may_wait=False)) == (number < TASKS_PER_ACTOR)
    assert stores.batcher.wait_s == inf, "the end of a commit is what they wait for"
    stores.committed(busy_s=1.0)
    assert stores.taken(may_wait=False) == [[0, 0]]


@pytest.mark.parametrize("may_wait", [True, False])
def test_what_does_not_fill_a_group_waits_behind_those_that_go(may_wait: bool) -> None:
    """Check the queue: one commit may wait behind another; more would not be faster and could not grow any more."""
    stores = Stores()
    stores.wait("a", 1)
    stores.taken()
    stores.wait("b", PUT_SEGMENTS + 1)
    assert stores.taken(may_wait) == [list(range(PUT_SEGMENTS))]
    assert len(stores.waiting) == 1
    assert stores.batcher.wait_s == inf


@pytest.mark.parametrize(
    ("kilobytes_per_token", "groups"),
    # 4,096 tokens of 8 MB: eight blocks are 64 MB; of 24 and 96 MB: two fit into 64 MiB, and one always does
    [(2, [[*range(8)], [8]]), (6, [[0, 1], [2, 3], [4, 5], [6, 7], [8]]), (24, [[each] for each in range(9)])],
)
def test_a_group_is_bounded_by_bytes(kilobytes_per_token: int, groups: list[list[int]]) -> None:
    stores = Stores()
    # 400 bytes a token for the keys and values of a head in float16
    model = Fingerprint("b", "t", 1, 5 * kilobytes_per_token // 2, 100, 1, 4096, "float32", "float16")
    assert model.block_bytes == 4096 * 1000 * kilobytes_per_token
    stores.model("encode", SimpleNamespace(fingerprint=model))
    stores.wait("a", 9)
    taken = stores.taken(may_wait=False)
    while stores.waiting:
        stores.committed(busy_s=0.0)
        taken += stores.taken(may_wait=False)
    assert taken == groups


def test_a_full_group_does_not_wait() -> None:
    stores = Stores()
    stores.wait("a", 1)
    stores.taken()
    stores.wait("a", PUT_SEGMENTS + 2)
    assert stores.taken() == [list(range(PUT_SEGMENTS))]
    assert len(stores.waiting) == 2


def test_in_one_pass_no_put_waits() -> None:
    stores = Stores()
    model = Fingerprint("b", "t", 1, 2, 4, 1, 8, "float32", "float16", encoded_behind="a memory")
    stores.model("encode", SimpleNamespace(fingerprint=model))
    stores.wait("a", 1)
    assert stores.taken() == [[0]]
    stores.committed(busy_s=1.0)
    stores.wait("b", 1)
    assert stores.taken(may_wait=True) == [[0]]


def test_each_store_has_groups_and_pauses_of_its_own() -> None:
    stores = Stores(count=2)
    for document in "abcdefgh":
        stores.wait(document, 1)
    sizes = sorted(len(group) for group in stores.taken())
    assert len(sizes) == 2
    assert sum(sizes) == 8
    stores.workers[0].tasks.clear()
    stores.batcher.ended(stores.workers[0], 0.0)
    for document in "abcdefgh":
        stores.wait(document, 1)
    # the other store is still committing
    assert len(stores.taken()) == 1


def test_grouping_exclusive_put_is_sent_alone() -> None:
    stores = Stores()
    stores.wait("a", 4, exclusive=(1,))
    assert stores.taken(may_wait=False) == [[0]]
    assert stores.taken(may_wait=False) == [], "not beside the one before it"
    stores.committed(busy_s=0.0)
    assert stores.taken(may_wait=False) == [[1]]
    assert stores.taken(may_wait=False) == []
    stores.committed(busy_s=0.0)
    assert stores.taken(may_wait=False) == [[2, 3]]


def test_each_has_what_came_of_it() -> None:
    group = PutBatch("put", [SegmentTask("put", segment) for segment in segments_of("a", 2)])
    refused, closed = ConflictError("other tokens"), StoreError("closed")
    assert group.outcomes(TaskResult(["receipt", refused], None, 0.2)) == [
        TaskResult("receipt", None, 0.1),
        TaskResult(None, refused, 0.1),
    ]
    assert group.outcomes(TaskResult(None, closed, 0.2)) == [TaskResult(None, closed, 0.1)] * 2
