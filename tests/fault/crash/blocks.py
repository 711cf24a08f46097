# SPDX-License-Identifier: Apache-2.0
"""Synthetic blocks that carry their origin in every row, so that foreign or torn bytes are detected."""

from dataclasses import dataclass

import numpy as np
import xxhash

from longmem.types import DocumentKey, Fingerprint, KVBlock

NAMESPACE = "crash"
IDENTITY = Fingerprint(
    backbone="b",
    tokenizer="t",
    memory_layer=1,
    kv_heads=4,
    head_dim=32,
    chunk_tokens=4,
    segment_tokens=64,
    compute_dtype="float32",
    kv_dtype="float16",
)
PARTIAL = 7
"""Period of partial blocks among the versions, like the last block of a document."""

_STAMP = 8
"""Leading numbers of each row of keys and of values that carry the stamp."""
_FINITE = 0x3BFF
"""Mask of float16 bits that may take any value without making the number infinite or NaN."""


@dataclass(frozen=True, order=True)
class Content:
    """Origin that determines every byte of a block: first document, segment, and version."""

    segment: int
    origin: str
    version: int


def key_of(document: str) -> DocumentKey:
    return DocumentKey(NAMESPACE, document)


def make_block(content: Content, document: str | None = None) -> KVBlock:
    """Return the block with that content, under `document` (its origin unless it was forked)."""
    seed = xxhash.xxh3_64_intdigest(f"{content.origin}/{content.segment}/{content.version}".encode())
    random = np.random.default_rng(seed)
    size = IDENTITY.segment_tokens
    num_tokens = size if content.version % PARTIAL else 1 + content.version % size
    width = IDENTITY.kv_heads * IDENTITY.head_dim
    tokens = random.integers(0, 50_000, num_tokens).astype(np.int32)
    arrays = []
    for name in ("keys", "values"):
        array = random.integers(0, 2**16, (num_tokens, width), dtype=np.uint16) & np.uint16(_FINITE)
        array[:, :_STAMP] = _stamp(content, name)
        arrays.append(array.view(np.float16).reshape(num_tokens, IDENTITY.kv_heads, IDENTITY.head_dim))
    key = key_of(content.origin if document is None else document)
    return KVBlock(key, content.segment, content.segment * size, tokens, *arrays, IDENTITY)


def foreign_rows(block: KVBlock, content: Content) -> int:
    """Return the number of rows of keys and values without the stamp of `content`."""
    count = 0
    for name in ("keys", "values"):
        rows = getattr(block, name).reshape(block.num_tokens, -1)[:, :_STAMP].view(np.uint16)
        count += int((rows != _stamp(content, name)).any(axis=1).sum())
    return count


def _stamp(content: Content, name: str) -> np.ndarray:
    digest = xxhash.xxh3_128_digest(f"{name}/{content.origin}/{content.segment}/{content.version}".encode())
    return np.frombuffer(digest, dtype=np.uint16)[:_STAMP] & np.uint16(_FINITE)
