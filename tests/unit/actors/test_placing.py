# SPDX-License-Identifier: Apache-2.0
"""Locality-aware routing of tasks. Needs no running Ray."""

from actors.executor.routing import MAX_TRACKED_DOCUMENTS, Router
from actors.workers.base import WorkerInfo
from actors.workers.pools import TASKS_PER_ACTOR, ActorPool, PoolWorker
from actors.workers.start import Workers
from actors.workers.store import StorePool, shard_of
from longmem.types import DocumentKey

KEY = DocumentKey("test", "a")


def workers_on(nodes: str, stores: int = 1) -> Workers:
    """Return an encoder on each of the nodes, and a reader."""

    def ready(pool: ActorPool) -> ActorPool:
        for worker, node in zip(pool.workers, nodes, strict=False):
            worker.info = WorkerInfo(pid=1, created_s=0.0, node_id=node, result=None)
        return pool

    names = [str(rank) for rank in range(len(nodes))]
    store = StorePool([None] * stores, [str(rank) for rank in range(stores)])
    return Workers(ready(ActorPool([None] * len(nodes), names)), store, ready(ActorPool([None] * len(nodes), names)))


def fill(worker: PoolWorker) -> None:
    worker.tasks = [object()] * TASKS_PER_ACTOR


def test_a_segment_is_read_where_it_was_encoded() -> None:
    workers = workers_on("ab")
    router = Router(workers)
    a, b = workers.readers.workers
    assert router.choose("score", KEY, "b") is b
    router.sent("score", b, KEY)
    assert router.choose("score", KEY, "a") is a
    fill(a)
    assert router.choose("score", KEY, "a") is b
    fill(b)
    assert router.choose("score", KEY, "a") is None


def test_on_a_node_the_reader_with_the_window_is_first() -> None:
    workers = workers_on("aa")
    router = Router(workers)
    first, second = workers.readers.workers
    router.sent("score", second, KEY)
    assert router.choose("score", KEY, "a") is second
    second.tasks.append(object())
    assert router.choose("score", KEY, "a") is second
    second.tasks.append(object())
    assert router.choose("score", KEY, "a") is first
    assert router.evict(KEY) == [second]
    assert router.evict(KEY) == []


def test_a_document_is_encoded_on_the_node_of_its_reader() -> None:
    workers = workers_on("ab")
    router = Router(workers)
    router.sent("score", workers.readers.workers[1], KEY)
    a, b = workers.encoders.workers
    assert router.choose("encode", KEY, None) is b
    b.tasks.append(object())
    assert router.choose("encode", KEY, None) is b
    assert router.choose("encode", DocumentKey("test", "other"), None) is a
    # a remote worker is better than none
    b.tasks.append(object())
    assert router.choose("encode", KEY, None) is a
    # a lost reader has no location
    workers.readers.workers[1].info = None
    b.tasks.clear()
    a.tasks.clear()
    assert router.choose("encode", KEY, None) is a


def test_a_put_waits_for_its_own_store() -> None:
    workers = workers_on("a", stores=2)
    router = Router(workers)
    mine = workers.stores.workers[shard_of(KEY, 2)]
    other = workers.stores.workers[1 - shard_of(KEY, 2)]
    other.info = WorkerInfo(pid=1, created_s=0.0, node_id="a", result=None)
    assert router.choose("put", KEY, "a") is None
    mine.info = other.info
    assert router.choose("put", KEY, "a") is mine


def test_readers_of_old_documents_are_forgotten() -> None:
    workers = workers_on("a")
    router = Router(workers)
    for number in range(MAX_TRACKED_DOCUMENTS + 1):
        router.sent("score", workers.readers.workers[0], DocumentKey("test", str(number)))
        router.sent("encode", workers.encoders.workers[0], DocumentKey("test", str(number)))
    assert router.evict(DocumentKey("test", "0")) == []
    assert router.evict(DocumentKey("test", "1")) == workers.readers.workers + workers.encoders.workers


def test_of_equally_busy_encoders_the_latest_of_a_document_is_first() -> None:
    workers = workers_on("aa")
    router = Router(workers)
    first, second = workers.encoders.workers
    assert router.choose("encode", KEY, None) is first
    router.sent("encode", first, KEY)
    router.sent("encode", second, KEY)
    assert router.choose("encode", KEY, None) is second
    # an idle one is better than its window
    second.tasks.append(object())
    assert router.choose("encode", KEY, None) is first
    assert router.evict(KEY) == [first, second]
    assert router.evict(KEY) == []
