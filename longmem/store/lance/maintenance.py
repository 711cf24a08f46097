"""Removes what dead writers left behind: temporary files of Lance, which it never removes itself, payload tables that
no catalogue row names, and half-dropped tables. Without it, a job whose workers die for weeks fills the disk.

Only what is older than `OLD_S` goes: younger ones may belong to a put that is under way.
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

EVERY_S = 3600.0
"""A writer's first put sweeps when the last sweep of any writer is older than this."""

STAMP = ".swept"


@dataclass(frozen=True)
class Swept:
    """What a sweep removed."""

    num_files: int = 0
    """Temporary files."""
    num_tables: int = 0
    """Payload tables that nothing named, and half-dropped tables."""
    num_bytes: int = 0

    def plus_tables(self, tables: dict[str, int]) -> "Swept":
        """With tables (name → bytes) that were dropped."""
        return replace(self, num_tables=self.num_tables + len(tables), num_bytes=self.num_bytes + sum(tables.values()))


def is_due(folder: Path) -> bool:
    """Whether the last sweep of a local store is long ago; then says that one was made, so that of many writers that
    start together few sweep."""
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
    """Payload tables that nothing has written to for `old_s`, with their bytes."""
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
    """Remove old temporary files and half-dropped tables of a local store."""
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
    """Bytes of a file or folder, and when any of it was last written. What vanishes meanwhile counts as new."""
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
        raise StoreError(f"cannot tidy {folder}: {error}; check its permissions") from error
