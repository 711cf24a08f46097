"""The durable store: LanceDB tables on disk (or in a bucket).

    identity        the fingerprint that the first block fixed
    catalogue       one row per block: whose, where, how long, checksums, and the write that holds its payload
    p-…             payload: chunk rows of up to 64 segments of one document, and a copy of the fingerprint
    acknowledged/   the newest commit of the catalogue that was acknowledged (no table: names of empty files), and
                    copies of its lists of deleted rows

A put appends the payload first and inserts the catalogue rows last, as one commit: blocks exist from that commit on,
whole. A process that dies in between leaves payload rows that nothing names; they are never read.

**What an acknowledged put promises.** When `put` returned, the block survives the death of any process (`kill -9`)
and is visible to every process that has the store open. LanceDB does not fsync local files, so with
`durability="process"` a power cut or kernel crash can lose the last seconds; checksums then tell damage from data.
With `durability="power"` the block survives that too: `put` returns when the disk has it. A catalogue that went back
behind what was acknowledged is an error for every reader and writer (`acknowledged.py`). In a bucket, reads of blocks
by a store that is open do not look for it; opening, `verify` and everything that lists segments or documents do.

**What concurrent writers can rely on.** Any number of threads, processes and nodes may put the same blocks at the same
moment. Exactly one put of a block is told that it is new; every other one is told that it is a duplicate, or meets a
ConflictError where its tokens differ. Of several forks into one target one succeeds. A `fork` beside a `delete` or
`trim` of its source succeeds whole or raises. This rests on Lance's conflict detection between inserts of one key:
`merge_insert` records the inserted keys in its transaction where the column is not nullable and is the table's
unenforced primary key, and a commit that inserted one of them meanwhile makes it start again (lancedb 0.40, Lance 13).
Tables of stores that were made before have no such key, and are given one by the next write. In a bucket it also
needs conditional writes, which the first put asks for.

Lance compares an insert only with commits whose versions are still there. Versions are kept for ten minutes; a put
that took longer than five looks for a second row of its blocks, and withdraws its own.

A `delete`, `trim` or sweep beside a put of the same document drops no payload that an acknowledged put needs: the one
that drops moves the table away and then looks for rows that name it, the one that puts adds its row and then looks for
the table. A put whose payload went before its row came raises StoreError and leaves nothing. No clock decides this.

Not guaranteed in a bucket, where nothing can be moved away: a put and a `delete` of *the same document* at the same
moment. The put may be acknowledged while its payload goes with the delete; then reads raise CorruptionError.

Payload tables are never compacted (Lance would rewrite all of them each time); the catalogue is, now and then.
"""

from dataclasses import replace
from typing import Any

from longmem.errors import ConflictError, MissingBlockError
from longmem.store.lance import maintenance as janitor
from longmem.store.lance.catalogue import CATALOGUE, CATALOGUE_SCHEMA, at, info_of, is_payload, row_of, to_table
from longmem.store.lance.table import quoted
from longmem.store.lance.writer import LanceWriter
from longmem.types import DocumentKey


class LanceMemoryStore(LanceWriter):
    """Keeps every promise of AbstractMemoryStore, across threads, processes and nodes, for any number of writers and
    readers; in a bucket, one document is not deleted while it is written (see above)."""

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
                # who wrote it may have promised less
                self._sync(payload)
            commit = self._database.insert_missing(CATALOGUE, to_table(copies), "block")
            self._on_step("fork:catalogue")
            if commit.num_rows < len(copies):
                # another process made the document meanwhile
                if commit.num_rows:
                    self._withdraw(target, rows)
                raise exists
            # who deletes the source looks for other names of its payload: either they see ours, or we see their delete
            left = set(self._catalogue(at(source), ["write"])["write"].to_pylist())
            if not left >= {row["write"] for row in rows}:
                self._withdraw(target, rows)
                raise MissingBlockError(f"cannot fork {source}: it was deleted or trimmed meanwhile")
            self._acknowledge(commit.version)
            self._on_step("fork:end")
        return commit.num_rows

    def _withdraw(self, target: DocumentKey, rows: list[dict[str, Any]]) -> None:
        """Remove a fork that was not acknowledged; blocks that others have put under its name stay."""
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
                # or a power cut could bring back a catalogue that names what is dropped now
                self._acknowledge(commit.version)
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
                self._acknowledge()

    def keep_row(self, row: dict[str, Any]) -> None:
        """Make one catalogue row the only one of its block. Raises StoreError."""
        with self._change:
            others = f"block = {quoted(str(row['block']))} AND write != {int(row['write'])}"
            self._database.delete(CATALOGUE, CATALOGUE_SCHEMA, others)
            if self._catalogue(f"block = {quoted(str(row['block']))}", ["block"]).num_rows > 1:
                # copies of one row, which no condition tells apart
                self._database.delete(CATALOGUE, CATALOGUE_SCHEMA, f"block = {quoted(str(row['block']))}")
                self._database.insert_missing(CATALOGUE, to_table([row]), "block")
            self._quota.freed()
            self._acknowledge()

    def close(self) -> None:
        with self._change:
            self._closed = True
            self._recent.clear()
            self._database.close()
