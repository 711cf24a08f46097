# SPDX-License-Identifier: Apache-2.0
"""The durable store: LanceDB tables on disk (or in a bucket).

    identity        the fingerprint of the first block
    catalogue       one row per block: document, position, length, checksums, and the write that holds its payload
    p-…             payload: chunk rows of up to 64 segments of one document, and a copy of the fingerprint
    acknowledged/   the newest acknowledged commit of the catalogue (no table: names of empty files), and copies of its
                    deletion files

A put appends the payload first and inserts the catalogue rows last, as one commit. Blocks exist from that commit on. A
process that dies in between leaves payload rows without a catalogue row, which are never read.

**Guarantees of an acknowledged put.** Once `put` returned, the block survives the death of any process (`kill -9`).
Every process that has the store open can read it. LanceDB does not fsync local files, so with `durability="process"`
a power cut or kernel crash can lose the last seconds; checksums detect the damage. With `durability="power"` the block
survives that too: `put` returns after the fsync. A catalogue that lacks acknowledged commits is an error for every
reader and writer (`acknowledged.py`). In a bucket, reads of blocks by an open store do not check this. Opening,
`verify` and all calls that list segments or documents do.

**Guarantees for concurrent writers.** Any number of threads, processes and nodes may put the same blocks concurrently.
Exactly one put of a block reports it as new. Every other one reports a duplicate, or raises ConflictError if its tokens
differ. If several forks have one target, exactly one succeeds. A `fork` concurrent with a `delete` or `trim` of its
source succeeds completely or raises. This rests on Lance's conflict detection between inserts of one key:
`merge_insert` records the inserted keys in its transaction if the column is not nullable and is the table's unenforced
primary key. It restarts if a concurrent commit inserted one of them (lancedb 0.40, Lance 13). Tables of earlier
versions have no such key, and the next write adds it. A bucket also needs conditional writes, which the first put
checks.

Lance compares an insert only with commits whose versions still exist. Versions are kept for ten minutes. A put that
took longer than five checks for a second row of its blocks, and withdraws its own.

A `delete`, `trim` or sweep concurrent with a put of the same document removes no payload of an acknowledged put. The
remover moves the table away and then searches for rows that refer to it; the writer adds its row and then checks that
the table exists. A put whose payload was removed before its row was added raises StoreError and leaves nothing.
This does not depend on clocks.

Not guaranteed in a bucket, where tables cannot be moved: a put concurrent with a `delete` of *the same document*. The
put may be acknowledged although the delete removed its payload; reads then raise CorruptionError.

Payload tables are never compacted (Lance would rewrite all of them each time). The catalogue is compacted regularly.
"""

from dataclasses import replace
from typing import Any

from longmem.errors import ConflictError, MissingBlockError
from longmem.store.lance import maintenance
from longmem.store.lance.catalogue import CATALOGUE, CATALOGUE_SCHEMA, at, info_of, is_payload, row_of, to_table
from longmem.store.lance.table import quoted
from longmem.store.lance.writer import LanceWriter
from longmem.types import DocumentKey


class LanceMemoryStore(LanceWriter):
    """LanceDB store that keeps every guarantee of AbstractMemoryStore across threads, processes and nodes.

    In a bucket, a document must not be deleted while it is written (see above).
    """

    def __enter__(self) -> "LanceMemoryStore":
        return self

    def fork(self, source: DocumentKey, target: DocumentKey) -> int:
        self._check_open()
        self._check_acknowledged()
        with self._change:
            rows = self._rows(at(source))
            if not rows:
                raise MissingBlockError(f"cannot fork {source}: the store holds no such document")
            exists = ConflictError(f"cannot fork to {target}: the document exists; delete it or use another name")
            if self._catalogue(at(target), ["segment"]).num_rows:
                raise exists
            copies = [row_of(replace(info_of(row), key=target), row["payload"], row["write"]) for row in rows]
            for payload in {row["payload"] for row in rows}:
                # its writer may have used durability="process"
                self._sync(payload)
            commit = self._database.insert_missing(CATALOGUE, to_table(copies), "block")
            self._on_step("fork:catalogue")
            if commit.num_rows < len(copies):
                # another process created the document meanwhile
                if commit.num_rows:
                    self._withdraw(target, rows)
                raise exists
            # a concurrent delete of the source checks for other rows of its payload: it sees ours, or we see the delete
            left = set(self._catalogue(at(source), ["write"])["write"].to_pylist())
            if not left >= {row["write"] for row in rows}:
                self._withdraw(target, rows)
                raise MissingBlockError(f"cannot fork {source}: it was deleted or trimmed meanwhile")
            self._acknowledge(commit.version)
            self._on_step("fork:end")
        return commit.num_rows

    def _withdraw(self, target: DocumentKey, rows: list[dict[str, Any]]) -> None:
        """Remove the rows of an unacknowledged fork. Blocks that other processes put under its name stay."""
        writes = ", ".join(str(int(row["write"])) for row in rows)
        self._database.delete(CATALOGUE, CATALOGUE_SCHEMA, f"{at(target)} AND write IN ({writes})")

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
                blocks = len(set(self._catalogue(condition, ["block"])["block"].to_pylist()))
                commit = self._database.delete(CATALOGUE, CATALOGUE_SCHEMA, condition)
                removed = min(blocks, commit.num_rows)
                self._quota.freed()
                self._on_step(f"{operation}:catalogue")
                # before the payload goes: a power cut could restore a catalogue that refers to it
                self._acknowledge(commit.version)
                self._on_step(f"{operation}:sync")
            # includes tables of a killed put, or of a killed delete
            own = {name for name in self._database.table_names() if is_payload(name, key, below_segment)}
            for name in sorted((own | held) - self._payload_tables()):
                self._drop(name)
            self._on_step(f"{operation}:end")
        return removed

    def compact(self, old_s: float = maintenance.OLD_S) -> maintenance.Swept:
        """Rewrite the catalogue into few files, remove unreferenced files, and return what was freed.

        Safe with concurrent writers and readers: only files older than `old_s` seconds are removed. Use 0 only without
        writers.
        """
        self._check_open()
        with self._change:
            return self._tidy(old_s)

    def drop_blocks(self, rows: list[dict[str, Any]]) -> None:
        """Remove catalogue rows, so that their blocks can be written again. Raises StoreError."""
        with self._change:
            for row in rows:
                # a row with a damaged block name is selected by its write
                name = str(row["block"])
                intact = name.replace("-", "").isalnum()
                condition = f"block = {quoted(name)}" if intact else f"write = {int(row['write'])}"
                self._database.delete(CATALOGUE, CATALOGUE_SCHEMA, condition)
            self._quota.freed()
            if rows:
                self._acknowledge()

    def keep_row(self, row: dict[str, Any]) -> None:
        """Make one catalogue row the only one of its block. Raises StoreError."""
        with self._change:
            others = f"block = {quoted(str(row['block']))} AND write != {int(row['write'])}"
            self._database.delete(CATALOGUE, CATALOGUE_SCHEMA, others)
            if self._catalogue(f"block = {quoted(str(row['block']))}", ["block"]).num_rows > 1:
                # identical rows cannot be selected separately: remove all and insert one
                self._database.delete(CATALOGUE, CATALOGUE_SCHEMA, f"block = {quoted(str(row['block']))}")
                self._database.insert_missing(CATALOGUE, to_table([row]), "block")
            self._quota.freed()
            self._acknowledge()

    def close(self) -> None:
        with self._change:
            self._closed = True
            self._recent.clear()
            self._database.close()
