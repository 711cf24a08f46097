"""What makes a commit survive a power cut: LanceDB writes and renames its files, but never waits for the disk.

`TableSync` waits for every file of a table that it has not yet waited for, then for the folders that name them. What
other writers committed before is waited for too, because a new manifest refers to their files.
"""

import os
from collections import OrderedDict
from pathlib import Path
from typing import Literal

from longmem.errors import StoreError

Durability = Literal["process", "power"]
"""`process`: what was acknowledged survives the death of any process. `power`: also a power cut or kernel crash."""

TABLE_FOLDERS = ("data", "_deletions", "_indices", "_transactions", "_versions")
"""Of a Lance table: what is referred to comes before what refers to it."""

_TABLES_REMEMBERED = 256
"""Beyond that, the files of a table that was not written to for long are waited for once more, which costs little."""


class TableSync:
    """Waits until tables of a local database folder are on the disk. Not thread-safe."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._synced: OrderedDict[str, set[tuple[str, int, int]]] = OrderedDict()
        self._failed: OSError | None = None

    def table(self, name: str) -> None:
        """Return when every file of the table is on the disk. Raises StoreError; once it did, it always does, because
        a kernel reports a write that failed only once."""
        if self._failed is not None:
            raise self._lost(name, self._failed)
        try:
            self._table(name)
        except OSError as error:
            self._failed = error
            raise self._lost(name, error) from error

    def _table(self, name: str) -> None:
        folder = self._root / f"{name}.lance"
        known = self._synced.pop(name, None)
        found: set[tuple[str, int, int]] = set()
        for part in TABLE_FOLDERS:
            changed = False
            for path in sorted((folder / part).rglob("*")):
                if path.name.startswith(".tmp") or (mark := _mark(path, folder)) is None:
                    continue
                found.add(mark)
                if known is None or mark not in known:
                    _fsync(path)
                    changed = True
            if changed:
                _fsync(folder / part)
        if known is None:
            for place in (folder, self._root, self._root.parent):
                _fsync(place)
        elif found != known:
            _fsync(folder)
        self._synced[name] = found
        if len(self._synced) > _TABLES_REMEMBERED:
            self._synced.popitem(last=False)

    def _lost(self, name: str, error: OSError) -> StoreError:
        return StoreError(
            f"table {name} of {self._root} could not be written to the disk ({error}); what was acknowledged is safe, "
            "later blocks may not be: check the disk, then open the store again and run `longmem memory verify`"
        )


def _mark(path: Path, folder: Path) -> tuple[str, int, int] | None:
    try:
        status = path.stat()
    except FileNotFoundError:
        # an old version that another process cleaned up
        return None
    if path.is_dir():
        return None
    # files are written once, but a name may come again: after a repair, or as the hint of the latest version
    return str(path.relative_to(folder)), status.st_ino, status.st_mtime_ns


def _fsync(path: Path) -> None:
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
