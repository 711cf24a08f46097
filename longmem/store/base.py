"""The promise that every memory store keeps; `tests/contract/test_store.py` runs on all of them.

A store knows blocks, documents and namespaces. It knows nothing of models, queries or attention: a reader takes
blocks out with `read` and searches them in its own memory (`longmem.memory.window`), because shipping queries to
the store and gathered keys back costs about 60 times more bytes than holding each block once.
"""

from abc import abstractmethod
from collections.abc import Container, Sequence
from dataclasses import dataclass
from types import TracebackType

import numpy as np

from longmem.errors import (
    ConflictError,
    FingerprintError,
    LongMemError,
    MissingBlockError,
    NumericError,
    QuotaError,
    StoreError,
)
from longmem.store.document import DocumentMemory
from longmem.store.source import AbstractDocumentSource
from longmem.stored_format import STORED_TYPES, num_not_finite, stored_width
from longmem.types import DEFAULT_NAMESPACE, DocumentKey, Fingerprint, KVBlock, PutReceipt, SegmentInfo

OF_ONE_BLOCK = (ConflictError, NumericError, QuotaError)
"""Errors that one of several blocks may meet and the others not."""


class AbstractMemoryStore(AbstractDocumentSource):
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
    - **One winner.** Of several puts of one block at the same moment, by threads or processes, exactly one is told that
      it is new; of several forks into one document exactly one succeeds.

    Damage is an error (CorruptionError), never a number.
    """

    @abstractmethod
    def put(self, block: KVBlock) -> PutReceipt:
        """Accept one block; returns when it is visible to every reader.

        Raises NumericError for NaN or infinity, ConflictError, FingerprintError, StoreError (disk full, read-only).
        Segments of one document may arrive in any order.
        """

    def put_all(self, blocks: Sequence[KVBlock]) -> list[PutReceipt]:
        """Accept several blocks, which a store may do faster than one after the other; receipts in their order.

        Raises what `put` raises for any of them. Each block is then stored whole or not at all; which ones are is not
        said, and putting them again one by one is safe.
        """
        return [self.put(block) for block in blocks]

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
    def trim(self, key: DocumentKey, first_segment: int) -> int:
        """Forget a document's segments below `first_segment`; returns how many were held. Repeating it changes
        nothing, and no other document or fork is touched. Storage is freed once no document names a whole payload
        table any more. A document of which nothing is left is no longer listed."""

    @abstractmethod
    def verify(self, key: DocumentKey | None = None) -> int:
        """Read every block (of one document, or of all) and check it; returns how many. Raises CorruptionError."""

    @abstractmethod
    def num_bytes(self) -> int:
        """Payload bytes held, as the catalogue counts them (forked blocks once)."""

    def document(self, name: str, namespace: str = DEFAULT_NAMESPACE) -> "WritableDocument":
        """Return a handle on one document's memory, which need not exist yet."""
        return WritableDocument(self, DocumentKey(namespace, name))

    @abstractmethod
    def close(self) -> None:
        """Release handles and caches; every later call raises StoreError. Closing twice is allowed."""

    def __enter__(self) -> "AbstractMemoryStore":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@dataclass(frozen=True)
class WritableDocument(DocumentMemory):
    """A document's memory that a text may be written to, and that can be forked, trimmed and deleted."""

    store: AbstractMemoryStore
    read_only: bool = False

    def fork(self, name: str) -> "WritableDocument":
        """Make a second document in the same namespace that starts with the same blocks; nothing is copied.

        Raises MissingBlockError, ConflictError.
        """
        target = DocumentKey(self.key.namespace, name)
        self.store.fork(self.key, target)
        return WritableDocument(self.store, target)

    def delete(self) -> int:
        """Forget the document; returns the number of blocks removed."""
        return self.store.delete(self.key)

    def trim(self, first_segment: int) -> int:
        """Forget the segments below `first_segment`; returns the number of blocks removed."""
        return self.store.trim(self.key, first_segment)


def check_block(block: KVBlock) -> None:
    """What every store refuses: a block that is not what its fingerprint says or whose name is not Unicode
    (StoreError), NaN or infinity (NumericError)."""
    try:
        f"{block.key}".encode()
    except UnicodeEncodeError as error:
        raise StoreError(f"namespace and document must be valid Unicode, got {str(block.key)!r}: {error}") from error
    identity = block.fingerprint
    shape = (block.num_tokens, identity.kv_heads, stored_width(identity.head_dim, identity.kv_dtype))
    dtype = np.dtype(STORED_TYPES[identity.kv_dtype])
    for name, array in (("keys", block.keys), ("values", block.values)):
        where = f"{block.key} segment {block.segment}: {name}"
        if array.shape != shape or array.dtype != dtype:
            raise StoreError(f"{where} must be {dtype}{shape} as the fingerprint says, got {array.dtype}{array.shape}")
        if bad := num_not_finite(array, identity.kv_dtype):
            raise NumericError(
                f"{where} hold {bad} NaN or infinite numbers of {array.size}; nothing was stored: check the backbone's "
                "weights, or use kv_dtype=bfloat16 if they are too large for float16"
            )
    start = block.segment * identity.segment_tokens
    if not 0 < block.num_tokens <= identity.segment_tokens or block.start_token != start or block.segment < 0:
        raise StoreError(
            f"{block.key} segment {block.segment} must start at token {start} and hold 1 to {identity.segment_tokens} "
            f"tokens, got {block.num_tokens} at {block.start_token}"
        )


def describe_block(block: KVBlock) -> SegmentInfo:
    """The catalogue entry of a block."""
    return SegmentInfo(
        key=block.key,
        segment=block.segment,
        start_token=block.start_token,
        num_tokens=block.num_tokens,
        checksum=block.checksum(),
        tokens_checksum=block.tokens_checksum(),
        num_bytes=block.num_bytes,
    )


def put_each(store: AbstractMemoryStore, blocks: Sequence[KVBlock]) -> list[PutReceipt | LongMemError]:
    """Several blocks in one commit; each alone where one may be refused and the others not. What came of each, in their
    order."""
    try:
        return [*store.put_all(blocks)]
    except OF_ONE_BLOCK as error:
        return [error] if len(blocks) == 1 else [each for block in blocks for each in put_each(store, [block])]
    except LongMemError as error:
        return [error] * len(blocks)


def check_fingerprint(stored: Fingerprint | None, offered: Fingerprint) -> None:
    """Raises FingerprintError when the store holds keys and values of another kind."""
    if stored is not None and stored != offered:
        raise FingerprintError(
            f"the store was written by another model or with other settings (stored != offered): "
            f"{stored.differences(offered)}; use the model and settings that wrote it, or another store"
        )


def check_same_tokens(stored: SegmentInfo, block: KVBlock) -> None:
    """Raises ConflictError unless the stored block holds the same token ids at the same place."""
    if stored.tokens_checksum != block.tokens_checksum():
        raise ConflictError(
            f"{block.key} segment {block.segment} already holds other tokens ({stored.num_tokens} at "
            f"{stored.start_token}, offered {block.num_tokens} at {block.start_token}); the first ones stay: use "
            "another document name or namespace, or delete the document first"
        )


def with_more(wanted: range, ahead: int, stored: Container[int]) -> range:
    """`wanted`, and at most `ahead` more segments behind it, up to the first that is not stored."""
    stop = wanted.stop
    while wanted and stop < wanted.stop + ahead and stop in stored:
        stop += 1
    return range(wanted.start, stop)


def missing_blocks(key: DocumentKey, wanted: range, found: Sequence[int]) -> MissingBlockError:
    """The error for `read` of something that is not stored."""
    lacking = sorted(set(wanted) - set(found))
    return MissingBlockError(
        f"{key}: segments {lacking[:5]} of [{wanted.start}, {wanted.stop}) are not stored ({len(lacking)} missing); "
        "write the document's earlier segments first"
    )
