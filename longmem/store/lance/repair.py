# SPDX-License-Identifier: Apache-2.0
"""Restores a damaged store to its last good state, and reports what was lost.

Damaged manifests and tables are moved into the folder `damaged/` of the store, never deleted. Blocks without payload
are removed from the catalogue; a job that needs them writes them again.
"""

import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from longmem.errors import CorruptionError, StoreError
from longmem.store.lance.acknowledged import HINT, Acknowledged, acknowledged, version_of
from longmem.store.lance.catalogue import CATALOGUE, CATALOGUE_SCHEMA, is_payload, to_table
from longmem.store.lance.codec import PAYLOAD_COLUMNS, payload_schema
from longmem.store.lance.identity import (
    IDENTITY,
    IDENTITY_SCHEMA,
    METADATA_KEY,
    from_identity_rows,
    from_text,
    identity_rows,
)
from longmem.store.lance.rehearsal import rehearse
from longmem.store.lance.store import LanceMemoryStore
from longmem.store.lance.table import LanceDatabase
from longmem.types import Fingerprint
from longmem.wording import reason_of

REBUILT = "rebuilt"

DAMAGED_FOLDER = "damaged"

_NAMED = 5
"""Number of examples in a message."""


@dataclass
class RecoveryReport:
    """Result of `recover`. `actions` has one sentence per change, and is empty for a sound store."""

    actions: list[str] = field(default_factory=list)
    num_blocks: int = 0
    """Number of stored blocks after the repair, all verified."""
    num_dropped: int = 0
    """Number of catalogued blocks that were lost."""


def recover(uri: str) -> RecoveryReport:
    """Repair a store that no other process has open. A sound store is only verified.

    - A table whose newest version cannot be read is rolled back to the newest readable one.
    - A deletion file of the catalogue that differs from the acknowledged one is restored from its copy.
    - A catalogue that has lost acknowledged commits is accepted, and unreferenced payload is reported.
    - A catalogue that can be read but not written (an old version is damaged) is rewritten.
    - A fingerprint that is lost, or differs from that of the payload tables, is restored from them.
    - If a block has several catalogue rows, one that verifies stays.
    - Catalogue rows whose block does not verify are removed.
    - Without a readable catalogue, every table is moved aside and the store is empty.

    In an object store, only rows of damaged blocks are removed. Raises StoreError when the store cannot be read or
    written, CorruptionError for damage that it cannot repair (a damaged table in an object store).
    """
    report = RecoveryReport()
    database = LanceDatabase(uri)
    if database.folder is None:
        _accept_in_bucket(database, report)
    elif database.folder.is_dir():
        _Repair(database, database.folder, report).run()
    with LanceMemoryStore(uri) as store:
        for row, reason in _surplus_rows(store):
            report.actions.append(f"removed a second row of {_block(row)} from the catalogue: {reason}")
        damaged = store.damaged_blocks()
        for row, reason in damaged:
            report.actions.append(f"dropped {_block(row)} from the catalogue: {reason}")
        store.drop_blocks([row for row, _ in damaged])
        report.num_dropped = len(damaged)
        report.num_blocks = store.verify()
    return report


def _accept_in_bucket(database: LanceDatabase, report: RecoveryReport) -> None:
    """Accept a catalogue that is older than its mark. Raises CorruptionError if it cannot be read."""
    marks = acknowledged(database.uri, None)
    if CATALOGUE not in database.table_names():
        return
    version = database.version(CATALOGUE, CATALOGUE_SCHEMA)
    try:
        marks.check(lambda: version)
    except CorruptionError as error:
        report.actions.append(f"{error} (the catalogue of version {version} is taken as it is)")
        marks.reset(version)


def _surplus_rows(store: LanceMemoryStore) -> list[tuple[dict[str, Any], str]]:
    """Remove all but one row of each block with several rows. Return the removed rows with the reason.

    The row that readers use stays, if it verifies and all rows have the same tokens. Otherwise the first written row
    that verifies stays.
    """
    removed = []
    for rows in store.doubled().values():
        sound = [row for row in rows if not store.damage_of(row)] or rows
        same = len({row["tokens_checksum"] for row in rows}) == 1
        kept = min(sound, key=lambda row: int(row["write"])) if same else sound[0]
        others = [row for row in rows if row is not kept]
        store.keep_row(kept)
        why = "the same tokens" if same else "other tokens, and was written later or cannot be read"
        removed += [
            (row, f"two processes had written it at the same moment, and this one holds {why}") for row in others
        ]
    return removed


class _Repair:
    """Repair a store in a folder: its tables first, then their content."""

    def __init__(self, database: LanceDatabase, folder: Path, report: RecoveryReport) -> None:
        self._database = database
        self._folder = folder
        self._report = report
        self._aside = folder / DAMAGED_FOLDER / time.strftime("%Y%m%d-%H%M%S")
        self._marks: Acknowledged = acknowledged(database.uri, folder)

    def run(self) -> None:
        rebuilt, catalogue = (self._folder / f"{name}.lance" for name in (REBUILT, CATALOGUE))
        if rebuilt.is_dir() and not catalogue.exists():
            rebuilt.rename(catalogue)
            self._report.actions.append("finished a repair that was interrupted: the catalogue is back")
            self._marks.reset(None)
        lost = self._lost_commits()
        names = self._database.table_names()
        payloads = sorted(name for name in names if is_payload(name))
        suspect = self._rows_of_suspect_version() if lost else []
        newest = _newest_manifest(self._folder / f"{CATALOGUE}.lance")
        has_catalogue = self._roll_back(CATALOGUE, CATALOGUE_SCHEMA.names)
        went_back = lost or newest != _newest_manifest(self._folder / f"{CATALOGUE}.lance")
        has_identity = self._roll_back(IDENTITY, IDENTITY_SCHEMA.names)
        payloads = [name for name in payloads if self._roll_back(name, PAYLOAD_COLUMNS, ["write"])]
        if not payloads and not self._report.actions:
            # no put was ever made, or the first one died before its payload
            return
        has_identity = self._check_identity(payloads, has_identity)
        if not has_catalogue or not has_identity:
            self._empty(payloads, "catalogue" if not has_catalogue else "fingerprint")
            return
        self._check_writes(suspect)
        if self._report.actions:
            # from now on, the rolled-back catalogue is the acknowledged one
            self._marks.reset(self._database.version(CATALOGUE, CATALOGUE_SCHEMA))
        if went_back:
            self._report_unreferenced(payloads)

    def _lost_commits(self) -> bool:
        """Return True if acknowledged commits are lost."""
        table = self._folder / f"{CATALOGUE}.lance"
        try:
            self._restore_deletions()
            self._marks.check(lambda: 0)
            self._marks.check_hint()
        except CorruptionError as error:
            back = "deleted blocks may be back, where their payload is still there"
            self._report.actions.append(f"{error} (it was taken as it is: {back})")
            (table / "_versions" / HINT).unlink(missing_ok=True)
            return True
        return False

    def _restore_deletions(self) -> None:
        """Restore deletion files that differ from the acknowledged ones from their copies."""
        for path, data in self._marks.damaged_deletions().items():
            name = path.relative_to(self._folder)
            self._move_aside(path, "it is not the list of deleted rows that was acknowledged")
            try:
                path.parent.mkdir(exist_ok=True)
                path.write_bytes(data)
            except OSError as error:
                raise StoreError(
                    f"cannot write {path}: {reason_of(error)}; free some space or check its permissions"
                ) from error
            self._report.actions.append(f"{name}, a list of deleted rows, was put back from its copy")
        self._database.evict_all()

    def _rows_of_suspect_version(self) -> list[dict[str, Any]]:
        """Move the newest version aside if it differs from the acknowledged one of its number, and return its rows.

        A flipped bit in a manifest can omit rows or restore deleted ones, and the manifest still be readable.
        """
        table = self._folder / f"{CATALOGUE}.lance"
        mark = self._marks.newest()
        newest = _newest_manifest(table)
        if mark is None or newest is None or version_of(newest.name) != mark.version or len(_manifests(table)) < 2:
            return []
        try:
            rows: list[dict[str, Any]] = self._database.select(CATALOGUE, CATALOGUE_SCHEMA).to_pylist()
        except CorruptionError:
            return []
        self._move_aside(newest, "it is not the version that was acknowledged under this number")
        self._database.evict(CATALOGUE)
        return rows

    def _check_writes(self, suspect: list[dict[str, Any]]) -> None:
        """Rewrite the catalogue if it cannot be written, or lacks rows of a version that was moved aside."""
        reason = None
        try:
            rehearse(self._folder)
        except CorruptionError as error:
            reason = f"the catalogue could be read and not written: {error}"
        rows = self._database.select(CATALOGUE, CATALOGUE_SCHEMA).to_pylist()
        held = {row["block"] for row in rows}
        if more := [row for row in suspect if row["block"] not in held]:
            reason = f"{reason}; " if reason else ""
            reason += f"{len(more)} rows of the version that was moved aside are taken over, where their blocks verify"
        if reason is None:
            return
        self._report.actions.append(reason)
        rebuilt = self._folder / f"{REBUILT}.lance"
        self._move_aside(rebuilt, "it was left by a repair that was interrupted")
        self._database.create_if_absent(REBUILT, CATALOGUE_SCHEMA)
        self._database.append(REBUILT, to_table(rows + more))
        # reset first: a crash from here on leaves no mark that contradicts the new catalogue
        self._marks.reset(None)
        self._move_aside(self._folder / f"{CATALOGUE}.lance", f"its {len(rows)} rows were rewritten")
        rebuilt.rename(self._folder / f"{CATALOGUE}.lance")
        for name in (CATALOGUE, REBUILT):
            self._database.evict(name)

    def _report_unreferenced(self, payloads: list[str]) -> None:
        """Report payload without a catalogue row, which lost commits referred to.

        It stays if its table has other blocks; otherwise the table is moved aside.
        """
        rows = self._database.select(CATALOGUE, CATALOGUE_SCHEMA).to_pylist()
        named = {(row["payload"], int(row["write"])) for row in rows}
        documents = {row["place"]: f"{row['namespace']}/{row['document']}" for row in rows}
        unnamed: Counter[str] = Counter()
        for name in payloads:
            written = self._database.select(name, payload_schema(self._known()), columns=["write"])["write"].to_pylist()
            if count := len({write for write in written if (name, write) not in named}):
                unnamed[name] = count
                if not any(payload == name for payload, _ in named):
                    self._move_aside(self._folder / f"{name}.lance", "no row of the catalogue names any of its blocks")
        if unnamed:
            owners = sorted({documents.get(_document_hash(name), "a document without blocks") for name in unnamed})
            shown = ", ".join(owners[:_NAMED]) + (f" and {len(owners) - _NAMED} others" if len(owners) > _NAMED else "")
            self._report.actions.append(
                f"{sum(unnamed.values())} blocks were written that the catalogue does not name (lost with its newest "
                f"commits, or left by writers that died): of {shown}; write these documents again"
            )

    def _roll_back(self, name: str, columns: list[str], read: list[str] | None = None) -> bool:
        """Move newest versions aside until one can be read. If none can, move the table aside and return False."""
        table = self._folder / f"{name}.lance"
        if not table.is_dir():
            return False
        moved = 0
        while True:
            self._database.evict(name)
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
                (newest.parent / HINT).unlink(missing_ok=True)
                moved += 1
            else:
                if moved:
                    self._report.actions.append(f"table {name} is back at the version before {moved} damaged one(s)")
                return True

    def _check_identity(self, payloads: list[str], readable: bool) -> bool:
        """Restore a lost or wrong fingerprint from the payload tables. Return False if there is none."""
        stored = self._fingerprint() if readable else None
        found: Counter[Fingerprint] = Counter()
        for name in payloads:
            text = self._database.metadata(name, PAYLOAD_COLUMNS).get(METADATA_KEY)
            if text is not None:
                found[from_text(text.decode())] += 1
        ranked = found.most_common(2)
        if not ranked or (stored is not None and stored in found and len(found) == 1):
            return stored is not None
        fingerprint, count = ranked[0]
        if len(ranked) > 1 and ranked[1][1] == count:
            if stored in found:
                return True
            raise CorruptionError(
                f"the payload tables of {self._database.uri} were written by {len(found)} models, as many tables "
                f"by each of two, and the fingerprint is lost: restore the table `identity` from a copy "
                f"({ranked[0][0]} or {ranked[1][0]})"
            )
        if stored == fingerprint:
            return True
        why = "it holds no readable fingerprint" if stored is None else "its fingerprint is that of another store"
        self._move_aside(self._folder / f"{IDENTITY}.lance", why)
        self._database.evict(IDENTITY)
        self._database.create_if_absent(IDENTITY, IDENTITY_SCHEMA)
        self._database.insert_missing(IDENTITY, identity_rows(fingerprint), "name")
        self._report.actions.append(f"restored the fingerprint from {count} of {len(payloads)} payload tables")
        return True

    def _fingerprint(self) -> Fingerprint | None:
        rows = self._database.select(IDENTITY, IDENTITY_SCHEMA).to_pylist()
        try:
            return from_identity_rows(rows, self._database.uri)
        except CorruptionError as error:
            self._report.actions.append(str(error))
            return None

    def _known(self) -> Fingerprint:
        fingerprint = self._fingerprint()
        assert fingerprint is not None, "asked for the fingerprint before it was restored"
        return fingerprint

    def _empty(self, payloads: list[str], lost: str) -> None:
        for name in (*payloads, CATALOGUE, IDENTITY):
            self._move_aside(self._folder / f"{name}.lance", f"the store has lost its {lost}")
        self._marks.reset(None)
        self._report.actions.append(f"the {lost} could not be restored: the store is empty now")

    def _move_aside(self, path: Path, reason: str) -> None:
        if not path.exists():
            return
        target = self._aside / path.relative_to(self._folder)
        while target.exists():
            # the name is taken by manifests of this table that were moved before
            target = target.with_name(f"{target.name}~")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            path.rename(target)
        except OSError as error:
            raise StoreError(f"cannot move {path} to {target}: {error}; check the store's permissions") from error
        self._report.actions.append(f"moved {path.relative_to(self._folder)} to {target.parent}: {reason}")


def _manifests(table: Path) -> list[Path]:
    return [path for path in (table / "_versions").glob("*.manifest") if version_of(path.name) is not None]


def _newest_manifest(table: Path) -> Path | None:
    return max(_manifests(table), key=lambda path: version_of(path.name) or 0, default=None)


def _document_hash(payload: str) -> str:
    return payload.split("-")[1]


def _block(row: dict[str, Any]) -> str:
    return f"segment {row['segment']} of {row['namespace']}/{row['document']}"
