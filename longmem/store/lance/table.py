"""LanceDB, behind the few operations the store needs: the only file that imports it.

Its exceptions (whose types say little) become StoreError where the place cannot be used, CorruptionError where
stored bytes cannot be read.
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
from functools import cache
from pathlib import Path
from secrets import token_hex
from threading import RLock
from typing import Any, NamedTuple

import lancedb
import pyarrow as pa

from longmem.errors import CorruptionError, StoreError

DOOMED_PREFIX = ".dropped-"
"""Folders of tables that are being removed."""

REPAIR = "run `longmem memory verify --repair`, or restore the store from a copy"

INDEX_CACHE_BYTES = 8 * 2**20
METADATA_CACHE_BYTES = 16 * 2**20
"""LanceDB's own default is 7 GiB for every connection. Metadata of files that are read once is not worth keeping."""

NEVER = timedelta(days=36500)

KEEP_VERSIONS = timedelta(minutes=10)
"""Old versions of the catalogue stay this long: another process may be in the middle of reading one."""

HANDLES = 128
"""Open tables per database; each holds its manifest in memory."""

CONFLICT_TRIES = 20
"""Commits are optimistic: one that loses a race against another process is tried again, at most so often."""

CONFLICT_PAUSE_S = 0.01
"""Mean pause before the second try. It doubles with each try up to a second: 20 tries last for about 15 s."""

PRIMARY_KEY = {"lance-schema:unenforced-primary-key": "true"}
"""Metadata of the column that `insert_missing` compares. Without it, and with a column that is nullable, Lance commits
two concurrent inserts of one key without a conflict (lancedb 0.40, Lance 13)."""

_PRIMARY_KEYS = (b"lance-schema:unenforced-primary-key", b"lance-schema:unenforced-primary-key:position")
"""Metadata that marks it in a stored schema: from its creation, or set afterwards."""

_FOREIGN = (OSError, RuntimeError, ValueError, KeyError, TypeError, pa.ArrowException)

_NO_SPACE = ("no space left", "disk quota", f"os error {errno.ENOSPC}")
_NO_WRITE = ("permission denied", "read-only file system", f"os error {errno.EROFS}", f"os error {errno.EACCES}")


class Commit(NamedTuple):
    """Effect of one commit on a table."""

    num_rows: int
    """Rows that it inserted or deleted."""
    version: int
    """Version of the table that it made."""


class LanceDatabase:
    """A folder (or URI) of tables. Handles are shared by threads; every read sees the newest commit of any process."""

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self.folder = None if "://" in uri else Path(uri)
        """Where it is, unless in an object store."""
        self._tables: OrderedDict[str, Any] = OrderedDict()
        self._keyed: set[str] = set()
        """Tables that are known to have their primary key, which Lance never takes away."""
        self._lock = RLock()
        self._connection: Any = None
        self._session = _shared_session()
        if self.folder is not None and self.folder.exists() and not self.folder.is_dir():
            raise StoreError(f"{uri} is a file; a memory store is a folder: choose another place")

    def table_names(self) -> list[str]:
        """All tables; none where nothing was ever written."""
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
        """Make an empty table (and the database); another process may do the same at the same time."""
        with _translated(f"creating table {name} in {self.uri}", damage=False):
            if self.folder is not None:
                self.folder.mkdir(parents=True, exist_ok=True)
            self._connected().create_table(name, schema=schema, exist_ok=True)

    def has_key(self, name: str, columns: list[str], column: str) -> bool:
        """Return whether Lance detects conflicts of inserts into a table by that column."""
        with _translated(f"reading table {name}"):
            return _is_key(self._table(name, columns).schema.field(column))

    def append(self, name: str, rows: pa.Table) -> None:
        with _translated(f"appending to table {name}", damage=False):
            self._table(name, rows.schema.names).add(rows)

    def insert_missing(self, name: str, rows: pa.Table, column: str) -> Commit:
        """Insert the rows whose `column` is not there yet, as one commit.

        Of several writers that insert one key at the same moment exactly one counts it as inserted. A table of an
        earlier version of longmem, whose column is no primary key, is given one first.
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
        """Newest version of a table."""
        with _translated(f"reading table {name}"):
            return int(self._table(name, schema.names).version)

    def select(
        self, name: str, schema: pa.Schema, where: str | None = None, columns: list[str] | None = None
    ) -> pa.Table:
        """Rows for which an SQL condition holds; values in it must come from `quoted`."""
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
        """What a table's schema carries beside its columns."""
        with _translated(f"reading table {name}"):
            return dict(self._table(name, columns).schema.metadata or {})

    def has_table(self, name: str) -> bool:
        """Return whether a table is there. Costs one file status in a folder, a listing in an object store."""
        return name in self.table_names() if self.folder is None else (self.folder / f"{name}.lance").is_dir()

    def drop(self, name: str, is_needed: Callable[[], bool]) -> None:
        """Remove a table and its files.

        In a folder, `is_needed` is asked once the table is out of the way; where it is needed, it is put back. A writer
        that first names a table and then looks whether it is there therefore never names one that goes. An object store
        has no renaming: there the table goes at once.
        """
        with _translated(f"dropping table {name}", damage=False):
            self.evict(name)
            if self.folder is None:
                if name in self.table_names():
                    self._connected().drop_table(name)
                return
            # renamed first: a death in the middle must not leave half a table
            doomed = self.folder / f"{DOOMED_PREFIX}{token_hex(8)}"
            try:
                (self.folder / f"{name}.lance").rename(doomed)
            except FileNotFoundError:
                return
            if is_needed():
                doomed.rename(self.folder / f"{name}.lance")
                return
            # as young as its drop: a janitor leaves it to us
            os.utime(doomed)
            shutil.rmtree(doomed)

    def compact(self, name: str, schema: pa.Schema) -> bool:
        """Rewrite a narrow table into few files; False when another process changed it meanwhile (nothing is lost,
        the next call tries again). Old files stay until `clean`."""
        return self._optimize(name, schema, NEVER)

    def clean(self, name: str, schema: pa.Schema, older_than: timedelta = KEEP_VERSIONS) -> bool:
        """Remove old versions of a table, and their files."""
        return self._optimize(name, schema, older_than)

    def evict_all(self) -> None:
        """Open everything anew, and take nothing from what this process has read before."""
        with self._lock:
            self._tables.clear()
            self._connection = None
            self._session = _new_session()

    def evict(self, name: str) -> None:
        """Open the table anew next time."""
        with self._lock:
            self._tables.pop(name, None)

    def _optimize(self, name: str, schema: pa.Schema, cleanup_older_than: timedelta) -> bool:
        try:
            with _translated(f"compacting table {name}"):
                self._table(name, schema.names).optimize(cleanup_older_than=cleanup_older_than)
        except StoreError as error:
            # a handle that lost such a race keeps failing until it is opened again
            self.evict(name)
            if not _is_conflict(error):
                raise
            return False
        return True

    @staticmethod
    def _add_key(table: Any, column: str) -> None:
        """Make the column a primary key, in two commits that rewrite no data. A death between them changes nothing for
        readers, and the next writer goes on."""
        field = table.schema.field(column)
        if _is_key(field):
            return
        if field.nullable:
            table.alter_columns({"path": column, "nullable": False})
        try:
            table.set_unenforced_primary_key(column)
        except _FOREIGN:
            # another process may have been faster, and a key cannot be set twice
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
            # without chance in it, two that met once meet again
            time.sleep(random.uniform(0.5, 1.5) * min(CONFLICT_PAUSE_S * 2**tried, 1.0))
        raise AssertionError("unreachable: the last try returns or raises")

    def close(self) -> None:
        with self._lock:
            self._tables.clear()

    def _connected(self) -> Any:
        """The connection; None while the place does not exist, because looking must not create it."""
        with self._lock, _translated(f"opening {self.uri}", damage=False):
            if self._connection is None and (self.folder is None or self.folder.is_dir()):
                self._connection = lancedb.connect(
                    self.uri, read_consistency_interval=timedelta(0), session=self._session
                )
            return self._connection

    def _table(self, name: str, columns: list[str]) -> Any:
        with self._lock:
            table = self._tables.pop(name, None)
            if table is None:
                # whatever it is opened for: a table that does not open is damaged
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
    """A string literal for a condition. Only hashes and generated names are ever passed: never a user's text."""
    assert value.replace("-", "").isalnum(), f"not a generated name: {value!r}"
    return f"'{value}'"


@cache
def _shared_session() -> Any:
    """One cache of metadata for all databases of the process."""
    return _new_session()


def _new_session() -> Any:
    return lancedb.Session(index_cache_size_bytes=INDEX_CACHE_BYTES, metadata_cache_size_bytes=METADATA_CACHE_BYTES)


def _is_key(field: pa.Field) -> bool:
    return not field.nullable and any(name in (field.metadata or {}) for name in _PRIMARY_KEYS)


_LOST_RACE = (
    "commit conflict",
    "too many concurrent writ",
    "concurrent transaction",
    "manifest contention",
)
"""Parts of Lance's messages on a commit that another one has overtaken: its own tries are used up, or it has none."""


class PlaceError(StoreError):
    """The place is full, read-only or does not answer: what is stored there may be sound."""


class _LostRaceError(StoreError):
    """Another process was faster; the same commit may be tried again."""


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
"""Why bytes could not be had although they may be sound."""


@contextmanager
def _translated(doing: str, damage: bool = True) -> Iterator[None]:
    """Raise LanceDB's errors as ours; `damage`: whether an unexplained failure means that stored bytes are bad."""
    try:
        yield
    except BaseException as error:
        # damaged files can make Lance's Rust code panic, in its own threads or in its runtime's: one of these is no
        # Exception, and neither can be imported
        panic = type(error).__name__ in ("PanicException", "RustPanic")
        if isinstance(error, StoreError) or not (panic or isinstance(error, _FOREIGN)):
            raise
        text = str(error).lower()
        if any(sign in text for sign in _NO_SPACE):
            raise PlaceError(f"{doing}: the disk is full; free some space and run again ({error})") from error
        if any(sign in text for sign in _NO_WRITE):
            raise PlaceError(f"{doing}: no permission to write there; choose another folder ({error})") from error
        if any(sign in text for sign in _NO_ANSWER):
            raise PlaceError(f"{doing}: the storage does not answer as it should; run again later ({error})") from error
        if any(sign in text for sign in _LOST_RACE):
            raise _LostRaceError(
                f"{doing}: other processes were faster each time; run again when fewer write ({error})"
            ) from error
        # what a newest manifest of zeros looks like to a handle that is already open
        if damage or panic or "does not match existing table schema" in text:
            raise CorruptionError(f"{doing}: stored data cannot be read; {REPAIR} ({error})") from error
        raise StoreError(f"{doing} failed: {error}") from error
