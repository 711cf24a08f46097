# SPDX-License-Identifier: Apache-2.0
"""Durability against power cuts: LanceDB writes and renames its files, but never calls fsync.

`TableSync` syncs every file of a table that it has not synced yet, then their folders. This includes files of other
writers, because a new manifest refers to them.
"""

import os
from collections import OrderedDict
from pathlib import Path
from typing import Literal

from longmem.errors import StoreError

Durability = Literal["process", "power"]
"""`process`: acknowledged blocks survive the death of any process. `power`: also a power cut or kernel crash."""

TABLE_FOLDERS = ("data", "_deletions", "_indices", "_transactions", "_versions")
"""Folders of a Lance table, referenced files before the files that refer to them."""

_TABLES_REMEMBERED = 256
"""Number of tables whose synced files are cached. The files of an evicted table are synced again, at little cost."""


class TableSync:
    """Syncs tables of a local database folder to the disk. Not thread-safe."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._synced: OrderedDict[str, set[tuple[str, int, int]]] = OrderedDict()
        self._failed: OSError | None = None

    def table(self, name: str) -> None:
        """Block until every file of the table is on the disk. Raises StoreError.

        After one failure every call fails, because the kernel reports a failed write only once.
        """
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
            for path in (folder, self._root, self._root.parent):
                _fsync(path)
        elif found != known:
            _fsync(folder)
        self._synced[name] = found
        if len(self._synced) > _TABLES_REMEMBERED:
            self._synced.popitem(last=False)

    def _lost(self, name: str, error: OSError) -> StoreError:
        return StoreError(
            f"table {name} of {self._root} could not be written to the disk ({error}); acknowledged blocks are safe, "
            "later ones may not be: check the disk, then open the store again and run `longmem memory verify`"
        )


def _mark(path: Path, folder: Path) -> tuple[str, int, int] | None:
    try:
        status = path.stat()
    except FileNotFoundError:
        # an old version that another process removed
        return None
    if path.is_dir():
        return None
    # files are written once, but a name may recur: after a repair, or as the hint of the latest version
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
