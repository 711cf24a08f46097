# SPDX-License-Identifier: Apache-2.0
"""KV blocks as Arrow tables and back: one row per chunk, numbers as bit patterns.

    write | chunk | tokens int32[chunk] | keys uint[chunk · stored_heads · width] | values uint[…]

Lance appends fixed-size lists of unsigned integers fastest, and they hold every number format (a float column would be
treated as vectors and validated). The last chunk of a block is padded with zeros; the catalogue holds the number of
real tokens.
"""

import numpy as np
import pyarrow as pa

from longmem.store.lance.identity import METADATA_KEY, to_text
from longmem.stored_format import STORED_TYPES, stored_width
from longmem.types import DocumentKey, Fingerprint, KVBlock, SegmentInfo

BITS = {1: pa.uint8(), 2: pa.uint16(), 4: pa.uint32()}
"""Arrow type by the bytes of a number."""
PAYLOAD_COLUMNS = ["write", "chunk", "tokens", "keys", "values"]


def payload_schema(identity: Fingerprint) -> pa.Schema:
    """Return the schema of a payload table. `write` is the id of the put that wrote the row."""
    bits = BITS[np.dtype(STORED_TYPES[identity.kv_dtype]).itemsize]
    width = identity.chunk_tokens * identity.stored_heads * stored_width(identity.head_dim, identity.kv_dtype)
    return pa.schema(
        [
            pa.field("write", pa.int64(), nullable=False),
            pa.field("chunk", pa.int32(), nullable=False),
            pa.field("tokens", pa.list_(pa.int32(), identity.chunk_tokens), nullable=False),
            pa.field("keys", pa.list_(bits, width), nullable=False),
            pa.field("values", pa.list_(bits, width), nullable=False),
        ],
        metadata={METADATA_KEY: to_text(identity)},
    )


def to_rows(block: KVBlock, write: int) -> pa.Table:
    """Return the payload rows of one block."""
    schema = payload_schema(block.fingerprint)
    chunk = block.fingerprint.chunk_tokens
    num_chunks = -(-block.num_tokens // chunk)
    columns = {
        "write": pa.array(np.full(num_chunks, write, dtype=np.int64)),
        "chunk": pa.array(np.arange(num_chunks, dtype=np.int32)),
    }
    for name, array in (("tokens", block.tokens), ("keys", block.keys), ("values", block.values)):
        kind = schema.field(name).type
        # a whole block that nothing changes is not copied: one of all layers has 94 MB
        padded = array
        if array.flags.writeable or len(array) < num_chunks * chunk:
            padded = np.zeros((num_chunks * chunk, *array.shape[1:]), dtype=array.dtype)
            padded[: len(array)] = array
        bits = padded.reshape(-1).view(kind.value_type.to_pandas_dtype())
        columns[name] = pa.FixedSizeListArray.from_arrays(pa.array(bits), kind.list_size)
    return pa.table(columns, schema=schema)


def from_rows(
    rows: pa.Table, key: DocumentKey, infos: list[tuple[SegmentInfo, int]], identity: Fingerprint
) -> list[KVBlock | None]:
    """Return the blocks of the (catalogue entry, write) pairs, in order; None unless every row exists exactly once.

    Arrays are read-only and share Arrow's memory if the rows are in order.
    """
    chunk, kv_type = identity.chunk_tokens, STORED_TYPES[identity.kv_dtype]
    row = (chunk, identity.stored_heads, stored_width(identity.head_dim, identity.kv_dtype))
    writes, chunks = (rows.column(name).to_numpy() for name in ("write", "chunk"))
    order = np.lexsort((chunks, writes))
    columns = {
        "tokens": _numbers(rows, "tokens").reshape(-1, chunk),
        "keys": _numbers(rows, "keys").view(kv_type).reshape(-1, *row),
        "values": _numbers(rows, "values").view(kv_type).reshape(-1, *row),
    }
    blocks: list[KVBlock | None] = []
    for info, write in infos:
        first, last = np.searchsorted(writes[order], [write, write + 1])
        indices = order[first:last]
        if not np.array_equal(chunks[indices], np.arange(-(-info.num_tokens // chunk))):
            blocks.append(None)
            continue
        # a slice if rows are in order (always, unless a table was rewritten), else one gather
        taken = (
            slice(indices[0], indices[-1] + 1)
            if np.array_equal(np.diff(indices), np.ones(len(indices) - 1))
            else indices
        )
        parts = {
            name: _read_only(column[taken].reshape(-1, *column.shape[2:])[: info.num_tokens])
            for name, column in columns.items()
        }
        blocks.append(
            KVBlock(key=key, segment=info.segment, start_token=info.start_token, fingerprint=identity, **parts)
        )
    return blocks


def _numbers(rows: pa.Table, name: str) -> np.ndarray:
    column = rows.column(name)
    parts: list[np.ndarray] = [chunk.flatten().to_numpy() for chunk in column.chunks]
    if len(parts) == 1:
        return parts[0]
    # joined by NumPy, which returns large arrays to the system; `combine_chunks` takes them from Arrow's default pool,
    # which keeps them (pyarrow 26, whatever `memory_pool` it is given)
    return np.concatenate([np.empty(0, dtype=column.type.value_type.to_pandas_dtype()), *parts])


def _read_only(array: np.ndarray) -> np.ndarray:
    array.flags.writeable = False
    return array
