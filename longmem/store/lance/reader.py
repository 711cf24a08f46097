# SPDX-License-Identifier: Apache-2.0
"""Read access to the durable store, with checks of every row and block."""

from collections import OrderedDict
from contextlib import suppress
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from longmem.errors import CorruptionError, StoreError
from longmem.store.base import AbstractMemoryStore, describe_block, missing_blocks, with_more
from longmem.store.lance.acknowledged import acknowledged
from longmem.store.lance.catalogue import CATALOGUE, CATALOGUE_SCHEMA, at, info_of, is_payload, key_of, once_each
from longmem.store.lance.codec import PAYLOAD_COLUMNS, from_rows, payload_schema
from longmem.store.lance.identity import (
    IDENTITY,
    IDENTITY_SCHEMA,
    METADATA_KEY,
    from_identity_rows,
    from_text,
)
from longmem.store.lance.recent_rows import RecentRows
from longmem.store.lance.rehearsal import rehearse
from longmem.store.lance.table import HANDLES, REPAIR, LanceDatabase
from longmem.stored_format import RECENT_BYTES
from longmem.types import DocumentKey, Fingerprint, KVBlock, SegmentInfo

MODELS_ASKED = 3
"""Payload tables whose own fingerprint is compared when a store is opened. One suffices, unless it is damaged."""


class LanceReader(AbstractMemoryStore):
    """Reads catalogue and payload, and compares every row and block with its checksums and hashes.

    The catalogue, which other processes change too, is queried for every read. Payload comes from the cache of this
    process's last writes if it is there, else from the disk; `verify` always reads the disk.
    """

    def __init__(self, uri: str, recent_bytes: int = RECENT_BYTES) -> None:
        self._uri = uri
        self._database = LanceDatabase(uri)
        self._acknowledged = acknowledged(uri, self._database.folder)
        self._same_model: OrderedDict[str, None] = OrderedDict()
        """Cached names of payload tables whose fingerprint equals the store's."""
        self._recent = RecentRows(recent_bytes)
        self._exists = False
        self._closed = False
        self._known_identity: Fingerprint | None = None
        self.fingerprint()

    @property
    def location(self) -> str:
        return self._uri

    def read(self, key: DocumentKey, first_segment: int, last_segment: int, *, ahead: int = 0) -> list[KVBlock]:
        return self._read(key, range(first_segment, last_segment), ahead)

    def _read(self, key: DocumentKey, wanted: range, ahead: int = 0, from_disk: bool = False) -> list[KVBlock]:
        self._check_open()
        if not wanted:
            return []
        rows = self._entries(key, wanted, ahead)
        try:
            return self._blocks(rows, from_disk)
        except CorruptionError:
            # raises MissingBlockError if the block was deleted or trimmed meanwhile
            self._entries(key, range(wanted.start, wanted.start + len(rows)))
        # read again: a delete concurrent with a put moves the put's payload away for milliseconds; damage stays
        return self._blocks(rows, from_disk)

    def _entries(self, key: DocumentKey, wanted: range, ahead: int = 0) -> list[dict[str, Any]]:
        condition = f"{at(key)} AND segment >= {int(wanted.start)} AND segment < {int(wanted.stop + ahead)}"
        rows = self._rows(condition)
        found = [row["segment"] for row in rows]
        if found[: len(wanted)] != list(wanted):
            raise missing_blocks(key, wanted, found)
        return rows[: len(with_more(wanted, ahead, found))]

    def _blocks(self, rows: list[dict[str, Any]], from_disk: bool) -> list[KVBlock]:
        identity = self.fingerprint()
        if identity is None:
            raise CorruptionError(f"{self._database.uri} has blocks but no fingerprint; {REPAIR}")
        blocks: list[KVBlock] = []
        for payload in dict.fromkeys(row["payload"] for row in rows):
            infos = [(info_of(row), int(row["write"])) for row in rows if row["payload"] == payload]
            held = {} if from_disk else self._recent.of([write for _, write in infos])
            # one table for each recent write: numbers of several writes would be copied to be joined
            groups = [(held[write], [(info, write)]) for info, write in infos if write in held]
            if lacking := [(info, write) for info, write in infos if write not in held]:
                self._check_model(payload, identity)
                condition = f"write IN ({', '.join(str(write) for _, write in lacking)})"
                groups.append((self._database.select(payload, payload_schema(identity), condition), lacking))
            for rows_of_group, wanted in groups:
                blocks += self._checked(rows_of_group, wanted, identity, payload)
        return sorted(blocks, key=lambda block: block.segment)

    def _checked(
        self, rows: pa.Table, infos: list[tuple[SegmentInfo, int]], identity: Fingerprint, payload: str
    ) -> list[KVBlock]:
        """Return the blocks of (catalogue entry, write) pairs. Raises CorruptionError for what was not written so."""
        blocks: list[KVBlock] = []
        for (info, _), block in zip(infos, from_rows(rows, infos[0][0].key, infos, identity), strict=True):
            if block is None or describe_block(block) != info:
                raise CorruptionError(
                    f"{info.key} segment {info.segment}: stored bytes in table {payload} of {self._database.uri} "
                    "do not match the checksum of their write; run `longmem memory verify --repair`, or delete "
                    "the document, and write it again"
                )
            blocks.append(block)
        return blocks

    def segments(self, key: DocumentKey) -> list[SegmentInfo]:
        self._check_open()
        self._check_acknowledged()
        return [info_of(row) for row in self._rows(at(key))]

    def documents(self, namespace: str | None = None) -> list[DocumentKey]:
        self._check_open()
        self._check_acknowledged()
        rows = self._catalogue(columns=["place", "namespace", "document"])
        once = rows.group_by(["place", "namespace", "document"]).aggregate([])
        return sorted(key for row in once.to_pylist() if namespace in (None, (key := key_of(row)).namespace))

    def fingerprint(self) -> Fingerprint | None:
        self._check_open()
        if self._known_identity is None and self._is_there():
            self._known_identity = self._stored_identity()
        return self._known_identity

    def _stored_identity(self) -> Fingerprint | None:
        found = self._identity_rows()
        # another process may have put its first block since: the fingerprint is stored before any block
        if found is None and self._catalogue(columns=["segment"]).num_rows and (found := self._identity_rows()) is None:
            raise CorruptionError(f"{self._database.uri} has blocks and has lost its fingerprint; {REPAIR}")
        if found is not None:
            self._check_models(found)
        return found

    def _identity_rows(self) -> Fingerprint | None:
        return from_identity_rows(self._database.select(IDENTITY, IDENTITY_SCHEMA).to_pylist(), self._database.uri)

    def _check_stored_identity(self) -> None:
        """Raise CorruptionError if the stored fingerprint differs from the one at opening."""
        known = self.fingerprint()
        if known is not None and (stored := self._stored_identity()) != known:
            raise CorruptionError(
                f"the fingerprint of {self._database.uri} was replaced while it was open (before: {known}, now: "
                f"{stored}); {REPAIR}"
            )

    def _check_models(self, identity: Fingerprint) -> None:
        """Raise CorruptionError if none of a few payload tables has the store's fingerprint.

        This happens before anything is read or written under a wrong fingerprint. If only some tables differ, reads of
        their blocks raise.
        """
        foreign: tuple[str, Fingerprint] | None = None
        for payload in sorted(filter(is_payload, self._database.table_names()))[:MODELS_ASKED]:
            # removed meanwhile, or damaged: reads of its blocks raise, and the other tables can be read
            with suppress(CorruptionError):
                own = self._model_of(payload)
                if own == identity:
                    return
                if own is not None:
                    foreign = foreign or (payload, own)
        if foreign is not None:
            raise self._foreign(*foreign, identity)

    def _check_model(self, payload: str, identity: Fingerprint) -> None:
        """Raise CorruptionError if the fingerprint of a payload table differs from `identity`."""
        if payload in self._same_model:
            return
        if (own := self._model_of(payload)) not in (None, identity):
            raise self._foreign(payload, own, identity)
        self._same_model[payload] = None
        if len(self._same_model) > HANDLES:
            self._same_model.popitem(last=False)

    def _model_of(self, payload: str) -> Fingerprint | None:
        """Return a payload table's copy of the fingerprint; None for tables of early versions."""
        text = self._database.metadata(payload, PAYLOAD_COLUMNS).get(METADATA_KEY)
        return None if text is None else from_text(text.decode())

    def _foreign(self, payload: str, own: Fingerprint, identity: Fingerprint) -> CorruptionError:
        return CorruptionError(
            f"table {payload} of {self._database.uri} was written by another model than the store's fingerprint says "
            f"(store != table): {identity.differences(own)}; the table `identity` was replaced or damaged: {REPAIR}"
        )

    def verify(self, key: DocumentKey | None = None) -> int:
        self._check_open()
        # files may have been damaged since this process opened them
        self._database.evict_all()
        self._check_acknowledged()
        self._acknowledged.check_hint()
        self._check_stored_identity()
        if doubled := self.doubled(key):
            raise CorruptionError(
                f"{len(doubled)} segments are more than once in the catalogue of {self._database.uri} "
                f"(the first: {_named(next(iter(doubled.values()))[0])}), because several processes wrote them at the "
                f"same moment; reads take one of them where they hold the same tokens; {REPAIR}"
            )
        keys = self.documents() if key is None else [key]
        num_blocks = sum(
            len(self._read(key, range(info.segment, info.segment + 1), from_disk=True))
            for key in keys
            for info in self.segments(key)
        )
        if key is None and self._database.folder is not None and self._is_there():
            rehearse(self._database.folder)
        return num_blocks

    def num_bytes(self) -> int:
        self._check_open()
        self._check_acknowledged()
        rows = self._catalogue(columns=["block", "write", "num_bytes"])
        # rows of one block count once, and so does a payload that forks share
        each = rows.group_by("block").aggregate([("write", "min"), ("num_bytes", "max")])
        once = each.group_by("write_min").aggregate([("num_bytes_max", "max")])
        return int(pc.sum(once["num_bytes_max_max"]).as_py() or 0)

    def damaged_blocks(self) -> list[tuple[dict[str, Any], str]]:
        """Return the catalogue rows whose block does not verify, with the reason. Reads the whole store."""
        self._check_open()
        return [(row, reason) for row in self._rows() if (reason := self.damage_of(row))]

    def damage_of(self, row: dict[str, Any]) -> str | None:
        """Return why the block of a catalogue row does not verify, or None if it does."""
        try:
            self._blocks([row], from_disk=True)
        except CorruptionError as error:
            return str(error)
        return None

    def doubled(self, key: DocumentKey | None = None) -> dict[str, list[dict[str, Any]]]:
        """Return the blocks with several catalogue rows: block name → rows in the order of their writes."""
        self._check_open()
        where = None if key is None else at(key)
        counts = self._catalogue(where, ["block"]).group_by("block").aggregate([("block", "count")])
        names = counts.filter(pc.field("block_count") > 1)["block"].to_pylist()
        found: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
        if found:
            for row in self._catalogue(where).to_pylist():
                if row["block"] in found:
                    found[row["block"]].append(row)
        return found

    def _check_acknowledged(self) -> None:
        """Raise CorruptionError if the catalogue lacks acknowledged commits."""
        self._acknowledged.check(lambda: self._database.version(CATALOGUE, CATALOGUE_SCHEMA))

    def _is_there(self) -> bool:
        """Return True if a put was ever made. Opening a store creates nothing; its first put creates the tables."""
        if not self._exists:
            # payload first: another process may create the store meanwhile, and creates payload last
            has_payload = any(map(is_payload, self._database.table_names()))
            self._exists = all(map(self._database.is_created, (CATALOGUE, IDENTITY)))
            if not self._exists and has_payload:
                raise CorruptionError(f"{self._database.uri} holds blocks but no complete catalogue; {REPAIR}")
            if self._exists or self._acknowledged.is_cheap:
                self._acknowledged.check(lambda: self._database.version(CATALOGUE, CATALOGUE_SCHEMA))
                self._acknowledged.check_hint()
        return self._exists

    def _catalogue(self, where: str | None = None, columns: list[str] | None = None) -> pa.Table:
        if not self._is_there():
            return CATALOGUE_SCHEMA.empty_table()
        if self._acknowledged.is_cheap:
            self._check_acknowledged()
        return self._database.select(CATALOGUE, CATALOGUE_SCHEMA, where, columns)

    def _rows(self, where: str | None = None) -> list[dict[str, Any]]:
        """Return complete catalogue rows, one per block, by segment."""
        if not self._is_there():
            # to make an empty table, pyarrow imports pandas where that is installed
            return []
        return once_each(self._catalogue(where).sort_by("segment").to_pylist())

    def _payload_tables(self, where: str | None = None) -> set[str]:
        return set(self._catalogue(where, ["payload"])["payload"].to_pylist())

    def _check_open(self) -> None:
        if self._closed:
            raise StoreError("the store is closed; open it again with MemoryStore.open")


def _named(row: dict[str, Any]) -> str:
    return f"{row['namespace']}/{row['document']} segment {row['segment']}"
