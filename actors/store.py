"""Memory store actors: each is the single writer of the documents of one shard, and what readers fetch blocks from."""

from secrets import token_hex
from threading import Lock
from typing import Any

import ray
import xxhash

from actors.failures import translated
from actors.outcome import Outcome, attempt
from actors.pool import RESTART, ActorPool
from longmem.memory.opening import MemoryStore
from longmem.memory.store import AbstractBlockSource, AbstractMemoryStore
from longmem.types import DocumentKey, KVBlock, SegmentInfo


@ray.remote(concurrency_groups={"write": 1, "read": 2, "control": 1})
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

    @ray.method(concurrency_group="control")
    def ready(self) -> Outcome:
        """Open the store."""
        return attempt(lambda: self._store().fingerprint())

    @ray.method(concurrency_group="write")
    def put(self, block: KVBlock) -> Outcome:
        return attempt(lambda: self._store().put(block))

    @ray.method(concurrency_group="read")
    def read(self, key: DocumentKey, first_segment: int, last_segment: int) -> list[KVBlock]:
        return self._store().read(key, first_segment, last_segment)

    @ray.method(concurrency_group="control")
    def segments(self, key: DocumentKey) -> list[SegmentInfo]:
        return self._store().segments(key)

    @ray.method(concurrency_group="write")
    def delete(self, key: DocumentKey) -> int:
        return self._store().delete(key)

    @ray.method(concurrency_group="write")
    def trim(self, key: DocumentKey, first_segment: int) -> int:
        return self._store().trim(key, first_segment)

    @ray.method(concurrency_group="write")
    def close(self) -> None:
        """Wait for the writes before this one, then let go of the files."""
        self._store().close()


class StorePool(ActorPool):
    """Store actors, by shard: a document's blocks always go to the same one."""

    def __init__(self, uri: str, size: int) -> None:
        # named, so that a restarted reader finds them again
        run = token_hex(4)
        self.names = [f"longmem-store-{run}-{shard}" for shard in range(size)]
        super().__init__(
            [
                StoreActor.options(num_cpus=0, name=name, **RESTART).remote(uri, shard)  # type: ignore[attr-defined]
                for shard, name in enumerate(self.names)
            ]
        )

    def put(self, key: DocumentKey, block: Any) -> tuple[int, Any]:
        """Start writing the referenced block; returns the actor's index and a reference to the outcome."""
        return self.send(lambda actor: actor.put.remote(block), choose=shard_of(key, len(self.actors)))

    def segments(self, key: DocumentKey) -> list[SegmentInfo]:
        with translated(f"listing {key}"):
            infos: list[SegmentInfo] = ray.get(self._shard(key).segments.remote(key))
        return infos

    def delete(self, key: DocumentKey) -> None:
        with translated(f"deleting {key}"):
            ray.get(self._shard(key).delete.remote(key))

    def trim(self, key: DocumentKey, first_segment: int) -> None:
        with translated(f"trimming {key}"):
            ray.get(self._shard(key).trim.remote(key, first_segment))

    def close(self, timeout_s: float) -> None:
        """Let writes that have begun end, then close the files."""
        with translated("closing the store"):
            ray.get([actor.close.remote() for actor in self.actors], timeout=timeout_s)

    def _shard(self, key: DocumentKey) -> Any:
        return self.actors[shard_of(key, len(self.actors))]


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
                self._shards = [ray.get_actor(name) for name in self._names]
            shard = self._shards[shard_of(key, len(self._shards))]
            blocks: list[KVBlock] = ray.get(shard.read.remote(key, first_segment, last_segment))
        return blocks


def shard_of(key: DocumentKey, num_shards: int) -> int:
    """The one shard that holds a document; the same in every process (Python's own hash is salted)."""
    name = f"{key.namespace}\0{key.document}".encode("utf-8", "surrogatepass")
    return xxhash.xxh3_64_intdigest(name) % num_shards
