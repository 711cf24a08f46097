"""Memory store actors: each is the single writer of the documents of one shard, and what readers fetch blocks from."""

from threading import Lock

import ray
import xxhash

from actors.failures import translated
from actors.outcome import Outcome, attempt
from actors.pool import ActorPool, Worker
from actors.worker import HEALTH, NAMESPACE, UNTIL_DONE, opened
from longmem.memory.opening import MemoryStore
from longmem.memory.store import AbstractBlockSource, AbstractMemoryStore
from longmem.types import DocumentKey, KVBlock, SegmentInfo


@ray.remote(concurrency_groups={"write": 1, "read": 2, "control": 1, **HEALTH})
class StoreActor:
    """Writes and reads run in groups of their own, so that a write never waits for a read."""

    def __init__(self, uri: str, shard: int) -> None:
        self._uri = uri
        self._shard = shard
        self._opening = Lock()
        self._opened: AbstractMemoryStore | None = None

    def __repr__(self) -> str:
        return f"MemoryStore(shard={self._shard}, uri={self._uri})"

    def _store(self) -> AbstractMemoryStore:
        with self._opening:
            if self._opened is None:
                self._opened = MemoryStore.open(self._uri)
            return self._opened

    @ray.method(concurrency_group="control", max_task_retries=UNTIL_DONE)
    def ready(self) -> Outcome:
        """Open the store; the result is a WorkerInfo with the store's fingerprint."""
        return opened(lambda: self._store().fingerprint())

    @ray.method(concurrency_group="health")
    def alive(self) -> None:
        """Answers unless the process is stopped or gone."""

    @ray.method(concurrency_group="write")
    def put(self, block: KVBlock) -> Outcome:
        return attempt(lambda: self._store().put(block))

    @ray.method(concurrency_group="read", max_task_retries=UNTIL_DONE)
    def read(self, key: DocumentKey, first_segment: int, last_segment: int) -> list[KVBlock]:
        return self._store().read(key, first_segment, last_segment)

    @ray.method(concurrency_group="control", max_task_retries=UNTIL_DONE)
    def segments(self, key: DocumentKey) -> list[SegmentInfo]:
        return self._store().segments(key)

    @ray.method(concurrency_group="write", max_task_retries=UNTIL_DONE)
    def delete(self, key: DocumentKey) -> int:
        return self._store().delete(key)

    @ray.method(concurrency_group="write")
    def close(self) -> None:
        """Wait for the writes before this one, then let go of the files."""
        self._store().close()


class StorePool(ActorPool):
    """Store actors, by shard: a document's blocks always go to the same one."""

    def shard(self, key: DocumentKey) -> Worker:
        return self.workers[shard_of(key, len(self.workers))]

    def segments(self, key: DocumentKey, timeout_s: float) -> list[SegmentInfo]:
        with translated(f"listing {key}"):
            infos: list[SegmentInfo] = ray.get(self.shard(key).actor.segments.remote(key), timeout=timeout_s)
        return infos

    def delete(self, key: DocumentKey, timeout_s: float) -> None:
        with translated(f"deleting {key}"):
            ray.get(self.shard(key).actor.delete.remote(key), timeout=timeout_s)

    def close(self, timeout_s: float) -> None:
        """Let writes that have begun end, then close the files."""
        with translated("closing the store"):
            ray.get([worker.actor.close.remote() for worker in self.workers], timeout=timeout_s)


class RemoteBlockSource(AbstractBlockSource):
    """The reading half of a store, through its shards' actors, which are found by name.

    Names rather than handles, because an actor whose constructor was given handles cannot be restarted by Ray once
    the driver's copy of them is gone.
    """

    def __init__(self, shard_names: list[str]) -> None:
        self._names = shard_names
        self._shards: list[ray.actor.ActorHandle] = []

    def read(self, key: DocumentKey, first_segment: int, last_segment: int) -> list[KVBlock]:
        with translated(f"reading blocks of {key}"):
            if not self._shards:
                self._shards = [ray.get_actor(name, namespace=NAMESPACE) for name in self._names]
            shard = self._shards[shard_of(key, len(self._shards))]
            blocks: list[KVBlock] = ray.get(shard.read.remote(key, first_segment, last_segment))
        return blocks


def shard_of(key: DocumentKey, num_shards: int) -> int:
    """The one shard that holds a document; the same in every process (Python's own hash is salted)."""
    name = f"{key.namespace}\0{key.document}".encode("utf-8", "surrogatepass")
    return xxhash.xxh3_64_intdigest(name) % num_shards
