"""The promise that every memory store keeps; `tests/contract/test_store.py` runs on all of them.

A store knows blocks, documents and namespaces. It knows nothing of models, queries or attention: a reader takes
blocks out with `read` and searches them in its own memory (`longmem.memory.window`), because shipping queries to
the store and gathered keys back costs about 60 times more bytes than holding each block once.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from longmem.types import DocumentKey, Fingerprint, KVBlock, PutReceipt, SegmentInfo


class AbstractBlockSource(ABC):
    """The reading half: all that a SideNet worker needs. A Ray store actor is reached through this too."""

    @abstractmethod
    def read(self, key: DocumentKey, first_segment: int, last_segment: int) -> list[KVBlock]:
        """Blocks of segments `[first_segment, last_segment)`, in order, verified against their checksums.

        Arrays are read-only. Raises MissingBlockError when any of them is not stored, CorruptionError when stored
        bytes are not what was written.
        """


class AbstractMemoryStore(AbstractBlockSource):
    """Blocks of documents in namespaces.

    Promises:

    - **Immutable.** Once `put` returned, `read` gives those very bytes until the document is deleted.
    - **Idempotent.** The same (namespace, document, segment) may be put again after a retry: the first block stays,
      the receipt says `duplicate=True`. It is a ConflictError if the *token ids* or the position differ; keys and
      values may differ in the last bits (another CPU), and then the first ones stay.
    - **All or nothing.** A block is visible whole or not at all, also after `kill -9` in the middle of `put`.
    - **Isolated.** No call with one key ever returns or removes anything of another key.
    - **One model.** The first block fixes the store's fingerprint; blocks with another one are refused.
    - **Read your writes.** What `put` acknowledged is visible to the next call of any thread or process.
    - **Thread-safe.** Every method may be called from several threads at once.

    Damage is an error (CorruptionError), never a number.
    """

    @abstractmethod
    def put(self, block: KVBlock) -> PutReceipt:
        """Accept one block; returns when it is visible to every reader.

        Raises NumericError for NaN or infinity, ConflictError, FingerprintError, StoreError (disk full, read-only).
        Segments of one document may arrive in any order.
        """

    @abstractmethod
    def segments(self, key: DocumentKey) -> list[SegmentInfo]:
        """Catalogue entries of one document by segment index; empty for an unknown document."""

    @abstractmethod
    def documents(self, namespace: str | None = None) -> list[DocumentKey]:
        """Every document that holds at least one block, sorted; all namespaces when none is given."""

    @abstractmethod
    def fork(self, source: DocumentKey, target: DocumentKey) -> int:
        """Make `target` a document with the same blocks as `source`, without copying payload; returns the number
        of blocks. Later writes or deletes of either do not touch the other.

        Raises MissingBlockError for an unknown source, ConflictError when the target already exists.
        """

    @abstractmethod
    def delete(self, key: DocumentKey) -> int:
        """Forget a document; returns the number of blocks removed (0 for an unknown document)."""

    @abstractmethod
    def fingerprint(self) -> Fingerprint | None:
        """Fingerprint that the first block fixed; None while the store is empty."""

    @abstractmethod
    def verify(self, key: DocumentKey | None = None) -> int:
        """Read every block (of one document, or of all) and check it; returns how many. Raises CorruptionError."""

    @abstractmethod
    def num_bytes(self) -> int:
        """Payload bytes held, as the catalogue counts them (forked blocks once)."""

    @abstractmethod
    def close(self) -> None:
        """Release handles and caches; every later call raises StoreError. Closing twice is allowed."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def check_sequence(infos: Sequence[SegmentInfo], key: DocumentKey, first_segment: int, last_segment: int) -> None:
    """Assert on our own bookkeeping: entries are exactly the segments asked for and follow each other in position."""
    assert [info.segment for info in infos] == list(range(first_segment, last_segment)), (
        f"{key}: expected segments [{first_segment}, {last_segment}), got {[info.segment for info in infos]}"
    )
    for before, after in zip(infos, infos[1:], strict=False):
        assert before.end_token == after.start_token, (
            f"{key}: segment {before.segment} ends at {before.end_token} but {after.segment} starts at {after.start_token}"
        )
