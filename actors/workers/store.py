# SPDX-License-Identifier: Apache-2.0
"""Memory store actors: each is the single writer of the documents of one shard, and serves their blocks to readers."""

from contextlib import suppress
from threading import Lock

import ray
import ray.exceptions
import xxhash

from actors.config import STORES_RECENT_BYTES
from actors.errors import translated
from actors.result import TaskResult
from actors.workers.base import HEALTH, NAMESPACE, UNTIL_DONE, opened
from actors.workers.pools import ActorPool, PoolWorker
from actors.workers.running import Alive, RunningTask, Ticket
from longmem.store.base import AbstractMemoryStore, put_each
from longmem.store.config import StoreSettings
from longmem.store.source import AbstractDocumentSource
from longmem.stored_format import RECENT_BYTES
from longmem.system.heap import return_freed_memory
from longmem.system.redaction import redacted
from longmem.types import DocumentKey, Fingerprint, KVBlock, SegmentInfo

RECENT_SHARE = 1 / 4
"""Largest share of the node's object store, where these blocks stay."""


def recent_bytes(num_shards: int) -> int:
    """Return the capacity of one of `num_shards` store actors for its newest blocks, in bytes.

    It is never less than that of a store in one process.
    """
    here = ray.get_runtime_context().get_node_id()
    sizes = [node["Resources"].get("object_store_memory", 0) for node in ray.nodes() if node["NodeID"] == here]
    return max(RECENT_BYTES, int(min(STORES_RECENT_BYTES, RECENT_SHARE * sum(sizes)) / num_shards))


@ray.remote(concurrency_groups={"write": 1, "read": 2, "control": 1, **HEALTH})
class StoreActor:
    """One shard of the store. Reads and writes have separate concurrency groups: a write never waits for a read."""

    def __init__(self, settings: StoreSettings, shard: int, num_shards: int) -> None:
        # on a cluster of others, Ray's threads have heaps already, too many to limit them
        return_freed_memory()
        self._settings = settings
        self._shard = shard
        self._num_shards = num_shards
        self._opening = Lock()
        self._opened: AbstractMemoryStore | None = None
        self._running = RunningTask()

    def __repr__(self) -> str:
        return f"MemoryStore(shard={self._shard}, uri={redacted(self._settings.uri)})"

    def _store(self) -> AbstractMemoryStore:
        with self._opening:
            if self._opened is None:
                self._opened = self._settings.open(recent_bytes(self._num_shards))
            return self._opened

    @ray.method(concurrency_group="control", max_task_retries=UNTIL_DONE)
    def ready(self) -> TaskResult:
        """Open the store; the result is a WorkerInfo with the store's fingerprint."""
        return opened(lambda: self._store().fingerprint())

    @ray.method(concurrency_group="write")
    def expect_puts(self) -> None:
        """Import what the first put needs, which waits for it; other calls do not. The put reports what fails."""
        self._store().expect_puts()

    @ray.method(concurrency_group="health")
    def alive(self) -> Alive:
        """Return which process this is, and the batch of puts that it runs."""
        return self._running.alive()

    @ray.method(concurrency_group="write")
    def put(self, ticket: Ticket, *blocks: KVBlock) -> TaskResult:
        """Write several blocks in one commit; the result holds a PutReceipt or LongMemError for each."""
        return self._running.run(ticket, lambda: put_each(self._store(), blocks))

    @ray.method(concurrency_group="read", max_task_retries=UNTIL_DONE)
    def read(self, key: DocumentKey, first_segment: int, last_segment: int, ahead: int) -> list[KVBlock]:
        return self._store().read(key, first_segment, last_segment, ahead=ahead)

    @ray.method(concurrency_group="control", max_task_retries=UNTIL_DONE)
    def segments(self, key: DocumentKey) -> list[SegmentInfo]:
        return self._store().segments(key)

    @ray.method(concurrency_group="control", max_task_retries=UNTIL_DONE)
    def documents(self, namespace: str | None) -> list[DocumentKey]:
        return self._store().documents(namespace)

    @ray.method(concurrency_group="control", max_task_retries=UNTIL_DONE)
    def fingerprint(self) -> Fingerprint | None:
        return self._store().fingerprint()

    @ray.method(concurrency_group="write", max_task_retries=UNTIL_DONE)
    def delete(self, key: DocumentKey) -> int:
        return self._store().delete(key)

    @ray.method(concurrency_group="write", max_task_retries=UNTIL_DONE)
    def trim(self, key: DocumentKey, first_segment: int) -> int:
        return self._store().trim(key, first_segment)

    @ray.method(concurrency_group="write")
    def close(self) -> None:
        """Close the store after the writes that were submitted before."""
        self._store().close()


class StorePool(ActorPool):
    """Store actors by shard. All blocks of a document go to the same shard, so every shard must be usable."""

    @property
    def can_accept_tasks(self) -> bool:
        return all(worker.info is not None for worker in self.workers)

    @property
    def ended(self) -> bool:
        return any(worker.gone for worker in self.workers)

    def shard(self, key: DocumentKey) -> PoolWorker:
        return self.workers[shard_of(key, len(self.workers))]

    def close(self, timeout_s: float) -> None:
        """Close the files once running writes have ended, waiting at most `timeout_s`.

        A lost or slow store is skipped: its acknowledged blocks are stored, and its files close with its process.
        """
        closed, _ = ray.wait(
            [worker.actor.close.remote() for worker in self.workers],
            num_returns=len(self.workers),
            timeout=timeout_s,
        )
        for ref in closed:
            with translated("closing the store"), suppress(ray.exceptions.RayActorError):
                ray.get(ref)


class RemoteBlockSource(AbstractDocumentSource):
    """Read access to a store through the actors of its shards, which are found by name.

    Holds names and not handles, because Ray cannot restart an actor whose constructor arguments hold handles once the
    driver's copies are gone.
    """

    def __init__(self, shard_names: list[str]) -> None:
        self._names = shard_names
        self._shards: list[ray.actor.ActorHandle] = []

    def read(self, key: DocumentKey, first_segment: int, last_segment: int, *, ahead: int = 0) -> list[KVBlock]:
        with translated(f"reading blocks of {key}"):
            blocks: list[KVBlock] = ray.get(self._shard(key).read.remote(key, first_segment, last_segment, ahead))
        return blocks

    def segments(self, key: DocumentKey) -> list[SegmentInfo]:
        with translated(f"listing {key}"):
            infos: list[SegmentInfo] = ray.get(self._shard(key).segments.remote(key))
        return infos

    def fingerprint(self) -> Fingerprint | None:
        with translated("asking the store for its fingerprint"):
            prints: list[Fingerprint | None] = ray.get([shard.fingerprint.remote() for shard in self._actors()])
        return next((each for each in prints if each is not None), None)

    def _actors(self) -> list[ray.actor.ActorHandle]:
        if not self._shards:
            self._shards = [ray.get_actor(name, namespace=NAMESPACE) for name in self._names]
        return self._shards

    def _shard(self, key: DocumentKey) -> ray.actor.ActorHandle:
        shards = self._actors()
        return shards[shard_of(key, len(shards))]


def shard_of(key: DocumentKey, num_shards: int) -> int:
    """Return the shard that holds a document. Uses xxHash, because Python's hash differs between processes."""
    name = f"{key.namespace}\0{key.document}".encode("utf-8", "surrogatepass")
    return xxhash.xxh3_64_intdigest(name) % num_shards
