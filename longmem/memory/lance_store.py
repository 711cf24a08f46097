"""The durable store: LanceDB tables on disk (or in a bucket).

    identity    one row: the fingerprint that the first block fixed
    catalogue   one row per block: whose, where, how long, checksums, and the write that holds its payload
    p-…         payload: chunk rows of up to 256 segments of one document

A put appends the payload first and inserts the catalogue row last, as one commit: a block exists from that commit on,
whole. A process that dies in between leaves payload rows that nothing names; they are never read.

**What an acknowledged put promises.** When `put` returned, the block survives the death of any process (`kill -9`)
and is visible to every process that has the store open. LanceDB does not fsync local files, so a power cut or kernel
crash can lose the last seconds; checksums then tell damage from data.

Payload tables are never compacted (Lance would rewrite all of them each time); the catalogue is, now and then.
"""

import json
from collections.abc import Callable
from dataclasses import asdict
from secrets import randbits
from threading import Lock

import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from longmem.errors import ConflictError, CorruptionError, MissingBlockError, StoreError
from longmem.memory.codec import from_rows, payload_schema, to_rows
from longmem.memory.lance_table import LanceDatabase, quoted
from longmem.memory.store import (
    AbstractMemoryStore,
    check_block,
    check_fingerprint,
    check_same_tokens,
    describe_block,
    missing_blocks,
)
from longmem.types import DocumentKey, Fingerprint, KVBlock, PutReceipt, SegmentInfo

IDENTITY = "identity"
IDENTITY_SCHEMA = pa.schema([("name", pa.string()), ("value", pa.string())])

CATALOGUE = "catalogue"
CATALOGUE_SCHEMA = pa.schema(
    [
        ("block", pa.string()),
        ("place", pa.string()),
        ("namespace", pa.string()),
        ("document", pa.string()),
        ("segment", pa.int64()),
        ("start_token", pa.int64()),
        ("num_tokens", pa.int64()),
        ("checksum", pa.string()),
        ("tokens_checksum", pa.string()),
        ("num_bytes", pa.int64()),
        ("payload", pa.string()),
        ("write", pa.int64()),
    ]
)
"""`place` is the hash of (namespace, document), `block` that of the place and the segment: users' texts are never
part of a table name or of a condition."""

PAYLOAD_SEGMENTS = 256
"""Segments of one payload table: reading one of them scans the table's `write` column, 0.1 ms per fragment."""

COMPACT_EVERY = 256
"""Puts between two compactions of the catalogue, each a few milliseconds long."""

STEPS = ("put:begin", "put:payload", "put:catalogue", "compact:end", "delete:catalogue", "delete:end", "fork:end")
"""Points between commits, in the order of their operation: what a crash test dies at."""


class LanceMemoryStore(AbstractMemoryStore):
    """Keeps every promise of AbstractMemoryStore, across processes. One document has one writer at a time; any number
    of processes may read it meanwhile, and other documents may have other writers."""

    def __init__(self, uri: str, on_step: Callable[[str], None] = lambda _step: None) -> None:
        """`on_step` is called with each of STEPS as it is reached."""
        self._database = LanceDatabase(uri)
        self._on_step = on_step
        self._exists = False
        self._closed = False
        self._change = Lock()
        self._puts = 0
        self._known_identity: Fingerprint | None = None
        self.fingerprint()

    def put(self, block: KVBlock) -> PutReceipt:
        self._check_open()
        check_block(block)
        with self._change:
            if self.fingerprint() is None:
                self._database.create_if_absent(CATALOGUE, CATALOGUE_SCHEMA)
                self._database.create_if_absent(IDENTITY, IDENTITY_SCHEMA)
                value = json.dumps(asdict(block.fingerprint))
                rows = pa.table({"name": ["fingerprint"], "value": [value]}, schema=IDENTITY_SCHEMA)
                self._database.insert_missing(IDENTITY, rows, "name")
            check_fingerprint(self.fingerprint(), block.fingerprint)
            info = describe_block(block)
            if (stored := self._stored(block)) is not None:
                return _replayed(stored, block)
            payload, write = _payload_table(block), randbits(62)
            self._on_step("put:begin")
            self._on_step("put:begin")
            self._database.create_if_absent(payload, payload_schema(block.fingerprint))
            self._database.append(payload, to_rows(block, write))
            self._on_step("put:payload")
            row = {**vars(info), **_names(block.key, block.segment), "payload": payload, "write": write}
            rows = pa.table({name: [row[name]] for name in CATALOGUE_SCHEMA.names}, schema=CATALOGUE_SCHEMA)
            if not self._database.insert_missing(CATALOGUE, rows, "block"):
                # another process was faster: its block stays, our payload rows are never named
                stored = self._stored(block)
                assert stored is not None, f"{block.key} segment {block.segment}: neither inserted nor there"
                return _replayed(stored, block)
            self._on_step("put:catalogue")
            self._on_step("put:catalogue")
            self._puts += 1
            if self._puts % COMPACT_EVERY == 0:
                self._database.compact(CATALOGUE, CATALOGUE_SCHEMA)
                self._on_step("compact:end")
                self._on_step("compact:end")
        return PutReceipt(block.key, block.segment, info.num_bytes, duplicate=False)

    def read(self, key: DocumentKey, first_segment: int, last_segment: int) -> list[KVBlock]:
        self._check_open()
        wanted = range(first_segment, last_segment)
        if not wanted:
            return []
        condition = f"{_at(key)} AND segment >= {int(first_segment)} AND segment < {int(last_segment)}"
        rows = self._catalogue(condition).sort_by("segment")
        if rows.column("segment").to_pylist() != list(wanted):
            raise missing_blocks(key, wanted, rows.column("segment").to_pylist())
        identity = self.fingerprint()
        if identity is None:
            raise CorruptionError(f"{self._database.uri} has blocks but no fingerprint; restore it from a copy")
        entries = rows.to_pylist()
        blocks: list[KVBlock] = []
        for payload in dict.fromkeys(entry["payload"] for entry in entries):
            infos = [(_info(key, entry), int(entry["write"])) for entry in entries if entry["payload"] == payload]
            writes = ", ".join(str(write) for _, write in infos)
            found = self._database.select(payload, payload_schema(identity), f"write IN ({writes})")
            for (info, _), block in zip(infos, from_rows(found, key, infos, identity), strict=True):
                if block is None or block.checksum() != info.checksum:
                    raise CorruptionError(
                        f"{key} segment {info.segment}: stored bytes in table {payload} of {self._database.uri} do not "
                        "match the checksum of their write; delete the document and write it again"
                    )
                blocks.append(block)
        return blocks

    def segments(self, key: DocumentKey) -> list[SegmentInfo]:
        self._check_open()
        rows = self._catalogue(_at(key)).sort_by("segment")
        return [_info(key, entry) for entry in rows.to_pylist()]

    def documents(self, namespace: str | None = None) -> list[DocumentKey]:
        self._check_open()
        rows = self._catalogue(columns=["namespace", "document"])
        keys = {DocumentKey(entry["namespace"], entry["document"]) for entry in rows.to_pylist()}
        return sorted(key for key in keys if namespace in (None, key.namespace))

    def fork(self, source: DocumentKey, target: DocumentKey) -> int:
        self._check_open()
        with self._change:
            rows = self._catalogue(_at(source))
            if not rows.num_rows:
                raise MissingBlockError(f"cannot fork {source}: the store holds no such document")
            if self._catalogue(_at(target), ["segment"]).num_rows:
                raise ConflictError(f"cannot fork to {target}: the document exists; delete it or use another name")
            copies = [{**entry, **_names(target, entry["segment"])} for entry in rows.to_pylist()]
            rows = pa.Table.from_pylist(copies, schema=CATALOGUE_SCHEMA)
            inserted = self._database.insert_missing(CATALOGUE, rows, "block")
            self._on_step("fork:end")
        return inserted

    def delete(self, key: DocumentKey) -> int:
        self._check_open()
        with self._change:
            held = self._payload_tables(_at(key))
            if not self._is_there():
                return 0
            removed = self._database.delete(CATALOGUE, CATALOGUE_SCHEMA, _at(key))
            self._on_step("delete:catalogue")
            self._on_step("delete:catalogue")
            # its own tables, also one that only a killed put has written to, and those it got by a fork
            own = {name for name in self._database.table_names() if name.startswith(f"p-{_place(key)}-")}
            for name in sorted((own | held) - self._payload_tables()):
                self._database.drop(name)
            self._on_step("delete:end")
        return removed

    def fingerprint(self) -> Fingerprint | None:
        self._check_open()
        if self._known_identity is None:
            rows = self._database.select(IDENTITY, IDENTITY_SCHEMA).to_pylist() if self._is_there() else []
            if rows:
                self._known_identity = Fingerprint(**json.loads(rows[0]["value"]))
        return self._known_identity

    def verify(self, key: DocumentKey | None = None) -> int:
        keys = self.documents() if key is None else [key]
        return sum(len(self.read(key, info.segment, info.segment + 1)) for key in keys for info in self.segments(key))

    def num_bytes(self) -> int:
        self._check_open()
        rows = self._catalogue(columns=["write", "num_bytes"])
        once = rows.group_by("write").aggregate([("num_bytes", "max")])
        return int(pc.sum(once["num_bytes_max"]).as_py() or 0)

    def close(self) -> None:
        with self._change:
            self._closed = True
            self._database.close()

    def _is_there(self) -> bool:
        """Whether anything was ever stored. Opening a store creates nothing; its first put does."""
        if not self._exists:
            names = self._database.table_names()
            self._exists = CATALOGUE in names and IDENTITY in names
            if not self._exists and any(name.startswith("p-") for name in names):
                raise CorruptionError(
                    f"{self._database.uri} holds blocks but no complete catalogue; "
                    "restore it from a copy, or write the store again elsewhere"
                )
        return self._exists

    def _catalogue(self, where: str | None = None, columns: list[str] | None = None) -> pa.Table:
        if not self._is_there():
            return CATALOGUE_SCHEMA.empty_table()
        return self._database.select(CATALOGUE, CATALOGUE_SCHEMA, where, columns)

    def _payload_tables(self, where: str | None = None) -> set[str]:
        return set(self._catalogue(where, ["payload"])["payload"].to_pylist())

    def _stored(self, block: KVBlock) -> SegmentInfo | None:
        name = _names(block.key, block.segment)["block"]
        rows = self._catalogue(f"block = {quoted(str(name))}").to_pylist()
        return _info(block.key, rows[0]) if rows else None

    def _check_open(self) -> None:
        if self._closed:
            raise StoreError("the store is closed; open it again with MemoryStore.open")


def _replayed(stored: SegmentInfo, block: KVBlock) -> PutReceipt:
    check_same_tokens(stored, block)
    return PutReceipt(block.key, block.segment, stored.num_bytes, duplicate=True)


def _names(key: DocumentKey, segment: int) -> dict[str, str | int]:
    """Columns that say whose block it is."""
    place = _place(key)
    block = f"{place}-{segment}"
    return {"block": block, "place": place, "namespace": key.namespace, "document": key.document, "segment": segment}


def _place(key: DocumentKey) -> str:
    # the length in front keeps ("a", "b/c") and ("a/b", "c") apart
    name = f"{len(key.namespace)}:{key.namespace}{key.document}"
    return xxhash.xxh3_128_hexdigest(name.encode("utf-8", "surrogatepass"))


def _at(key: DocumentKey) -> str:
    return f"place = {quoted(_place(key))}"


def _payload_table(block: KVBlock) -> str:
    return f"p-{_place(block.key)}-{block.segment // PAYLOAD_SEGMENTS}"


def _info(key: DocumentKey, entry: dict[str, object]) -> SegmentInfo:
    columns = ("segment", "start_token", "num_tokens", "checksum", "tokens_checksum", "num_bytes")
    return SegmentInfo(key, *(entry[name] for name in columns))  # type: ignore[arg-type]
