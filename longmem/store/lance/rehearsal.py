"""Tries on a copy whether a catalogue can be written, compacted and cleaned, and not only read.

A writer meets more files than a reader does: cleaning opens the manifest of every version. What exactly Lance opens is
its own affair and changes between versions, so it is let do it. The catalogue is narrow; data files are linked where
the file system can, because Lance never changes one.
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
"""A copy that is made while another process compacts may lack a file."""

_AT_ONCE = timedelta(milliseconds=1)


def rehearse(store: Path) -> None:
    """Insert, delete, compact and clean on a copy of a local store's catalogue. Raises CorruptionError where one of
    them fails or changes what the catalogue says, StoreError where no copy can be made."""
    places: list[Path | None] = [store, None]
    tries = TRIES
    while True:
        try:
            with _copy_of(store, places[0]) as copy:
                _try(LanceDatabase(str(copy)))
        except CorruptionError as error:
            tries -= 1
            if not tries:
                raise CorruptionError(
                    f"every block of {store} can be read, and the next write or compaction would fail: {error}"
                ) from error
        except (OSError, PlaceError) as error:
            # full, or only to be read: what is tried is the catalogue, not the disk
            del places[0]
            if not places:
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
        # on a fresh copy that no other process has open, nothing else can be the reason
        raise CorruptionError(str(error)) from error


@contextmanager
def _copy_of(store: Path, place: Path | None) -> Iterator[Path]:
    """A folder with the catalogue alone, in a place or the system's for temporary files. One that is left in the store
    by a death goes with the next sweep."""
    folder = Path(tempfile.mkdtemp(prefix=DOOMED_PREFIX, dir=place))
    try:
        table, copied = (place / f"{CATALOGUE}.lance" for place in (store, folder))
        # versions first: what they name exists for minutes more, also beside a writer that cleans
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
