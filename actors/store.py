"""Store actor: the single writer of the documents of one shard, and what readers fetch blocks from."""

from threading import Lock

import ray
import xxhash

from actors.failures import translated
from actors.outcome import Outcome, attempt
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
    def close(self) -> None:
        """Wait for the writes before this one, then let go of the files."""
        self._store().close()


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
            blocks: list[KVBlock] = ray.get(shard_of(self._shards, key).read.remote(key, first_segment, last_segment))
        return blocks


def shard_of(shards: list["ray.actor.ActorHandle"], key: DocumentKey) -> "ray.actor.ActorHandle":
    """The one actor that writes a document; the same in every process (Python's own hash is salted)."""
    return shards[
        xxhash.xxh3_64_intdigest(f"{key.namespace}\0{key.document}".encode("utf-8", "surrogatepass")) % len(shards)
    ]
