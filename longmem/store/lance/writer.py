# SPDX-License-Identifier: Apache-2.0
"""Write access to the durable store: puts, compaction and sweeps."""

import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from secrets import randbits, token_hex
from threading import Lock
from typing import Any

import pyarrow as pa

from longmem.errors import StoreError
from longmem.store.base import check_block, check_fingerprint, check_same_tokens, describe_block
from longmem.store.lance import maintenance
from longmem.store.lance.catalogue import (
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
from longmem.store.lance.codec import payload_schema, to_rows
from longmem.store.lance.connection import import_library
from longmem.store.lance.fsync import Durability, TableSync
from longmem.store.lance.identity import IDENTITY, IDENTITY_SCHEMA, identity_rows
from longmem.store.lance.known_segments import KnownSegments
from longmem.store.lance.quota import Quota
from longmem.store.lance.reader import LanceReader
from longmem.store.lance.table import KEEP_VERSIONS, quoted
from longmem.store.object_files import ObjectFiles
from longmem.stored_format import RECENT_BYTES
from longmem.types import DocumentKey, Fingerprint, KVBlock, PutReceipt

COMPACT_EVERY = 32
"""Commits of puts between two compactions of the catalogue. A compaction takes about 10 ms. Every commit in between
leaves a fragment, whose block names each later commit reads, at 0.1 ms per fragment."""

UNSURE_S = KEEP_VERSIONS.total_seconds() / 2
"""Seconds after which a put checks whether its blocks are in the catalogue twice. Lance compares an insert with the
commits since the version it was planned on, and ignores those whose versions were cleaned (lancedb 0.40)."""

KNOWN_DOCUMENTS = 64
"""Documents whose stored segments a writer caches, so that a put of a new segment needs no query."""

STEPS = (
    "put:begin",
    "put:payload",
    "put:payload-sync",
    "put:catalogue",
    "put:catalogue-sync",
    "put:acknowledged",
    "compact:commit",
    "compact:sync",
    "compact:acknowledged",
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
"""Points between commits at which crash tests kill the process, in order. `…sync` follows an fsync of
`durability="power"`."""


class LanceWriter(LanceReader):
    """Puts, compaction of the catalogue, and sweeps of files that killed processes left."""

    def __init__(
        self,
        uri: str,
        on_step: Callable[[str], None] = lambda _step: None,
        *,
        durability: Durability = "process",
        max_bytes: int | None = None,
        recent_bytes: int = RECENT_BYTES,
    ) -> None:
        """`on_step` is called with each name of STEPS when it is reached. The newest `recent_bytes` of blocks stay in
        memory for readers."""
        super().__init__(uri, recent_bytes)
        self._on_step = on_step
        self._change = Lock()
        self._commits = 0
        self._known: OrderedDict[DocumentKey, KnownSegments] = OrderedDict()
        self._epoch = token_hex(4)
        self._quota = Quota(max_bytes, self.num_bytes, uri)
        folder = self._database.folder
        # not for buckets, which acknowledge only durable writes
        self._disk = TableSync(folder.absolute()) if durability == "power" and folder is not None else None

    def expect_puts(self) -> None:
        import_library()

    def put(self, block: KVBlock) -> PutReceipt:
        return self.put_all([block])[0]

    def put_all(self, blocks: Sequence[KVBlock]) -> list[PutReceipt]:
        """Store several blocks with one commit per payload table, and one of the catalogue."""
        self._check_open()
        for block in blocks:
            check_block(block)
        if not blocks:
            return []
        with self._change:
            if not self._commits:
                self._before_first_put()
            self._check_before_change()
            if self.fingerprint() is None:
                self._create(blocks[0].fingerprint)
            for block in blocks:
                check_fingerprint(self.fingerprint(), block.fingerprint)
            # segments that another process put since are detected by the insertion
            known = [block for block in blocks if block.segment in self._known_segments(block.key)]
            rows = {_name(block): row for block in known if (row := self._row(block)) is not None}
            new: dict[str, KVBlock] = {}
            for block in blocks:
                # checked before anything is written: a conflict leaves no block of its batch
                name = _name(block)
                if name in rows:
                    check_same_tokens(info_of(rows[name]), block)
                elif name in new:
                    check_same_tokens(describe_block(new[name]), block)
                else:
                    new[name] = block
            ours = self._commit(list(new.values())) if new else set()
            receipts = []
            for block in blocks:
                if _name(block) in ours:
                    # only the first of several identical blocks is new
                    ours.remove(_name(block))
                    receipts.append(PutReceipt(block.key, block.segment, block.num_bytes, duplicate=False))
                else:
                    row = rows.get(_name(block)) or self._row(block)
                    if row is None:
                        raise StoreError(
                            f"{block.key} segment {block.segment}: another process put it at the same moment and "
                            "deleted it again; put it again"
                        )
                    receipts.append(self._replayed(row, block))
        return receipts

    def _commit(self, blocks: list[KVBlock]) -> set[str]:
        """Write blocks that are not known to be stored. Return the names of those that this call stored."""
        self._quota.check(sum(block.num_bytes for block in blocks))
        self._on_step("put:begin")
        begun = time.time()
        writes = {randbits(62): block for block in blocks}
        rows = {write: to_rows(block, write) for write, block in writes.items()}
        payloads: dict[str, list[int]] = {}
        for write, block in writes.items():
            payloads.setdefault(payload_name(block.key, block.segment, self._epoch), []).append(write)
        for payload, own in payloads.items():
            self._database.create_if_absent(payload, payload_schema(writes[own[0]].fingerprint))
            self._database.append(payload, pa.concat_tables([rows[write] for write in own]))
        self._on_step("put:payload")
        for payload in payloads:
            self._sync(payload)
        self._on_step("put:payload-sync")
        entries = [
            row_of(describe_block(writes[write]), payload, write) for payload, own in payloads.items() for write in own
        ]
        inserted = {int(entry["write"]) for entry in entries}
        commit = self._database.insert_missing(CATALOGUE, to_table(entries), "block")
        if commit.num_rows < len(entries):
            # another process inserted some first: its blocks stay, and our payload rows of them are never referenced
            inserted &= self._writes_of(blocks)
        self._on_step("put:catalogue")
        took_s = time.time() - begun
        # always in a folder, where it costs microseconds: clocks may jump, and a `delete` removes tables at once
        if self._database.folder is not None or took_s > maintenance.OLD_S:
            self._check_not_dropped({name: [writes[write] for write in own] for name, own in payloads.items()})
        if took_s > UNSURE_S:
            inserted &= self._withdraw_doubled(blocks, inserted)
        self._sync(CATALOGUE)
        self._on_step("put:catalogue-sync")
        self._acknowledged.record(commit.version)
        self._on_step("put:acknowledged")
        for block in blocks:
            # all of them: those that this call did not insert, another process did
            self._known_segments(block.key).add(block.segment)
        for write in inserted:
            self._recent.keep(write, rows[write])
            self._quota.added(writes[write].num_bytes)
        self._commits += 1
        if self._commits % COMPACT_EVERY == 0:
            self._compact()
        return {_name(writes[write]) for write in inserted}

    def _before_first_put(self) -> None:
        """Check the bucket, or sweep if due; sync the identity. Called once per writer."""
        folder = self._database.folder
        if folder is None:
            ObjectFiles(self._database.uri).check_conditional_writes()
        elif maintenance.is_due(folder):
            # compact too: writers that die early never reach their own compaction
            self._tidy(maintenance.OLD_S)
        if self._is_there():
            # its writer may have used durability="process"
            self._sync(IDENTITY)

    def _create(self, fingerprint: Fingerprint) -> None:
        # readers rely on the order: where a block exists, both tables exist, and the second holds the fingerprint
        for name, schema in ((CATALOGUE, CATALOGUE_SCHEMA), (IDENTITY, IDENTITY_SCHEMA)):
            # a table that a dying writer of an earlier version left has another schema, and gets its key later
            if not self._database.is_created(name):
                self._database.create_if_absent(name, schema)
        self._database.insert_missing(IDENTITY, identity_rows(fingerprint), "name")
        self._sync(IDENTITY)
        self._acknowledge()

    def _tidy(self, old_s: float) -> maintenance.Swept:
        if self._is_there():
            self._compact()
        return self._sweep(old_s)

    def _check_before_change(self) -> None:
        """Check that the catalogue has all acknowledged commits, because a compaction would make their loss permanent.

        In a bucket the check costs a request, and only forks and compactions make it.
        """
        if self._acknowledged.is_cheap:
            self._check_acknowledged()

    def _compact(self) -> None:
        self._check_acknowledged()
        self._database.compact(CATALOGUE, CATALOGUE_SCHEMA)
        self._on_step("compact:commit")
        self._sync(CATALOGUE)
        self._on_step("compact:sync")
        # before old versions go: the marked version is then never removed
        self._acknowledge()
        self._acknowledged.tidy()
        self._on_step("compact:acknowledged")
        # after the sync, or a power cut could leave neither the old files nor the new ones
        self._database.clean(CATALOGUE, CATALOGUE_SCHEMA)
        self._sync(CATALOGUE)
        self._on_step("compact:end")

    def _sweep(self, old_s: float) -> maintenance.Swept:
        folder = self._database.folder
        if folder is None or not folder.is_dir():
            return maintenance.Swept()
        # rows are read after ages: a table in use is young, or has a row by now
        old = maintenance.old_tables(folder, is_payload, old_s)
        named = self._payload_tables() if old else set()
        doomed = {name: size for name, size in old.items() if name not in named}
        for name in doomed:
            self._drop(name)
        return maintenance.sweep_files(folder, old_s).plus_tables(doomed)

    def _drop(self, name: str) -> None:
        try:
            self._database.drop(name, lambda: bool(self._payload_tables(f"payload = {quoted(name)}")))
        except StoreError:
            # the table may be half removed: append nothing more to it
            self._epoch = token_hex(4)
            raise

    def _check_not_dropped(self, payloads: dict[str, list[KVBlock]]) -> None:
        """Withdraw rows whose payload another process removed before they were inserted. Raises StoreError.

        That process deleted the document, or swept the payload as that of a dead writer. The latter can happen if a put
        is suspended for long or a clock jumps.
        """
        if dropped := {name for name in payloads if not self._database.has_table(name)}:
            for name in dropped:
                self._database.evict(name)
            self._database.delete(CATALOGUE, CATALOGUE_SCHEMA, f"payload IN ({', '.join(map(quoted, dropped))})")
            # the table may be half removed: append nothing more to it
            self._epoch = token_hex(4)
            lost = ", ".join(f"{block.key} segment {block.segment}" for name in dropped for block in payloads[name])
            raise StoreError(
                f"{lost}: while it was put, another process deleted the document or removed its payload as that of a "
                "dead writer; put it again"
            )

    def _withdraw_doubled(self, blocks: list[KVBlock], ours: set[int]) -> set[int]:
        """Remove our rows of blocks that have another row, and return the writes that stay.

        Needed if a put was suspended for so long that the versions may be cleaned with which Lance detects conflicts.
        """
        names = ", ".join(quoted(_name(block)) for block in blocks)
        rows = self._catalogue(f"block IN ({names})").to_pylist()
        counts = Counter(row["block"] for row in rows)
        doubled = {int(row["write"]) for row in rows if counts[row["block"]] > 1} & ours
        if doubled:
            condition = f"block IN ({names}) AND write IN ({', '.join(map(str, doubled))})"
            self._database.delete(CATALOGUE, CATALOGUE_SCHEMA, condition)
        return ours - doubled

    def _acknowledge(self, version: int | None = None) -> None:
        """Record a version of the catalogue (None: the newest) as acknowledged: its loss is an error from now on."""
        self._sync(CATALOGUE)
        if version is None:
            version = self._database.version(CATALOGUE, CATALOGUE_SCHEMA)
        self._acknowledged.record(version)

    def _sync(self, table: str) -> None:
        if self._disk is not None:
            self._disk.table(table)

    def _known_segments(self, key: DocumentKey) -> KnownSegments:
        """Return the cached stored segments of a document: those of the last query, and those put since."""
        known = self._known.pop(key, None)
        if known is None:
            # a damaged row may have none; reading it raises
            numbers = self._catalogue(at(key), ["segment"])["segment"].drop_null()
            known = KnownSegments(numbers.to_pylist())
        self._known[key] = known
        if len(self._known) > KNOWN_DOCUMENTS:
            self._known.popitem(last=False)
        return known

    def _row(self, block: KVBlock) -> dict[str, Any] | None:
        return next(iter(self._rows(f"block = {quoted(_name(block))}")), None)

    def _writes_of(self, blocks: list[KVBlock]) -> set[int]:
        """Return the write ids of the rows of these blocks."""
        names = ", ".join(quoted(_name(block)) for block in blocks)
        return set(self._catalogue(f"block IN ({names})", ["write"])["write"].to_pylist())

    def _replayed(self, row: dict[str, Any], block: KVBlock) -> PutReceipt:
        info = info_of(row)
        check_same_tokens(info, block)
        # its writer may have died before the fsync
        self._sync(row["payload"])
        self._acknowledge()
        return PutReceipt(block.key, block.segment, info.num_bytes, duplicate=True)


def _name(block: KVBlock) -> str:
    return block_of(block.key, block.segment)
