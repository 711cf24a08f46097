# SPDX-License-Identifier: Apache-2.0
"""Adapter of LanceDB with the operations that the store needs; the only module that imports lancedb, when it connects.

LanceDB's exceptions, whose types are unspecific, become StoreError if the storage cannot be used, and CorruptionError
if stored bytes cannot be read.
"""

import errno
import os
import random
import shutil
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from secrets import token_hex
from threading import RLock
from typing import Any, NamedTuple

import pyarrow as pa

from longmem.errors import CorruptionError, StoreError
from longmem.store.lance.connection import connect, new_session, shared_session

DOOMED_PREFIX = ".dropped-"
"""Prefix of folders of tables that are being removed."""

REPAIR = "run `longmem memory verify --repair`, or restore the store from a copy"

NEVER = timedelta(days=36500)

KEEP_VERSIONS = timedelta(minutes=10)
"""Time for which old versions of the catalogue are kept, because another process may be reading one."""

HANDLES = 128
"""Open tables per database; each keeps its manifest in memory."""

CONFLICT_TRIES = 20
"""Tries of a commit. Commits are optimistic: one that conflicts with another process is retried."""

CONFLICT_PAUSE_S = 0.01
"""Mean pause before the second try, in seconds. It doubles up to 1 s: 20 tries take about 15 s."""

PRIMARY_KEY = {"lance-schema:unenforced-primary-key": "true"}
"""Metadata of the column that `insert_missing` compares. Without it, and with a column that is nullable, Lance commits
two concurrent inserts of one key without a conflict (lancedb 0.40, Lance 13)."""

_PRIMARY_KEYS = (b"lance-schema:unenforced-primary-key", b"lance-schema:unenforced-primary-key:position")
"""Metadata of a primary key in a stored schema: set at creation, or afterwards."""

_FOREIGN = (OSError, RuntimeError, ValueError, KeyError, TypeError, pa.ArrowException)

_NO_SPACE = ("no space left", "disk quota", f"os error {errno.ENOSPC}")
_NO_WRITE = ("permission denied", "read-only file system", f"os error {errno.EROFS}", f"os error {errno.EACCES}")


class Commit(NamedTuple):
    """Effect of one commit on a table."""

    num_rows: int
    """Number of inserted or deleted rows."""
    version: int
    """Version of the table after it."""


class LanceDatabase:
    """Tables in a folder or at a URI. Threads share the handles; every read sees the newest commit of any process."""

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self.folder = None if "://" in uri else Path(uri)
        """Folder of the tables; None in an object store."""
        self._tables: OrderedDict[str, Any] = OrderedDict()
        self._keyed: set[str] = set()
        """Tables known to have their primary key, which Lance never removes."""
        self._lock = RLock()
        self._connection: Any = None
        self._session: Any = None
        if self.folder is not None and self.folder.exists() and not self.folder.is_dir():
            raise StoreError(f"{uri} is a file; a memory store is a folder: choose another path")

    def table_names(self) -> list[str]:
        """Return the names of all tables; empty for a new database."""
        connection = self._connected()
        names: list[str] = []
        if connection is not None:
            with _translated(f"listing tables of {self.uri}"):
                page = connection.list_tables()
                names += page.tables
                while page.page_token:
                    page = connection.list_tables(page_token=page.page_token)
                    names += page.tables
        return names

    def create_if_absent(self, name: str, schema: pa.Schema) -> None:
        """Create an empty table (and the database). Processes may do so concurrently."""
        with _translated(f"creating table {name} in {self.uri}", damage=False):
            if self.folder is not None:
                self.folder.mkdir(parents=True, exist_ok=True)
            self._connected().create_table(name, schema=schema, exist_ok=True)

    def has_key(self, name: str, columns: list[str], column: str) -> bool:
        """Return True if Lance detects conflicting inserts by that column."""
        with _translated(f"reading table {name}"):
            return _is_key(self._table(name, columns).schema.field(column))

    def append(self, name: str, rows: pa.Table) -> None:
        with _translated(f"appending to table {name}", damage=False):
            self._table(name, rows.schema.names).add(rows)

    def insert_missing(self, name: str, rows: pa.Table, column: str) -> Commit:
        """Insert the rows whose `column` is not in the table yet, as one commit.

        If several writers insert one key concurrently, exactly one counts it as inserted. A table of an earlier version
        of longmem, whose column is not a primary key, gets the key first.
        """
        assert not rows.schema.field(column).nullable, f"{name}: a nullable column is no key: {column}"

        def insert() -> Commit:
            table = self._table(name, rows.schema.names)
            if name not in self._keyed:
                self._add_key(table, column)
                self._keyed.add(name)
            result = table.merge_insert(column).when_not_matched_insert_all().execute(rows)
            return Commit(int(result.num_inserted_rows), int(result.version))

        return self._committed(f"writing to table {name}", name, insert)

    def version(self, name: str, schema: pa.Schema) -> int:
        """Return the newest version of a table."""
        with _translated(f"reading table {name}"):
            return int(self._table(name, schema.names).version)

    def select(
        self, name: str, schema: pa.Schema, where: str | None = None, columns: list[str] | None = None
    ) -> pa.Table:
        """Return the rows that satisfy an SQL condition; values in it must come from `quoted`."""
        with _translated(f"reading table {name}"):
            query = self._table(name, schema.names).search()
            if where is not None:
                query = query.where(where)
            if columns is not None:
                query = query.select(columns)
            rows: pa.Table = query.to_arrow()
        return rows

    def delete(self, name: str, schema: pa.Schema, where: str) -> Commit:
        """Delete rows as one commit."""

        def delete() -> Commit:
            result = self._table(name, schema.names).delete(where)
            return Commit(int(result.num_deleted_rows), int(result.version))

        return self._committed(f"deleting from table {name}", name, delete)

    def check(self, name: str, columns: list[str], read: list[str] | None = None) -> None:
        """Open a table and read every row of it (of the columns `read`). Raises CorruptionError."""
        with _translated(f"reading table {name}"):
            for _ in self._table(name, columns).search().select(read or columns).to_batches():
                pass

    def metadata(self, name: str, columns: list[str]) -> dict[bytes, bytes]:
        """Return the metadata of a table's schema."""
        with _translated(f"reading table {name}"):
            return dict(self._table(name, columns).schema.metadata or {})

    def has_table(self, name: str) -> bool:
        """Return True if a table exists. Costs one `stat` in a folder, a listing in an object store."""
        return name in self.table_names() if self.folder is None else (self.folder / f"{name}.lance").is_dir()

    def is_created(self, name: str) -> bool:
        """Return True if a table has a version, so that it can be opened.

        In a folder, `create_if_absent` of another process makes the table's folder before its first manifest. The
        folder is in `table_names` then, and stays there if that process dies.
        """
        if self.folder is None:
            return name in self.table_names()
        return any((self.folder / f"{name}.lance" / "_versions").glob("[!.]*.manifest"))

    def drop(self, name: str, is_needed: Callable[[], bool]) -> None:
        """Remove a table and its files.

        In a folder, the table is first renamed, then `is_needed` is called, and a needed table is renamed back. Writers
        first add a row for a table and then check that the table exists, so they never refer to a removed one. An
        object store cannot rename: the table is removed at once.
        """
        with _translated(f"dropping table {name}", damage=False):
            self.evict(name)
            if self.folder is None:
                if name in self.table_names():
                    self._connected().drop_table(name)
                return
            # renamed first: a crash during the removal must not leave half a table
            doomed = self.folder / f"{DOOMED_PREFIX}{token_hex(8)}"
            try:
                (self.folder / f"{name}.lance").rename(doomed)
            except FileNotFoundError:
                return
            if is_needed():
                doomed.rename(self.folder / f"{name}.lance")
                return
            # set its age to zero, so that no sweep of another process removes it
            os.utime(doomed)
            shutil.rmtree(doomed)

    def compact(self, name: str, schema: pa.Schema) -> bool:
        """Rewrite a narrow table into few files. Return False if another process changed it meanwhile.

        Nothing is lost then, and the next call retries. Old files stay until `clean`.
        """
        return self._optimize(name, schema, NEVER)

    def clean(self, name: str, schema: pa.Schema, older_than: timedelta = KEEP_VERSIONS) -> bool:
        """Remove old versions of a table, and their files."""
        return self._optimize(name, schema, older_than)

    def evict_all(self) -> None:
        """Evict all handles and cached metadata, so that everything is opened and read again."""
        with self._lock:
            self._tables.clear()
            self._connection = None
            self._session = new_session()

    def evict(self, name: str) -> None:
        """Evict the handle of a table, so that the next call opens it again."""
        with self._lock:
            self._tables.pop(name, None)

    def _optimize(self, name: str, schema: pa.Schema, cleanup_older_than: timedelta) -> bool:
        try:
            with _translated(f"compacting table {name}"):
                self._table(name, schema.names).optimize(cleanup_older_than=cleanup_older_than)
        except StoreError as error:
            # after a conflict a handle keeps failing until it is opened again
            self.evict(name)
            if not _is_conflict(error):
                raise
            return False
        return True

    @staticmethod
    def _add_key(table: Any, column: str) -> None:
        """Make the column a primary key, in two commits that rewrite no data.

        A crash between them changes nothing for readers, and the next writer continues.
        """
        field = table.schema.field(column)
        if _is_key(field):
            return
        if field.nullable:
            table.alter_columns({"path": column, "nullable": False})
        try:
            table.set_unenforced_primary_key(column)
        except _FOREIGN:
            # another process may have set the key first; it cannot be set twice
            if not _is_key(table.schema.field(column)):
                raise

    def _committed(self, doing: str, name: str, commit: Callable[[], Commit]) -> Commit:
        for tried in range(CONFLICT_TRIES):
            try:
                with _translated(doing, damage=False):
                    return commit()
            except StoreError as error:
                self.evict(name)
                if not _is_conflict(error) or tried == CONFLICT_TRIES - 1:
                    raise
            # randomised, or two conflicting processes would conflict again
            time.sleep(random.uniform(0.5, 1.5) * min(CONFLICT_PAUSE_S * 2**tried, 1.0))
        raise AssertionError("unreachable: the last try returns or raises")

    def close(self) -> None:
        with self._lock:
            self._tables.clear()

    def _connected(self) -> Any:
        """Return the connection; None while the folder does not exist, because reads must not create it."""
        with self._lock, _translated(f"opening {self.uri}", damage=False):
            if self._connection is None and (self.folder is None or self.folder.is_dir()):
                self._connection = connect(self.uri, self._session or shared_session())
            return self._connection

    def _table(self, name: str, columns: list[str]) -> Any:
        with self._lock:
            table = self._tables.pop(name, None)
            if table is None:
                # even for a write: a table that does not open is damaged
                with _translated(f"opening table {name}"):
                    table = self._connected().open_table(name)
                # a newest manifest of zeros, which a power cut can leave, opens as version 0 without columns
                if table.version < 1 or table.schema.names != columns:
                    raise CorruptionError(
                        f"table {name} of {self.uri} has columns {table.schema.names}, expected {columns}: it is "
                        f"damaged or was not written by longmem; {REPAIR}"
                    )
            self._tables[name] = table
            if len(self._tables) > HANDLES:
                self._tables.popitem(last=False)
            return table


def quoted(value: str) -> str:
    """Return a string literal for a condition. Accepts only hashes and generated names, never a user's text."""
    assert value.replace("-", "").isalnum(), f"not a generated name: {value!r}"
    return f"'{value}'"


def _is_key(field: pa.Field) -> bool:
    return not field.nullable and any(name in (field.metadata or {}) for name in _PRIMARY_KEYS)


_LOST_RACE = (
    "commit conflict",
    "too many concurrent writ",
    "concurrent transaction",
    "manifest contention",
)
"""Substrings of Lance's messages about a conflicting commit whose own retries are used up, or that has none."""


class PlaceError(StoreError):
    """The storage is full, read-only or unreachable; stored data may be sound."""


class _LostRaceError(StoreError):
    """A concurrent commit conflicted; the commit may be retried."""


def _is_conflict(error: StoreError) -> bool:
    return isinstance(error, _LostRaceError)


_NO_ANSWER = (
    "generic s3 error",
    "generic gcs error",
    "generic microsoftazure error",
    "error sending request",
    "access denied",
    "unauthenticated",
    "credentials",
    "too many open files",
    "cannot allocate memory",
)
"""Substrings of messages about unreachable storage, whose data may be sound."""


@contextmanager
def _translated(doing: str, damage: bool = True) -> Iterator[None]:
    """Translate LanceDB's errors. `damage`: an unexplained failure means that stored bytes are damaged."""
    try:
        yield
    except BaseException as error:
        # damaged files can make Lance's Rust code panic, in its own threads or in its runtime's: one of the two types
        # is not an Exception, and neither can be imported
        panic = type(error).__name__ in ("PanicException", "RustPanic")
        if isinstance(error, StoreError) or not (panic or isinstance(error, _FOREIGN)):
            raise
        text = str(error).lower()
        if any(sign in text for sign in _NO_SPACE):
            raise PlaceError(f"{doing}: the disk is full; free some space and run again ({error})") from error
        if "failed to create temp dir" in text:
            raise PlaceError(
                f"{doing}: Lance cannot make a temporary folder in {os.environ.get('TMPDIR', 'the system’s')}; set "
                f"TMPDIR to a folder that exists and can be written ({error})"
            ) from error
        if any(sign in text for sign in _NO_WRITE):
            raise PlaceError(f"{doing}: no permission to write there; choose another folder ({error})") from error
        if any(sign in text for sign in _NO_ANSWER):
            raise PlaceError(f"{doing}: the storage does not answer as it should; run again later ({error})") from error
        if any(sign in text for sign in _LOST_RACE):
            raise _LostRaceError(
                f"{doing}: other processes were faster each time; run again when fewer write ({error})"
            ) from error
        # an open handle reports a newest manifest of zeros like this
        if damage or panic or "does not match existing table schema" in text:
            raise CorruptionError(f"{doing}: stored data cannot be read; {REPAIR} ({error})") from error
        raise StoreError(f"{doing} failed: {error}") from error
