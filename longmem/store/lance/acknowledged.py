# SPDX-License-Identifier: Apache-2.0
"""Record of the catalogue's newest acknowledged commit, kept outside the catalogue, to detect lost commits.

    acknowledged/18446744073709551573-8c2f0e7d1a5b9c34      (2^64 - 1 - version)-(digest of that version)

A mark is an empty file with all information in its name, so that it exists completely or not at all. It is created
after a commit of the catalogue and before the commit is acknowledged. The marked version must therefore exist: the
newest version must not be below the mark. The marked version must also be unchanged, with its manifest and its deletion
files (`catalogue_state.py`).

A writer that dies between its commit and its mark leaves a catalogue that is newer than the mark, which is sound. The
folder's name sorts before `catalogue.lance`, so that a tool that copies a store in name order during a write copies the
mark first.

In a bucket a mark holds no digest, because reading each manifest back would cost a request per put. There, a rolled
back catalogue is detected only while its version is below the mark. Reading the marks costs a request too. Opening,
`verify`, `segments`, `documents`, `num_bytes`, forks and compactions make it, also in read-only readers; reads of
blocks do not. A reader with an open bucket detects a rolled-back catalogue at the next of these calls. Until then it
reads blocks of the older catalogue, verified by their checksums as always.
"""

import errno
import json
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from longmem.errors import CorruptionError, StoreError
from longmem.store.lance.catalogue_state import CatalogueFiles, State
from longmem.store.object_files import ObjectFiles
from longmem.wording import reason_of

FOLDER = "acknowledged"

HINT = "latest_version_hint.json"
"""File of Lance in the folder of a table's manifests."""

_LAST = 2**64 - 1
"""Lance names the manifest of version v by this number minus v, so that the newest is listed first."""

_PAUSES_S = (0.01, 0.05, 0.2)
"""Pauses before a check is repeated: a network file system may show a mark before the manifest."""

_NO_DIGEST = "0" * 16


class CommitMark(NamedTuple):
    """One acknowledged commit of the catalogue."""

    version: int
    digest: str
    """Digest of its state; zeros if the state was not read."""

    @property
    def name(self) -> str:
        """File name of the mark."""
        return f"{_LAST - self.version:020d}-{self.digest}"

    @staticmethod
    def of(name: str) -> "CommitMark | None":
        """Return the mark of a file name, or None for another name."""
        number, dash, digest = name.partition("-")
        if not (dash and len(number) == 20 and number.isdigit() and len(digest) == 16):
            return None
        return CommitMark(_LAST - int(number), digest)


class Acknowledged(ABC):
    """Marks of one store. A store's lock must protect `record`, which is not thread-safe."""

    is_cheap: bool
    """True if a check costs microseconds, so that every query of the catalogue makes it."""

    @abstractmethod
    def check(self, version: Callable[[], int]) -> None:
        """Raise CorruptionError unless the catalogue holds every acknowledged commit.

        `version` reads the newest version of the catalogue. It is called only if the files do not decide.
        """

    @abstractmethod
    def check_hint(self) -> None:
        """Raise CorruptionError if Lance's own hint shows that a commit is lost."""

    @abstractmethod
    def newest(self) -> CommitMark | None:
        """Return the newest mark, or None."""

    @abstractmethod
    def record(self, version: int) -> None:
        """Mark a commit that is about to be acknowledged.

        Raises CorruptionError if the catalogue was rolled back meanwhile, StoreError if the mark cannot be written.
        """

    @abstractmethod
    def tidy(self) -> None:
        """Remove files that dead writers left, and older marks."""

    @abstractmethod
    def damaged_deletions(self) -> dict[Path, bytes]:
        """Return the deletion files that differ from the marked ones, with the bytes of their copies."""

    @abstractmethod
    def reset(self, version: int | None) -> None:
        """Remove all marks, and mark the present catalogue of `version` (None: no mark)."""


def acknowledged(uri: str, folder: Path | None) -> Acknowledged:
    """Return the marks of a store in a folder, or at a URI."""
    return _InBucket(ObjectFiles(uri)) if folder is None else _OnDisk(folder)


class _OnDisk(Acknowledged):
    is_cheap = True

    def __init__(self, store: Path) -> None:
        self._store = store
        self._folder = store / FOLDER
        self._versions = store / "catalogue.lance" / "_versions"
        self._files = CatalogueFiles(store / "catalogue.lance", self._folder / "deletions")
        self._sound: tuple[CommitMark, State] | None = None
        """Mark of the last successful check, with the state that it was compared with."""

    def check(self, version: Callable[[], int]) -> None:
        del version  # read from the folder without opening the table
        newest = self.newest()
        for pause_s in (*_PAUSES_S, None):
            if newest is None or (reason := self._lacks(newest)) is None:
                return
            if pause_s is None:
                raise _lost(str(self._store), reason)
            time.sleep(pause_s)
            # a repair or a writer may have replaced the mark
            newest = self.newest()

    def newest(self) -> CommitMark | None:
        return next(iter(self._marks()), None)

    def check_hint(self) -> None:
        """Raise CorruptionError if Lance's hint of the newest version exceeds all existing versions.

        The hint is written after a commit, so it is never too high. It also covers stores without a mark.
        """
        try:
            hint = json.loads((self._versions / HINT).read_text(encoding="utf-8"))["version"]
        except (FileNotFoundError, NotADirectoryError):
            return
        except (ValueError, KeyError, TypeError):
            # Lance then lists the versions and rewrites the hint
            return
        if isinstance(hint, int) and (newest := newest_version(self._versions)) < hint:
            raise _lost(str(self._store), f"version {hint} of the catalogue existed, and the newest one is {newest}")

    def _lacks(self, mark: CommitMark) -> str | None:
        """Return why the catalogue differs from the marked one, or None."""
        manifest = _manifest(self._versions, mark.version)
        try:
            if self._sound is None or self._sound[0] != mark or not self._sound[1].is_unchanged:
                state = self._files.read(manifest)
                if mark.digest not in (_NO_DIGEST, state.digest):
                    return (
                        f"version {mark.version} of the catalogue, with its lists of deleted rows, is not the one that "
                        "was acknowledged: it was replaced by another copy, or is damaged"
                    )
                self._sound = (mark, state)
        except ValueError as error:
            return f"version {mark.version} of the catalogue was acknowledged and cannot be read ({error})"
        except FileNotFoundError as error:
            newest = newest_version(self._versions)
            if newest < mark.version:
                return f"version {mark.version} of the catalogue was acknowledged, and the newest one is {newest}"
            if manifest.exists():
                return f"version {mark.version} of the catalogue was acknowledged, and {error.filename} is gone"
            # the marked version was cleaned; the newest one has no mark yet, or its writer died before making it
        return None

    def record(self, version: int) -> None:
        marks = self._marks()
        if marks and marks[0].version > version:
            # another writer has marked a later commit, which includes ours
            self.check(lambda: version)
            return
        if marks and marks[0].version < version and self._lacks(marks[0]) is not None:
            # our mark will replace it, so it must be checked now
            self.check(lambda: version)
        mark, state = self._mark(version)
        if mark in marks:
            return
        digest = mark.digest
        if any(other.version == version and _NO_DIGEST not in (digest, other.digest) for other in marks):
            raise _lost(str(self._store), f"version {version} was acknowledged before, with other content")
        try:
            self._folder.mkdir(exist_ok=True)
            if state is not None:
                self._files.keep_copies(state)
            (self._folder / mark.name).touch()
            for old in marks:
                if old.version < version:
                    (self._folder / old.name).unlink(missing_ok=True)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise StoreError(
                    f"the disk is full: the write is stored, but its mark in {self._folder} is not ({error}); free "
                    "some space and write it again"
                ) from error
            raise StoreError(
                f"the write is stored, but its mark in {self._folder} could not be written: {error}; free some space "
                "or check its permissions, and write it again"
            ) from error

        if state is not None:
            self._sound = (mark, state)

    def _mark(self, version: int) -> tuple[CommitMark, State | None]:
        """Return the mark and the state of a version; no state if another process has cleaned the version."""
        manifest = _manifest(self._versions, version)
        try:
            state = self._files.read(manifest)
        except ValueError as error:
            raise _lost(str(self._store), f"version {version} was committed a moment ago: {error}") from error
        except FileNotFoundError as error:
            if newest_version(self._versions) < version or manifest.exists():
                raise _lost(
                    str(self._store), f"version {version} was committed a moment ago and {error.filename} is gone"
                ) from None
            return CommitMark(version, _NO_DIGEST), None
        return CommitMark(version, state.digest), state

    def tidy(self) -> None:
        """Remove copies of deletion files; marks are removed by every `record`."""
        with suppress(OSError):
            # remaining copies are harmless, and cost a few bytes
            self._files.remove_old_copies()

    def damaged_deletions(self) -> dict[Path, bytes]:
        newest = self.newest()
        if newest is None:
            return {}
        with suppress(ValueError, FileNotFoundError):
            return self._files.damaged(_manifest(self._versions, newest.version))
        return {}

    def reset(self, version: int | None) -> None:
        try:
            for mark in self._marks():
                (self._folder / mark.name).unlink(missing_ok=True)
        except OSError as error:
            raise StoreError(f"cannot write to {self._folder}: {error}; check its permissions") from error
        self._sound = None
        self._files.evict()
        if version is not None:
            self.record(version)

    def _marks(self) -> list[CommitMark]:
        """Return all marks, newest first."""
        try:
            names = sorted(path.name for path in self._folder.iterdir())
        except FileNotFoundError:
            return []
        except OSError as error:
            raise StoreError(f"cannot read {self._folder}: {reason_of(error)}; check its permissions") from error
        return [mark for name in names if (mark := CommitMark.of(name)) is not None]


class _InBucket(Acknowledged):
    is_cheap = False

    def check_hint(self) -> None:
        """Do nothing: Lance keeps no hint in a bucket."""

    def damaged_deletions(self) -> dict[Path, bytes]:
        return {}

    def __init__(self, files: ObjectFiles) -> None:
        self._files = files
        self._own: CommitMark | None = None

    def check(self, version: Callable[[], int]) -> None:
        marks = self._marks()
        if marks and (newest := version()) < marks[0].version:
            raise _lost(
                self._files.uri,
                f"version {marks[0].version} of the catalogue was acknowledged, and the newest one is {newest}",
            )

    def newest(self) -> CommitMark | None:
        return next(iter(self._marks()), None)

    def record(self, version: int) -> None:
        if self._own is not None and self._own.version > version:
            raise _lost(
                self._files.uri, f"version {self._own.version} was acknowledged before version {version} was committed"
            )
        mark = CommitMark(version, _NO_DIGEST)
        if mark == self._own:
            return
        self._files.create(f"{FOLDER}/{mark.name}")
        if self._own is not None:
            self._files.remove(f"{FOLDER}/{self._own.name}")
        self._own = mark

    def tidy(self) -> None:
        for old in self._marks()[1:]:
            # removed only after a newer one exists, which makes it redundant
            self._files.remove(f"{FOLDER}/{old.name}")

    def reset(self, version: int | None) -> None:
        for mark in self._marks():
            self._files.remove(f"{FOLDER}/{mark.name}")
        self._own = None
        if version is not None:
            self.record(version)

    def _marks(self) -> list[CommitMark]:
        marks = (CommitMark.of(name.rpartition("/")[2]) for name in self._files.names(f"{FOLDER}/"))
        return sorted((mark for mark in marks if mark is not None), reverse=True)


def newest_version(versions: Path) -> int:
    """Return the newest version in a folder of manifests; 0 for none."""
    with suppress(FileNotFoundError):
        found = [version_of(path.name) for path in versions.iterdir() if path.suffix == ".manifest"]
        return max((number for number in found if number is not None), default=0)
    return 0


def version_of(name: str) -> int | None:
    """Return the version of a manifest by its name; None for another file."""
    stem = name.removesuffix(".manifest")
    if not stem.isdigit():
        return None
    # names with fewer digits follow Lance's first naming scheme
    return _LAST - int(stem) if len(stem) == 20 else int(stem)


def _manifest(versions: Path, version: int) -> Path:
    path = versions / f"{_LAST - version:020d}.manifest"
    old = versions / f"{version}.manifest"
    return old if not path.exists() and old.exists() else path


def _lost(uri: str, reason: str) -> CorruptionError:
    return CorruptionError(
        f"{uri} has lost writes that were acknowledged: {reason}; put back the newest copy of the store as a whole, or "
        "run `longmem memory verify --repair` to go on with what is left"
    )
