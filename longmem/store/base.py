# SPDX-License-Identifier: Apache-2.0
"""Contract of every memory store; `tests/contract/test_store.py` runs on all of them.

A store handles blocks, documents and namespaces, and no models, queries or attention. A reader fetches blocks with
`read` and searches them in its own memory (`longmem.memory.window`). Sending queries to the store and gathered keys
back would cost about 60 times more bytes than holding each block once.
"""

from abc import abstractmethod
from collections.abc import Container, Sequence
from dataclasses import dataclass
from types import TracebackType

import numpy as np

from longmem.display import facts_html, rows_html
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
from longmem.system.redaction import redacted
from longmem.types import DEFAULT_NAMESPACE, DocumentKey, Fingerprint, KVBlock, PutReceipt, SegmentInfo

OF_ONE_BLOCK = (ConflictError, NumericError, QuotaError)
"""Errors that concern a single block of several."""
LISTED_DOCUMENTS = 20
"""Documents that a store lists in a notebook; each costs one query."""


class AbstractMemoryStore(AbstractDocumentSource):
    """Blocks of documents in namespaces.

    Guarantees:

    - **Immutable.** Once `put` returned, `read` gives the same bytes until the document is deleted.
    - **Idempotent.** The same (namespace, document, segment) may be put again by a retry: the first block stays, and
      the receipt has `duplicate=True`. Different *token ids* or another position raise ConflictError. Keys and values
      may differ in the last bits (another CPU); the first ones stay.
    - **Atomic.** A block is visible completely or not at all, even after `kill -9` during `put`.
    - **Isolated.** No call with one key returns or removes data of another key.
    - **One model.** The first block fixes the store's fingerprint; blocks with another one are rejected.
    - **Read your writes.** A block that `put` acknowledged is visible to the next call of any thread or process.
    - **Thread-safe.** Every method may be called from several threads at once.
    - **One winner.** If threads or processes put one block concurrently, exactly one receipt has `duplicate=False`. If
      they fork into one document concurrently, exactly one fork succeeds.

    Damage is an error (CorruptionError), never a number.
    """

    @abstractmethod
    def put(self, block: KVBlock) -> PutReceipt:
        """Store one block, and return once it is visible to every reader.

        Raises NumericError for NaN or infinity, ConflictError, FingerprintError, StoreError (disk full, read-only).
        Segments of one document may arrive in any order.
        """

    def put_all(self, blocks: Sequence[KVBlock]) -> list[PutReceipt]:
        """Store several blocks, and return their receipts in order. May be faster than one `put` per block.

        Raises the error that `put` raises for any of them. Each block is then stored completely or not at all, it is
        unspecified which ones are, and putting them again one by one is safe.
        """
        return [self.put(block) for block in blocks]

    def expect_puts(self) -> None:
        """Import what the first put needs; does nothing else."""

    @abstractmethod
    def documents(self, namespace: str | None = None) -> list[DocumentKey]:
        """Return every document of a namespace (None: of all) that holds at least one block, sorted."""

    @abstractmethod
    def fork(self, source: DocumentKey, target: DocumentKey) -> int:
        """Make `target` a document with the same blocks as `source`, and return their number. No payload is copied.

        Later writes or deletes of either document do not affect the other.

        Raises MissingBlockError for an unknown source, ConflictError when the target already exists.
        """

    @abstractmethod
    def delete(self, key: DocumentKey) -> int:
        """Delete a document, and return the number of removed blocks (0 for an unknown document)."""

    @abstractmethod
    def trim(self, key: DocumentKey, first_segment: int) -> int:
        """Delete a document's segments below `first_segment`, and return how many were stored.

        The call is idempotent and affects no other document or fork. Storage is freed once no document refers to any
        row of a payload table. A document without segments is no longer listed.
        """

    @abstractmethod
    def verify(self, key: DocumentKey | None = None) -> int:
        """Read and check every block (of one document, or of all), and return their number. Raises CorruptionError."""

    @abstractmethod
    def num_bytes(self) -> int:
        """Return the payload bytes that the catalogue refers to. Forked blocks count once."""

    def document(self, name: str, namespace: str = DEFAULT_NAMESPACE) -> "WritableDocument":
        """Return a handle on one document's memory, which need not exist yet."""
        return WritableDocument(self, DocumentKey(namespace, name))

    @abstractmethod
    def close(self) -> None:
        """Release handles and caches; every later call raises StoreError. Closing twice is allowed."""

    @property
    @abstractmethod
    def location(self) -> str:
        """URI that opens this store again; `memory://` for one of this process."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}({redacted(self.location)!r})"

    def _repr_html_(self) -> str:
        """Return a table of the stored documents. Raises StoreError for a closed store."""
        documents = self.documents()
        shown = documents[:LISTED_DOCUMENTS]
        held = [(key, self.segments(key)) for key in shown]
        rows = [
            (key.namespace, key.document, len(infos), f"{sum(info.num_tokens for info in infos):,}")
            for key, infos in held
        ]
        more = f"<div>and {len(documents) - len(shown):,} more</div>" if len(documents) > len(shown) else ""
        facts = {"documents": f"{len(documents):,}", "bytes": f"{self.num_bytes():,}"}
        table = rows_html(("namespace", "document", "segments", "tokens"), rows) if rows else ""
        return facts_html(repr(self), facts) + table + more

    def __enter__(self) -> "AbstractMemoryStore":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@dataclass(frozen=True, repr=False)
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
    """Check a block before it is stored.

    Raises StoreError for shapes, types or positions that contradict the fingerprint and for names that are not valid
    Unicode, and NumericError for NaN or infinity.
    """
    try:
        f"{block.key}".encode()
    except UnicodeEncodeError as error:
        raise StoreError(f"namespace and document must be valid Unicode, got {str(block.key)!r}: {error}") from error
    identity = block.fingerprint
    shape = (block.num_tokens, identity.stored_heads, stored_width(identity.head_dim, identity.kv_dtype))
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
    """Return the catalogue entry of a block."""
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
    """Put several blocks in one commit, and return a receipt or error for each, in order.

    If the error concerns a single block, each block is put in a commit of its own.
    """
    try:
        return [*store.put_all(blocks)]
    except OF_ONE_BLOCK as error:
        return [error] if len(blocks) == 1 else [each for block in blocks for each in put_each(store, [block])]
    except LongMemError as error:
        return [error] * len(blocks)


def check_fingerprint(stored: Fingerprint | None, offered: Fingerprint) -> None:
    """Raise FingerprintError if the stored fingerprint differs from the offered one."""
    if stored is not None and stored != offered:
        raise FingerprintError(
            f"the store was written by another model or with other settings (stored != offered): "
            f"{stored.differences(offered)}; use the model and settings that wrote it, or another store"
        )


def check_same_tokens(stored: SegmentInfo, block: KVBlock) -> None:
    """Raise ConflictError unless the stored block holds the same token ids at the same position."""
    if stored.tokens_checksum != block.tokens_checksum():
        raise ConflictError(
            f"{block.key} segment {block.segment} already holds other tokens ({stored.num_tokens} at "
            f"{stored.start_token}, offered {block.num_tokens} at {block.start_token}); the first ones stay: use "
            "another document name or namespace, or delete the document first"
        )


def with_more(wanted: range, ahead: int, stored: Container[int]) -> range:
    """Return `wanted`, extended by at most `ahead` stored segments up to the first that is not stored."""
    stop = wanted.stop
    while wanted and stop < wanted.stop + ahead and stop in stored:
        stop += 1
    return range(wanted.start, stop)


def missing_blocks(key: DocumentKey, wanted: range, found: Sequence[int]) -> MissingBlockError:
    """Return the error of a `read` of segments that are not stored."""
    lacking = sorted(set(wanted) - set(found))
    return MissingBlockError(
        f"{key}: segments {lacking[:5]} of [{wanted.start}, {wanted.stop}) are not stored ({len(lacking)} missing); "
        "write the document's earlier segments first"
    )
