# SPDX-License-Identifier: Apache-2.0
"""Removes files of dead writers: temporary files, which Lance never removes, payload tables without a catalogue row,
and half-deleted tables. Without it, a job whose workers die for weeks fills the disk.

Only files older than `OLD_S` are removed: younger ones may belong to a running put.
"""

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from longmem.errors import StoreError
from longmem.store.lance.fsync import TABLE_FOLDERS
from longmem.store.lance.table import DOOMED_PREFIX

OLD_S = 3600.0
"""Age in seconds from which unreferenced files are removed."""

EVERY_S = 3600.0
"""Seconds since the last sweep of any writer after which a writer's first put sweeps."""

STAMP = ".swept"
"""Empty file whose modification time is that of the last sweep."""


@dataclass(frozen=True)
class Swept:
    """Files, tables and bytes that a sweep removed."""

    num_files: int = 0
    """Number of temporary files."""
    num_tables: int = 0
    """Number of unreferenced payload tables and half-deleted tables."""
    num_bytes: int = 0

    def plus_tables(self, tables: dict[str, int]) -> "Swept":
        """Return the sum with removed tables (name → bytes)."""
        return replace(self, num_tables=self.num_tables + len(tables), num_bytes=self.num_bytes + sum(tables.values()))


def is_due(folder: Path) -> bool:
    """Return True if the last sweep of a local store is older than EVERY_S, and record a new one.

    It is recorded before it is made, so that few of many writers that start together sweep.
    """
    stamp = folder / STAMP
    try:
        if time.time() - stamp.stat().st_mtime < EVERY_S:
            return False
    except FileNotFoundError:
        if not folder.is_dir():
            return False
    with _translated(folder):
        stamp.touch()
    return True


def old_tables(folder: Path, is_payload: Callable[[str], bool], old_s: float = OLD_S) -> dict[str, int]:
    """Return the payload tables without a write for `old_s` seconds, with their bytes."""
    before = time.time() - old_s
    found = {}
    for path in folder.glob("*.lance"):
        if not is_payload(path.stem):
            continue
        size, newest = _measure(path)
        if newest < before:
            found[path.stem] = size
    return found


def sweep_files(folder: Path, old_s: float = OLD_S) -> Swept:
    """Remove old temporary files and half-deleted tables of a local store."""
    before = time.time() - old_s
    num_files = num_tables = num_bytes = 0
    with _translated(folder):
        for table in folder.glob("*.lance"):
            for part in TABLE_FOLDERS:
                for path in (table / part).glob(".tmp*"):
                    size, newest = _measure(path)
                    if newest < before:
                        path.unlink(missing_ok=True)
                        num_files, num_bytes = num_files + 1, num_bytes + size
        for table in folder.glob(f"{DOOMED_PREFIX}*"):
            size, newest = _measure(table)
            if newest < before:
                shutil.rmtree(table)
                num_tables, num_bytes = num_tables + 1, num_bytes + size
    return Swept(num_files, num_tables, num_bytes)


def _measure(path: Path) -> tuple[int, float]:
    """Return the bytes of a file or folder, and the time of its last write (now, if it vanishes meanwhile)."""
    try:
        status = path.stat()
        size, newest = (0 if path.is_dir() else status.st_size), status.st_mtime
        for each in path.rglob("*") if path.is_dir() else ():
            status = each.stat()
            size, newest = size + (0 if each.is_dir() else status.st_size), max(newest, status.st_mtime)
    except FileNotFoundError:
        return 0, time.time()
    return size, newest


@contextmanager
def _translated(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StoreError(f"cannot sweep {folder}: {error}; check its permissions") from error
