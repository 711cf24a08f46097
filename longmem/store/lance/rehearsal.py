# SPDX-License-Identifier: Apache-2.0
"""Tests on a copy that a catalogue can be written, compacted and cleaned, not only read.

A writer opens more files than a reader: cleaning opens the manifest of every version. The exact files depend on the
Lance version, so the test runs Lance itself. The catalogue is small. Data files are hard-linked if the file system
supports it, because Lance never modifies one.
"""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path

from longmem.errors import CorruptionError, StoreError
from longmem.store.lance.catalogue import CATALOGUE, CATALOGUE_SCHEMA, row_of, to_table
from longmem.store.lance.fsync import TABLE_FOLDERS
from longmem.store.lance.table import DOOMED_PREFIX, LanceDatabase, PlaceError
from longmem.types import DocumentKey, SegmentInfo

TRIES = 3
"""Number of tries: a copy that is made while another process compacts may lack a file."""

_AT_ONCE = timedelta(milliseconds=1)


def rehearse(store: Path) -> None:
    """Insert, delete, compact and clean on a copy of a local store's catalogue.

    Raises CorruptionError if an operation fails or changes the rows, StoreError if no copy can be made.
    """
    parents: list[Path | None] = [store, None]
    tries = TRIES
    while True:
        try:
            with _copy_of(store, parents[0]) as copy:
                _try(LanceDatabase(str(copy)))
        except CorruptionError as error:
            tries -= 1
            if not tries:
                raise CorruptionError(
                    f"every block of {store} can be read, and the next write or compaction would fail: {error}"
                ) from error
        except (OSError, PlaceError) as error:
            # full or read-only: the catalogue is tested, not the disk, so copy to the temporary folder instead
            del parents[0]
            if not parents:
                raise StoreError(
                    f"every block of {store} can be read; whether its catalogue can be written could not be tried, "
                    f"neither there nor in {tempfile.gettempdir()}: {error}; free some space, or set TMPDIR"
                ) from error
        else:
            return


def _try(database: LanceDatabase) -> None:
    before = _blocks(database)
    key = DocumentKey("", "rehearsal")
    row = row_of(SegmentInfo(key, -1, 0, 0, "", "", 0), "p-none", -1)
    with _as_damage():
        database.insert_missing(CATALOGUE, to_table([row]), "block")
        database.delete(CATALOGUE, CATALOGUE_SCHEMA, f"block = '{row['block']}'")
        database.compact(CATALOGUE, CATALOGUE_SCHEMA)
        database.clean(CATALOGUE, CATALOGUE_SCHEMA, _AT_ONCE)
    database.close()
    if _blocks(database) != before:
        raise CorruptionError("a compaction changed the rows of the catalogue")


def _blocks(database: LanceDatabase) -> list[tuple[str, int]]:
    rows = database.select(CATALOGUE, CATALOGUE_SCHEMA, columns=["block", "write"])
    return sorted(zip(rows["block"].to_pylist(), rows["write"].to_pylist(), strict=True))


@contextmanager
def _as_damage() -> Iterator[None]:
    try:
        yield
    except (CorruptionError, PlaceError):
        raise
    except StoreError as error:
        # a private copy leaves no other cause
        raise CorruptionError(str(error)) from error


@contextmanager
def _copy_of(store: Path, parent: Path | None) -> Iterator[Path]:
    """Yield a folder in `parent` (None: the system's temporary folder) that holds only a copy of the catalogue.

    The next sweep removes a copy that a dying process left in the store.
    """
    folder = Path(tempfile.mkdtemp(prefix=DOOMED_PREFIX, dir=parent))
    try:
        table, copied = (root / f"{CATALOGUE}.lance" for root in (store, folder))
        # versions first: the files that they name exist for minutes more, even while a writer cleans
        for part in ("_versions", *(part for part in TABLE_FOLDERS if part != "_versions")):
            for path in sorted((table / part).rglob("*")):
                if path.is_file() and not path.name.startswith(".tmp"):
                    target = copied / path.relative_to(table)
                    target.parent.mkdir(parents=True, exist_ok=True)
                    with suppress(FileNotFoundError):
                        _link_or_copy(path, target, link=part == "data")
        yield folder
    finally:
        shutil.rmtree(folder)


def _link_or_copy(path: Path, target: Path, link: bool) -> None:
    if link:
        with suppress(OSError):
            os.link(path, target)
            return
    shutil.copyfile(path, target)
