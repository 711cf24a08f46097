"""LanceDB, behind the few operations the store needs: the only file that imports it.

Its exceptions (whose types say little) become StoreError where the place cannot be used, CorruptionError where
stored bytes cannot be read.
"""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import cache
from pathlib import Path
from threading import RLock
from typing import Any

import lancedb
import pyarrow as pa

from longmem.errors import CorruptionError, StoreError

INDEX_CACHE_BYTES = 8 * 2**20
METADATA_CACHE_BYTES = 16 * 2**20
"""LanceDB's own default is 7 GiB for every connection. Metadata of files that are read once is not worth keeping."""

KEEP_VERSIONS = timedelta(minutes=10)
"""Old versions of the catalogue stay this long: another process may be in the middle of reading one."""

_NO_SPACE = ("no space left", "disk quota", f"os error {errno.ENOSPC}")
_NO_WRITE = ("permission denied", "read-only file system", f"os error {errno.EROFS}", f"os error {errno.EACCES}")


class LanceDatabase:
    """A folder (or URI) of tables. Handles are shared by threads; every read sees the newest commit of any process."""

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self._tables: dict[str, Any] = {}
        self._lock = RLock()
        self._connection: Any = None
        if "://" not in uri and Path(uri).exists() and not Path(uri).is_dir():
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
            if "://" not in self.uri:
                Path(self.uri).mkdir(parents=True, exist_ok=True)
            self._connected().create_table(name, schema=schema, exist_ok=True)

    def append(self, name: str, rows: pa.Table) -> None:
        with _translated(f"appending to table {name}", damage=False):
            self._table(name, rows.schema).add(rows)

    def insert_missing(self, name: str, rows: pa.Table, column: str) -> int:
        """Insert the rows whose `column` is not there yet, as one commit; returns how many."""
        with _translated(f"writing to table {name}", damage=False):
            merge = self._table(name, rows.schema).merge_insert(column).when_not_matched_insert_all()
            return int(merge.execute(rows).num_inserted_rows)

    def select(
        self, name: str, schema: pa.Schema, where: str | None = None, columns: list[str] | None = None
    ) -> pa.Table:
        """Rows for which an SQL condition holds; values in it must come from `quoted`."""
        with _translated(f"reading table {name}"):
            query = self._table(name, schema).search()
            if where is not None:
                query = query.where(where)
            if columns is not None:
                query = query.select(columns)
            rows: pa.Table = query.to_arrow()
        return rows

    def delete(self, name: str, schema: pa.Schema, where: str) -> int:
        """Delete rows as one commit; returns how many."""
        with _translated(f"deleting from table {name}", damage=False):
            return int(self._table(name, schema).delete(where).num_deleted_rows)

    def drop(self, name: str) -> None:
        """Remove a table and its files."""
        with _translated(f"dropping table {name}", damage=False):
            with self._lock:
                self._tables.pop(name, None)
            if name in self.table_names():
                self._connected().drop_table(name)

    def compact(self, name: str, schema: pa.Schema) -> bool:
        """Rewrite a narrow table into few files; False when another process changed it meanwhile (nothing is lost,
        the next call tries again)."""
        try:
            with _translated(f"compacting table {name}", damage=False):
                self._table(name, schema).optimize(cleanup_older_than=KEEP_VERSIONS)
        except StoreError as error:
            # a handle that lost such a race keeps failing until it is opened again
            with self._lock:
                self._tables.pop(name, None)
            if "commit conflict" not in str(error).lower():
                raise
            return False
        return True

    def close(self) -> None:
        with self._lock:
            self._tables.clear()

    def _connected(self) -> Any:
        """The connection; None while the place does not exist, because looking must not create it."""
        with self._lock, _translated(f"opening {self.uri}", damage=False):
            if self._connection is None and ("://" in self.uri or Path(self.uri).is_dir()):
                self._connection = lancedb.connect(self.uri, read_consistency_interval=timedelta(0), session=_session())
            return self._connection

    def _table(self, name: str, schema: pa.Schema) -> Any:
        with self._lock:
            table = self._tables.get(name)
            if table is None:
                table = self._connected().open_table(name)
                if table.schema.names != schema.names:
                    raise CorruptionError(
                        f"table {name} of {self.uri} has columns {table.schema.names}, expected {schema.names}: it is "
                        "damaged or was not written by longmem; restore it from a copy or write the store again"
                    )
                self._tables[name] = table
            return table


def quoted(value: str) -> str:
    """A string literal for a condition. Only hashes and generated names are ever passed: never a user's text."""
    assert value.replace("-", "").isalnum(), f"not a generated name: {value!r}"
    return f"'{value}'"


@cache
def _session() -> Any:
    return lancedb.Session(index_cache_size_bytes=INDEX_CACHE_BYTES, metadata_cache_size_bytes=METADATA_CACHE_BYTES)


@contextmanager
def _translated(doing: str, damage: bool = True) -> Iterator[None]:
    """Raise LanceDB's errors as ours; `damage`: whether an unexplained failure means that stored bytes are bad."""
    try:
        yield
    except (StoreError, KeyboardInterrupt, SystemExit):
        raise
    except (OSError, RuntimeError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
        text = str(error).lower()
        if any(sign in text for sign in _NO_SPACE):
            raise StoreError(f"{doing}: the disk is full; free some space and run again ({error})") from error
        if any(sign in text for sign in _NO_WRITE):
            raise StoreError(f"{doing}: no permission to write there; choose another folder ({error})") from error
        # a newest manifest of zeros, which a power cut can leave, opens as an empty table without columns
        if damage or "does not match existing table schema" in text:
            raise CorruptionError(
                f"{doing}: stored data cannot be read; restore it from a copy or write it again ({error})"
            ) from error
        raise StoreError(f"{doing} failed: {error}") from error
