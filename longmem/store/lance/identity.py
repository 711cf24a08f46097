# SPDX-License-Identifier: Apache-2.0
"""Storage of a store's fingerprint: one row with its JSON, one with the checksum."""

import json
from dataclasses import asdict, fields
from typing import Any

import pyarrow as pa
import xxhash

from longmem.errors import CorruptionError
from longmem.store.lance.table import PRIMARY_KEY
from longmem.types import Fingerprint

IDENTITY = "identity"
IDENTITY_SCHEMA = pa.schema(
    [pa.field("name", pa.string(), nullable=False, metadata=PRIMARY_KEY), pa.field("value", pa.string())]
)

METADATA_KEY = b"longmem.fingerprint"
"""Metadata key of a payload table's copy of the fingerprint, from which a lost identity is restored."""


def identity_rows(fingerprint: Fingerprint) -> pa.Table:
    """Return the rows of the identity table."""
    text = to_text(fingerprint)
    values = [text, xxhash.xxh3_128_hexdigest(text.encode())]
    return pa.table({"name": ["fingerprint", "checksum"], "value": values}, schema=IDENTITY_SCHEMA)


def from_identity_rows(rows: list[dict[str, Any]], uri: str) -> Fingerprint | None:
    """Return the stored fingerprint; None for an empty table. Raises CorruptionError."""
    values = {row["name"]: row["value"] for row in rows}
    if not values:
        return None
    text = values.get("fingerprint")
    # stores of version 0.1 have no checksum
    if not isinstance(text, str) or values.get("checksum", _checksum(text)) != _checksum(text):
        raise CorruptionError(
            f"the fingerprint of {uri} is damaged; run `longmem memory verify --repair`, or restore it from a copy"
        )
    return from_text(text)


def to_text(fingerprint: Fingerprint) -> str:
    """Return the fingerprint as JSON.

    Fields that have a default are newer than the format; a store that does not need them is written as before them.
    """
    values = asdict(fingerprint)
    for field in fields(fingerprint):
        if values[field.name] == field.default:
            del values[field.name]
    return json.dumps(values)


def from_text(text: str) -> Fingerprint:
    """Return the fingerprint of a JSON text. Raises CorruptionError if the text is not one."""
    try:
        return Fingerprint(**json.loads(text))
    except (ValueError, TypeError) as error:
        raise CorruptionError(f"a stored fingerprint cannot be read ({error}); restore it from a copy") from error


def _checksum(text: str) -> str:
    return xxhash.xxh3_128_hexdigest(text.encode())
