"""The durable store: LanceDB tables on disk (or in a bucket).

    identity    the fingerprint that the first block fixed
    catalogue   one row per block: whose, where, how long, checksums, and the write that holds its payload
    p-…         payload: chunk rows of up to 64 segments of one document

A put appends the payload first and inserts the catalogue row last, as one commit: a block exists from that commit on,
whole. A process that dies in between leaves payload rows that nothing names; they are never read.

**What an acknowledged put promises.** When `put` returned, the block survives the death of any process (`kill -9`)
and is visible to every process that has the store open. LanceDB does not fsync local files, so with
`durability="process"` a power cut or kernel crash can lose the last seconds; checksums then tell damage from data.
With `durability="power"` the block survives that too: `put` returns when the disk has it.

Payload tables are never compacted (Lance would rewrite all of them each time); the catalogue is, now and then.
"""

import time
from collections import OrderedDict
from collections.abc import Callable
from secrets import randbits, token_hex
from threading import Lock
from typing import Any

from longmem.errors import ConflictError, MissingBlockError, StoreError
from longmem.memory import janitor
from longmem.memory.catalogue import (
    CATALOGUE,
    CATALOGUE_SCHEMA,
    at,
    block_of,
    info_of,
    is_payload,
    payload_name,
    row_of,
    to_table,
)
from longmem.memory.codec import payload_schema, to_rows
from longmem.memory.durability import Durability, TableSync
from longmem.memory.identity import IDENTITY, IDENTITY_SCHEMA, identity_rows
from longmem.memory.lance_reader import LanceReader
from longmem.memory.lance_table import quoted
from longmem.memory.quota import Quota
from longmem.memory.self_test import check_conditional_writes
from longmem.memory.store import (
    check_block,
    check_fingerprint,
    check_same_tokens,
    describe_block,
)
from longmem.types import DocumentKey, Fingerprint, KVBlock, PutReceipt, SegmentInfo

COMPACT_EVERY = 32
"""Puts between two compactions of the catalogue. Each takes some 10 ms; every put in between leaves a fragment, of
which each later put reads the block names, at 0.1 ms a fragment."""

KNOWN_DOCUMENTS = 64
"""Documents whose stored segments a writer remembers, so that a put need not look for what is not there."""

STEPS = (
    "put:begin",
    "put:payload",
    "put:payload-sync",
    "put:catalogue",
    "put:catalogue-sync",
    "compact:commit",
    "compact:sync",
    "compact:end",
    "delete:catalogue",
    "delete:sync",
    "delete:end",
    "trim:catalogue",
    "trim:sync",
    "trim:end",
    "fork:catalogue",
    "fork:end",
)
"""Points between commits, in the order of their operation: what a crash test dies at. `…sync` follows what
`durability="power"` waits for."""


class LanceMemoryStore(LanceReader):
    """Keeps every promise of AbstractMemoryStore, across processes. One document has one writer at a time; any number
    of processes may read it meanwhile, and other documents may have other writers."""

    def __init__(
        self,
        uri: str,
        on_step: Callable[[str], None] = lambda _step: None,
        *,
        durability: Durability = "process",
        max_bytes: int | None = None,
    ) -> None:
        """`on_step` is called with each of STEPS as it is reached."""
        super().__init__(uri)
        self._on_step = on_step
        self._change = Lock()
        self._puts = 0
        self._known: OrderedDict[DocumentKey, set[int]] = OrderedDict()
        self._epoch = token_hex(4)
        self._quota = Quota(max_bytes, self.num_bytes, uri)
        folder = self._database.folder
        # a bucket acknowledges what it has stored
        self._disk = TableSync(folder.absolute()) if durability == "power" and folder is not None else None

    def __enter__(self) -> "LanceMemoryStore":
        return self

    def put(self, block: KVBlock) -> PutReceipt:
        self._check_open()
        check_block(block)
        with self._change:
            if not self._puts:
                self._before_first_put()
            if self.fingerprint() is None:
                self._create(block.fingerprint)
            check_fingerprint(self.fingerprint(), block.fingerprint)
            info = describe_block(block)
            known = self._known_segments(block.key)
            # of a segment that another process has put since, the insertion tells
            if block.segment in known and (row := self._stored(block)) is not None:
                return self._replayed(row, block)
            self._quota.check(block.num_bytes)
            payload, write = payload_name(block.key, block.segment, self._epoch), randbits(62)
            self._on_step("put:begin")
            begun = time.time()
            self._database.create_if_absent(payload, payload_schema(block.fingerprint))
            rows = to_rows(block, write)
            self._database.append(payload, rows)
            self._on_step("put:payload")
            self._sync(payload)
            self._on_step("put:payload-sync")
            if not self._database.insert_missing(CATALOGUE, to_table([row_of(info, payload, write)]), "block"):
                # another process was faster: its block stays, our payload rows are never named
                row = self._stored(block)
                assert row is not None, f"{block.key} segment {block.segment}: neither inserted nor there"
                return self._replayed(row, block)
            self._on_step("put:catalogue")
            if time.time() - begun > janitor.OLD_S:
                self._check_not_swept(block, payload)
            self._sync(CATALOGUE)
            self._on_step("put:catalogue-sync")
            known.add(block.segment)
            self._recent.keep(write, rows)
            self._quota.added(info.num_bytes)
            self._puts += 1
            if self._puts % COMPACT_EVERY == 0:
                self._compact()
        return PutReceipt(block.key, block.segment, info.num_bytes, duplicate=False)

    def fork(self, source: DocumentKey, target: DocumentKey) -> int:
        self._check_open()
        with self._change:
            rows = self._catalogue(at(source)).to_pylist()
            if not rows:
                raise MissingBlockError(f"cannot fork {source}: the store holds no such document")
            if self._catalogue(at(target), ["segment"]).num_rows:
                raise ConflictError(f"cannot fork to {target}: the document exists; delete it or use another name")
            infos = [(info_of(row), row) for row in rows]
            copies = [
                row_of(SegmentInfo(**{**vars(info), "key": target}), row["payload"], row["write"])
                for info, row in infos
            ]
            for payload in {row["payload"] for row in rows}:
                # who wrote it may have promised less
                self._sync(payload)
            inserted = self._database.insert_missing(CATALOGUE, to_table(copies), "block")
            self._on_step("fork:catalogue")
            self._sync(CATALOGUE)
            # who deletes the source looks for other names of its payload: either they see ours, or we see their delete
            left = set(self._catalogue(at(source), ["write"])["write"].to_pylist())
            if not left >= {row["write"] for row in rows}:
                self._database.delete(CATALOGUE, CATALOGUE_SCHEMA, at(target))
                raise MissingBlockError(f"cannot fork {source}: it was deleted or trimmed meanwhile")
            self._on_step("fork:end")
        return inserted

    def delete(self, key: DocumentKey) -> int:
        return self._remove(key, None, "delete")

    def trim(self, key: DocumentKey, first_segment: int) -> int:
        return self._remove(key, first_segment, "trim")

    def _remove(self, key: DocumentKey, below_segment: int | None, operation: str) -> int:
        self._check_open()
        condition = at(key) if below_segment is None else f"{at(key)} AND segment < {int(below_segment)}"
        with self._change:
            self._known.pop(key, None)
            if not self._is_there():
                return 0
            held = self._payload_tables(condition)
            removed = 0
            if held:
                removed = self._database.delete(CATALOGUE, CATALOGUE_SCHEMA, condition)
                self._quota.freed()
                self._on_step(f"{operation}:catalogue")
                # or a power cut could bring back a catalogue that names what is dropped now
                self._sync(CATALOGUE)
                self._on_step(f"{operation}:sync")
            # also tables that only a killed put has written to, or that a killed delete has left
            own = {name for name in self._database.table_names() if is_payload(name, key, below_segment)}
            for name in sorted((own | held) - self._payload_tables()):
                self._drop(name)
            self._on_step(f"{operation}:end")
        return removed

    def compact(self, old_s: float = janitor.OLD_S) -> janitor.Swept:
        """Rewrite the catalogue into few files and remove what nothing refers to any more; returns what was freed.

        Safe beside writers and readers: only what is older than `old_s` is removed (0 only where no writer lives).
        """
        self._check_open()
        with self._change:
            return self._tidy(old_s)

    def drop_blocks(self, rows: list[dict[str, Any]]) -> None:
        """Remove catalogue rows, so that their blocks can be written again. Raises StoreError."""
        with self._change:
            for row in rows:
                # a row whose name is damaged is still known by its write
                name = str(row["block"])
                intact = name.replace("-", "").isalnum()
                condition = f"block = {quoted(name)}" if intact else f"write = {int(row['write'])}"
                self._database.delete(CATALOGUE, CATALOGUE_SCHEMA, condition)
            self._quota.freed()
            if rows:
                self._sync(CATALOGUE)

    def close(self) -> None:
        with self._change:
            self._closed = True
            self._recent.clear()
            self._database.close()

    def _before_first_put(self) -> None:
        """What every writer does once."""
        folder = self._database.folder
        if folder is None:
            check_conditional_writes(self._database.uri)
        elif janitor.is_due(folder):
            # compaction too: writers that die often never come to their own
            self._tidy(janitor.OLD_S)
        if self._is_there():
            # who made it may have promised less
            self._sync(IDENTITY)

    def _create(self, fingerprint: Fingerprint) -> None:
        self._database.create_if_absent(CATALOGUE, CATALOGUE_SCHEMA)
        self._database.create_if_absent(IDENTITY, IDENTITY_SCHEMA)
        self._database.insert_missing(IDENTITY, identity_rows(fingerprint), "name")
        self._sync(CATALOGUE)
        self._sync(IDENTITY)

    def _tidy(self, old_s: float) -> janitor.Swept:
        if self._is_there():
            self._compact()
        return self._sweep(old_s)

    def _compact(self) -> None:
        self._database.compact(CATALOGUE, CATALOGUE_SCHEMA)
        self._on_step("compact:commit")
        self._sync(CATALOGUE)
        self._on_step("compact:sync")
        # only now, or a power cut could leave neither the old files nor the new ones
        self._database.clean(CATALOGUE, CATALOGUE_SCHEMA)
        self._sync(CATALOGUE)
        self._on_step("compact:end")

    def _sweep(self, old_s: float) -> janitor.Swept:
        folder = self._database.folder
        if folder is None or not folder.is_dir():
            return janitor.Swept()
        # names after ages: a table that is being written is young, or named by now
        old = janitor.old_tables(folder, is_payload, old_s)
        named = self._payload_tables() if old else set()
        doomed = {name: size for name, size in old.items() if name not in named}
        for name in doomed:
            self._drop(name)
        return janitor.sweep_files(folder, old_s).plus_tables(doomed)

    def _drop(self, name: str) -> None:
        try:
            self._database.drop(name)
        except StoreError:
            # it may be half there: nothing more is appended to it
            self._epoch = token_hex(4)
            raise

    def _check_not_swept(self, block: KVBlock, payload: str) -> None:
        """After a put that stood still for so long that another process may have taken its payload for an orphan."""
        if payload not in self._database.table_names():
            name = quoted(block_of(block.key, block.segment))
            self._database.delete(CATALOGUE, CATALOGUE_SCHEMA, f"block = {name}")
            raise StoreError(
                f"{block.key} segment {block.segment}: the put was interrupted for more than {janitor.OLD_S:.0f} s and "
                "its payload was removed as an orphan; nothing was stored: put it again"
            )

    def _sync(self, table: str) -> None:
        if self._disk is not None:
            self._disk.table(table)

    def _known_segments(self, key: DocumentKey) -> set[int]:
        """Segments of a document that were stored when it was last looked at, and those that were put here since."""
        known = self._known.pop(key, None)
        if known is None:
            known = set(self._catalogue(at(key), ["segment"])["segment"].to_pylist())
        self._known[key] = known
        if len(self._known) > KNOWN_DOCUMENTS:
            self._known.popitem(last=False)
        return known

    def _stored(self, block: KVBlock) -> dict[str, Any] | None:
        rows: list[dict[str, Any]] = self._catalogue(
            f"block = {quoted(block_of(block.key, block.segment))}"
        ).to_pylist()
        return rows[0] if rows else None

    def _replayed(self, row: dict[str, Any], block: KVBlock) -> PutReceipt:
        info = info_of(row)
        check_same_tokens(info, block)
        # who wrote it may have died before the disk had it
        self._sync(row["payload"])
        self._sync(CATALOGUE)
        return PutReceipt(block.key, block.segment, info.num_bytes, duplicate=True)
