"""Brings a damaged store back to its last good state, and says what that cost.

Damaged manifests and tables are moved into the folder `damaged/` of the store, never deleted. Blocks whose payload is
gone are dropped from the catalogue: a job that needs them writes them again.
"""

import time
from dataclasses import dataclass, field
from pathlib import Path

from longmem.errors import CorruptionError, StoreError
from longmem.memory.catalogue import CATALOGUE, CATALOGUE_SCHEMA, is_payload
from longmem.memory.codec import PAYLOAD_COLUMNS
from longmem.memory.identity import (
    IDENTITY,
    IDENTITY_SCHEMA,
    METADATA_KEY,
    from_identity_rows,
    from_text,
    identity_rows,
)
from longmem.memory.lance_store import LanceMemoryStore
from longmem.memory.lance_table import LanceDatabase
from longmem.types import Fingerprint

REBUILT = "rebuilt"

DAMAGED_FOLDER = "damaged"


@dataclass
class RecoveryReport:
    """What `recover` did, one sentence each; empty for a store that was sound."""

    actions: list[str] = field(default_factory=list)
    num_blocks: int = 0
    """Blocks that the store holds now, all of them verified."""
    num_dropped: int = 0
    """Blocks that the catalogue named and that are gone."""


def recover(uri: str) -> RecoveryReport:
    """Repair a store that nobody else has open. Running it on a sound store only verifies it.

    - a table whose newest version cannot be read goes back to the newest one that can;
    - a catalogue that can be read but not compacted (an old version is damaged) is written anew;
    - a lost fingerprint is restored from the payload tables;
    - catalogue entries whose block does not verify are dropped;
    - with no readable catalogue, every table is moved aside and the store is empty.

    In an object store only damaged blocks are dropped. Raises StoreError when the place cannot be read or written,
    CorruptionError for damage that it cannot repair (a damaged table in an object store).
    """
    report = RecoveryReport()
    database = LanceDatabase(uri)
    if database.folder is not None and database.folder.is_dir():
        _Repair(database, database.folder, report).run()
    with LanceMemoryStore(uri) as store:
        damaged = store.damaged_blocks()
        for row, reason in damaged:
            report.actions.append(
                f"dropped segment {row['segment']} of {row['namespace']}/{row['document']} from the catalogue: {reason}"
            )
        store.drop_blocks([row for row, _ in damaged])
        report.num_dropped = len(damaged)
        report.num_blocks = store.verify()
    return report


class _Repair:
    def __init__(self, database: LanceDatabase, folder: Path, report: RecoveryReport) -> None:
        self._database = database
        self._folder = folder
        self._report = report
        self._aside = folder / DAMAGED_FOLDER / time.strftime("%Y%m%d-%H%M%S")

    def run(self) -> None:
        rebuilt, catalogue = (self._folder / f"{name}.lance" for name in (REBUILT, CATALOGUE))
        if rebuilt.is_dir() and not catalogue.exists():
            rebuilt.rename(catalogue)
            self._report.actions.append("finished a repair that was interrupted: the catalogue is back")
        names = self._database.table_names()
        payloads = sorted(name for name in names if is_payload(name))
        has_catalogue = self._roll_back(CATALOGUE, CATALOGUE_SCHEMA.names)
        has_identity = self._roll_back(IDENTITY, IDENTITY_SCHEMA.names) and self._fingerprint() is not None
        payloads = [name for name in payloads if self._roll_back(name, PAYLOAD_COLUMNS, ["write"])]
        if not payloads and not self._report.actions:
            # nothing was ever stored, or a first put died before its payload
            return
        if not has_identity:
            has_identity = self._restore_identity(payloads)
        if not has_catalogue or not has_identity:
            lost = "catalogue" if not has_catalogue else "fingerprint"
            for name in (*payloads, CATALOGUE, IDENTITY):
                self._move_aside(self._folder / f"{name}.lance", f"the store has lost its {lost}")
            self._report.actions.append(f"the {lost} could not be restored: the store is empty now")
            return
        self._check_old_versions()

    def _check_old_versions(self) -> None:
        try:
            self._database.compact(CATALOGUE, CATALOGUE_SCHEMA)
            self._database.clean(CATALOGUE, CATALOGUE_SCHEMA)
        except CorruptionError as error:
            self._report.actions.append(f"an old version of the catalogue is damaged: {error}")
            rows = self._database.select(CATALOGUE, CATALOGUE_SCHEMA)
            rebuilt = self._folder / f"{REBUILT}.lance"
            self._move_aside(rebuilt, "it was left by a repair that was interrupted")
            self._database.create_if_absent(REBUILT, CATALOGUE_SCHEMA)
            self._database.append(REBUILT, rows)
            self._move_aside(self._folder / f"{CATALOGUE}.lance", f"its {rows.num_rows} rows were written anew")
            rebuilt.rename(self._folder / f"{CATALOGUE}.lance")
            for name in (CATALOGUE, REBUILT):
                self._database.forget(name)

    def _roll_back(self, name: str, columns: list[str], read: list[str] | None = None) -> bool:
        """Move newest versions aside until one can be read; False (and the table aside) when there is none."""
        table = self._folder / f"{name}.lance"
        if not table.is_dir():
            return False
        moved = 0
        while True:
            self._database.forget(name)
            try:
                self._database.check(name, columns, read)
            except CorruptionError as error:
                if not moved:
                    self._report.actions.append(f"table {name} could not be read: {error}")
                newest = _newest_manifest(table)
                if newest is None:
                    self._move_aside(table, "no version of it can be read")
                    return False
                self._move_aside(newest, "that version cannot be read")
                (newest.parent / "latest_version_hint.json").unlink(missing_ok=True)
                moved += 1
            else:
                if moved:
                    self._report.actions.append(f"table {name} is back at the version before {moved} damaged one(s)")
                return True

    def _fingerprint(self) -> Fingerprint | None:
        rows = self._database.select(IDENTITY, IDENTITY_SCHEMA).to_pylist()
        try:
            return from_identity_rows(rows, self._database.uri)
        except CorruptionError as error:
            self._report.actions.append(str(error))
            return None

    def _restore_identity(self, payloads: list[str]) -> bool:
        found = set()
        for name in payloads:
            text = self._database.metadata(name, PAYLOAD_COLUMNS).get(METADATA_KEY)
            if text is not None:
                found.add(from_text(text.decode()))
        if len(found) != 1:
            return False
        (fingerprint,) = found
        self._move_aside(self._folder / f"{IDENTITY}.lance", "it holds no readable fingerprint")
        self._database.forget(IDENTITY)
        self._database.create_if_absent(IDENTITY, IDENTITY_SCHEMA)
        self._database.insert_missing(IDENTITY, identity_rows(fingerprint), "name")
        self._report.actions.append(f"restored the fingerprint from {len(payloads)} payload tables")
        return True

    def _move_aside(self, path: Path, reason: str) -> None:
        if not path.exists():
            return
        target = self._aside / path.relative_to(self._folder)
        while target.exists():
            # the rest of a table whose manifests were moved before
            target = target.with_name(f"{target.name}~")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            path.rename(target)
        except OSError as error:
            raise StoreError(f"cannot move {path} to {target}: {error}; check the store's permissions") from error
        self._report.actions.append(f"moved {path.relative_to(self._folder)} to {target.parent}: {reason}")


def _newest_manifest(table: Path) -> Path | None:
    manifests = [path for path in (table / "_versions").glob("*.manifest") if path.stem.isdigit()]
    return max(manifests, key=_version, default=None)


def _version(manifest: Path) -> int:
    # Lance counts down from 2^64 - 1 in names of twenty digits, so that the newest is listed first
    number = int(manifest.stem)
    return 2**64 - 1 - number if len(manifest.stem) == 20 else number
