"""Read-only memory of a service, for `LongMem.score` and `LongMem.generate`."""

from typing import NoReturn

from actors.workers.store import RemoteBlockSource
from longmem.errors import StoreError
from longmem.store.base import AbstractMemoryStore
from longmem.types import DocumentKey, Fingerprint, KVBlock, SegmentInfo


class RemoteMemory(AbstractMemoryStore):
    """Read access to the store behind a service's store actors. Every writing method raises StoreError."""

    def __init__(self, source: RemoteBlockSource) -> None:
        self._source = source

    def read(self, key: DocumentKey, first_segment: int, last_segment: int, *, ahead: int = 0) -> list[KVBlock]:
        return self._source.read(key, first_segment, last_segment, ahead=ahead)

    def segments(self, key: DocumentKey) -> list[SegmentInfo]:
        return self._source.segments(key)

    def fingerprint(self) -> Fingerprint | None:
        return self._source.fingerprint()

    def put(self, block: KVBlock) -> NoReturn:  # noqa: ARG002 - signature of the contract
        self._refuse("put")

    def fork(self, source: DocumentKey, target: DocumentKey) -> NoReturn:  # noqa: ARG002
        self._refuse("fork")

    def delete(self, key: DocumentKey) -> NoReturn:  # noqa: ARG002
        self._refuse("delete")

    def trim(self, key: DocumentKey, first_segment: int) -> NoReturn:  # noqa: ARG002
        self._refuse("trim")

    def documents(self, namespace: str | None = None) -> NoReturn:  # noqa: ARG002
        self._refuse("documents")

    def verify(self, key: DocumentKey | None = None) -> NoReturn:  # noqa: ARG002
        self._refuse("verify")

    def num_bytes(self) -> NoReturn:
        self._refuse("num_bytes")

    def close(self) -> None:
        pass

    def _refuse(self, what: str) -> NoReturn:
        raise StoreError(f"{what}: a service's memory can only be read here; use the store itself, or the client")
