# SPDX-License-Identifier: Apache-2.0
"""State of one version of a local catalogue in addition to its rows: its manifest and its deletion files.

Lance has no checksum for a deletion file: it accepts another valid one of the same length, and the wrong rows count as
deleted. The digest of a version therefore covers manifest and deletion files. A copy of each deletion file in use is
kept in `acknowledged/deletions/`, under its name and digest, so that a repair can restore it.
"""

from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import xxhash

from longmem.store.lance.manifest import DELETIONS, deletion_files

Status = tuple[int, int, int]
"""Inode, modification time (ns) and size of a file."""


class State(NamedTuple):
    """State of one version, as read from the disk."""

    digest: str
    """XXH3-64 of the manifest and the digests of its deletion files."""
    files: dict[Path, Status]
    """Status of the manifest and the deletion files."""
    deletions: dict[Path, str]
    """Digests of the deletion files."""

    @property
    def is_unchanged(self) -> bool:
        """True if no file has changed since it was read. Raises FileNotFoundError."""
        return all(_status(path) == status for path, status in self.files.items())


class CatalogueFiles:
    """Reads versions of one catalogue, and copies their deletion files. Reads are thread-safe, copying is not."""

    def __init__(self, table: Path, copies: Path) -> None:
        self._table = table
        self._copies = copies
        self._known: dict[Path, tuple[Status, str]] = {}
        """Digests of the deletion files of the version read last. File names are never reused."""
        self._copied: set[Path] = set()

    def read(self, manifest: Path) -> State:
        """Return the state of a version. Raises ValueError for a malformed manifest, FileNotFoundError if it or a
        deletion file is missing."""
        files = {manifest: _status(manifest)}
        data = manifest.read_bytes()
        hasher = xxhash.xxh3_64(data)
        read: dict[Path, tuple[Status, str]] = {}
        for name in deletion_files(data):
            path = self._table / DELETIONS / name
            files[path] = status = _status(path)
            known = self._known.get(path)
            read[path] = known if known is not None and known[0] == status else (status, _digest(path.read_bytes()))
            hasher.update(read[path][1].encode())
        self._known = read
        return State(hasher.hexdigest(), files, {path: digest for path, (_, digest) in read.items()})

    def keep_copies(self, state: State) -> None:
        """Copy the deletion files of a version, and remove the copies of the previous version.

        Costs nothing if they are the same. Raises OSError.
        """
        wanted = {self._copy_of(path, digest): path for path, digest in state.deletions.items()}
        if wanted.keys() == self._copied:
            return
        for copy in wanted.keys() - self._copied:
            with suppress(FileNotFoundError):
                # if it is gone, a later version has replaced it, and that version's writer makes the copies
                data = wanted[copy].read_bytes()
                if not copy.exists() or copy.stat().st_size != len(data):
                    self._copies.mkdir(parents=True, exist_ok=True)
                    copy.write_bytes(data)
        for old in self._copied - wanted.keys():
            old.unlink(missing_ok=True)
        self._copied = set(wanted)

    def remove_old_copies(self) -> None:
        """Remove copies of missing deletion files, which dead writers leave behind. Raises OSError."""
        for copy in self._copies.iterdir() if self._copies.is_dir() else ():
            if not (self._table / DELETIONS / copy.name.rpartition("-")[0]).exists():
                copy.unlink(missing_ok=True)

    def damaged(self, manifest: Path) -> dict[Path, bytes]:
        """Return a version's deletion files that differ from their copies, with the copied bytes. Raises as `read`."""
        found = {}
        for name in deletion_files(manifest.read_bytes()):
            path = self._table / DELETIONS / name
            for copy in self._copies.glob(f"{name}-*"):
                data, digest = copy.read_bytes(), copy.name.rpartition("-")[2]
                # a copy may be damaged too
                if digest == _digest(data) and (not path.exists() or path.read_bytes() != data):
                    found[path] = data
        return found

    def evict(self) -> None:
        """Evict all cached digests and the list of copies."""
        self._known = {}
        self._copied = set()

    def _copy_of(self, path: Path, digest: str) -> Path:
        return self._copies / f"{path.name}-{digest}"


def _digest(data: bytes) -> str:
    return xxhash.xxh3_64_hexdigest(data)


def _status(path: Path) -> Status:
    status = path.stat()
    return status.st_ino, status.st_mtime_ns, status.st_size
