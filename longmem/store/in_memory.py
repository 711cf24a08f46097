# SPDX-License-Identifier: Apache-2.0
"""Reference store: a dictionary and a lock, without durability. All contract tests also run on it."""

from dataclasses import replace
from threading import RLock

import numpy as np

from longmem.errors import ConflictError, CorruptionError, MissingBlockError, StoreError
from longmem.store.base import (
    AbstractMemoryStore,
    check_block,
    check_fingerprint,
    check_same_tokens,
    describe_block,
    missing_blocks,
    with_more,
)
from longmem.store.lance.quota import Quota
from longmem.types import DocumentKey, Fingerprint, KVBlock, PutReceipt, SegmentInfo


class InMemoryStore(AbstractMemoryStore):
    """Store in the memory of this process; keeps every guarantee of AbstractMemoryStore until the process ends."""

    def __init__(self, max_bytes: int | None = None) -> None:
        self._documents: dict[DocumentKey, dict[int, tuple[SegmentInfo, KVBlock]]] = {}
        self._fingerprint: Fingerprint | None = None
        self._lock = RLock()
        self._closed = False
        self._quota = Quota(max_bytes, self.num_bytes, "the store in memory")

    @property
    def location(self) -> str:
        return "memory://"

    def put(self, block: KVBlock) -> PutReceipt:
        check_block(block)
        with self._lock:
            self._check_open()
            check_fingerprint(self._fingerprint, block.fingerprint)
            segments = self._documents.get(block.key, {})
            if block.segment in segments:
                info = segments[block.segment][0]
                check_same_tokens(info, block)
                return PutReceipt(block.key, block.segment, info.num_bytes, duplicate=True)
            self._quota.check(block.num_bytes)
            kept = replace(block, tokens=_copy(block.tokens), keys=_copy(block.keys), values=_copy(block.values))
            self._documents[block.key] = {**segments, block.segment: (describe_block(kept), kept)}
            self._quota.added(block.num_bytes)
            self._fingerprint = block.fingerprint
            return PutReceipt(block.key, block.segment, block.num_bytes, duplicate=False)

    def read(self, key: DocumentKey, first_segment: int, last_segment: int, *, ahead: int = 0) -> list[KVBlock]:
        with self._lock:
            self._check_open()
            segments = dict(self._documents.get(key, {}))
        wanted = range(first_segment, last_segment)
        if not all(index in segments for index in wanted):
            raise missing_blocks(key, wanted, list(segments))
        wanted = with_more(wanted, ahead, segments)
        for info, block in (segments[index] for index in wanted):
            if block.checksum() != info.checksum:
                raise CorruptionError(f"{key} segment {info.segment}: memory does not match the checksum of its write")
        return [replace(segments[index][1], key=key) for index in wanted]

    def segments(self, key: DocumentKey) -> list[SegmentInfo]:
        with self._lock:
            self._check_open()
            segments = self._documents.get(key, {})
            return [replace(segments[index][0], key=key) for index in sorted(segments)]

    def documents(self, namespace: str | None = None) -> list[DocumentKey]:
        with self._lock:
            self._check_open()
            return sorted(key for key in self._documents if namespace in (None, key.namespace))

    def fork(self, source: DocumentKey, target: DocumentKey) -> int:
        with self._lock:
            self._check_open()
            if source not in self._documents:
                raise MissingBlockError(f"cannot fork {source}: the store holds no such document")
            if target in self._documents:
                raise ConflictError(f"cannot fork to {target}: the document exists; delete it or use another name")
            self._documents[target] = dict(self._documents[source])
            return len(self._documents[target])

    def delete(self, key: DocumentKey) -> int:
        with self._lock:
            self._check_open()
            self._quota.freed()
            return len(self._documents.pop(key, {}))

    def trim(self, key: DocumentKey, first_segment: int) -> int:
        with self._lock:
            self._check_open()
            segments = self._documents.get(key, {})
            self._quota.freed()
            kept = {index: held for index, held in segments.items() if index >= first_segment}
            if kept:
                self._documents[key] = kept
            else:
                self._documents.pop(key, None)
            return len(segments) - len(kept)

    def fingerprint(self) -> Fingerprint | None:
        with self._lock:
            self._check_open()
            return self._fingerprint

    def verify(self, key: DocumentKey | None = None) -> int:
        keys = self.documents() if key is None else [key]
        return sum(len(self.read(key, info.segment, info.segment + 1)) for key in keys for info in self.segments(key))

    def num_bytes(self) -> int:
        with self._lock:
            self._check_open()
            blocks = {id(block): info.num_bytes for each in self._documents.values() for info, block in each.values()}
            return sum(blocks.values())

    def close(self) -> None:
        with self._lock:
            self._documents.clear()
            self._closed = True

    def _check_open(self) -> None:
        if self._closed:
            raise StoreError("the store is closed; open it again with MemoryStore.open")


def _copy(array: np.ndarray) -> np.ndarray:
    """Return a read-only copy, because the caller may change its array later."""
    copied = np.array(array)
    copied.flags.writeable = False
    return copied
