# SPDX-License-Identifier: Apache-2.0
"""Catalogue of the durable store: columns, hashes of names, and checks of rows.

Users' texts are never part of a table name or of a condition: column `place` is the hash of (namespace, document), and
`block` is that hash with the segment.
"""

from typing import Any

import pyarrow as pa
import xxhash

from longmem.errors import CorruptionError
from longmem.store.lance.table import PRIMARY_KEY, REPAIR, quoted
from longmem.types import DocumentKey, SegmentInfo

CATALOGUE = "catalogue"
CATALOGUE_SCHEMA = pa.schema(
    [
        pa.field("block", pa.string(), nullable=False, metadata=PRIMARY_KEY),
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

PAYLOAD_PREFIX = "p-"

PAYLOAD_SEGMENTS = 64
"""Segments per payload table: the unit that trimming frees and a read scans (0.1 ms per fragment)."""


def document_hash(key: DocumentKey) -> str:
    """Return the hash that replaces a document's name in table names and conditions."""
    # the length prefix distinguishes ("a", "bc") from ("ab", "c")
    name = f"{len(key.namespace)}:{key.namespace}{key.document}"
    return xxhash.xxh3_128_hexdigest(name.encode("utf-8", "surrogatepass"))


def block_of(key: DocumentKey, segment: int) -> str:
    """Return the name of a block, which is unique in the catalogue."""
    return f"{document_hash(key)}-{segment}"


def at(key: DocumentKey) -> str:
    """Return the condition for the rows of one document."""
    return f"place = {quoted(document_hash(key))}"


def row_of(info: SegmentInfo, payload: str, write: int) -> dict[str, Any]:
    """Return the catalogue row of a block."""
    names = {"place": document_hash(info.key), "namespace": info.key.namespace, "document": info.key.document}
    described = {name: value for name, value in vars(info).items() if name != "key"}
    return {"block": block_of(info.key, info.segment), **names, **described, "payload": payload, "write": write}


def to_table(rows: list[dict[str, Any]]) -> pa.Table:
    """Return rows as an Arrow table of the catalogue's schema."""
    return pa.Table.from_pylist(rows, schema=CATALOGUE_SCHEMA)


def key_of(row: dict[str, Any]) -> DocumentKey:
    """Return the document of a row (columns `place`, `namespace`, `document`).

    Raises CorruptionError if names and hash do not match, which only damage can cause.
    """
    if not isinstance(row["namespace"], str) or not isinstance(row["document"], str):
        raise _damaged(row)
    key = DocumentKey(row["namespace"], row["document"])
    if row["place"] != document_hash(key):
        raise _damaged(row)
    return key


def info_of(row: dict[str, Any]) -> SegmentInfo:
    """Return a complete row as SegmentInfo. Raises CorruptionError if its names and hashes do not match."""
    key = key_of(row)
    if row["block"] != f"{row['place']}-{row['segment']}":
        raise _damaged(row)
    columns = ("segment", "start_token", "num_tokens", "checksum", "tokens_checksum", "num_bytes")
    return SegmentInfo(key, *(row[name] for name in columns))


def once_each(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return complete rows with one per block, in order.

    Concurrent writers of version 0.1 could add several rows of a block; every reader uses that of the smallest `write`.
    Raises CorruptionError if they hold different tokens.
    """
    chosen: dict[str, dict[str, Any]] = {}
    for row in rows:
        other = chosen.setdefault(row["block"], row)
        if other is row:
            continue
        if other["tokens_checksum"] != row["tokens_checksum"]:
            raise CorruptionError(
                f"{row['namespace']}/{row['document']} segment {row['segment']} is in the catalogue twice, with other "
                f"tokens each time: two processes wrote it at the same moment; {REPAIR}"
            )
        if row["write"] < other["write"]:
            chosen[row["block"]] = row
    return list(chosen.values())


def payload_name(key: DocumentKey, segment: int, epoch: str) -> str:
    """Return the payload table of a block.

    `epoch` identifies the writing process, so that no process appends to a table that another one may have left
    half-written or half-removed.
    """
    return f"{PAYLOAD_PREFIX}{document_hash(key)}-{segment // PAYLOAD_SEGMENTS}-{epoch}"


def is_payload(name: str, key: DocumentKey | None = None, below_segment: int | None = None) -> bool:
    """Return True for a payload table: of `key` if given, and only with segments below `below_segment` if given."""
    if key is None:
        return name.startswith(PAYLOAD_PREFIX)
    prefix = f"{PAYLOAD_PREFIX}{document_hash(key)}-"
    if not name.startswith(prefix):
        return False
    generation = int(name[len(prefix) :].split("-")[0])
    return below_segment is None or (generation + 1) * PAYLOAD_SEGMENTS <= below_segment


def _damaged(row: dict[str, Any]) -> CorruptionError:
    return CorruptionError(
        f"the catalogue has a row whose names and hashes do not belong together (place {row['place']!r}): it is "
        "damaged; run `longmem memory verify --repair`, or restore the store from a copy"
    )
