# SPDX-License-Identifier: Apache-2.0
"""Format of stored keys and values without torch: element type, width, bytes and validity.

`longmem.kv_format` converts tensors to and from this format. The module is separate because the import of torch
takes a second, and a store, such as that of `longmem memory ls`, needs no tensor.
"""

import numpy as np
from jaxtyping import Shaped

from longmem.config import KvDtype

STORED_TYPES: dict[KvDtype, type[np.generic]] = {
    "float16": np.float16,
    "float32": np.float32,
    "bfloat16": np.uint16,
    "int8": np.int8,
}
"""NumPy types of stored keys and values; bfloat16 is stored as its bits."""
SCALE_BYTES = 4
BATCH_BYTES = 2**26
"""Bytes of blocks that are read or written together. Larger blocks cost more than their commit or query does."""
RECENT_BYTES = 2**25
"""Bytes of its newest blocks that a store on disk keeps in memory: 64 segments of 512 tokens with 4 heads of 64 in
float16."""


def stored_width(head_dim: int, kv_dtype: KvDtype) -> int:
    """Return the count of numbers that one token and head take as stored."""
    return head_dim + SCALE_BYTES if kv_dtype == "int8" else head_dim


def token_bytes(kv_heads: int, head_dim: int, kv_dtype: KvDtype) -> int:
    """Return the bytes of the keys and values of one token as stored."""
    return 2 * kv_heads * stored_width(head_dim, kv_dtype) * np.dtype(STORED_TYPES[kv_dtype]).itemsize


def blocks_at_once(block_bytes: int, most: int) -> int:
    """Return how many blocks are read or written together: at most `most`, and `BATCH_BYTES` unless one has more."""
    return max(1, min(most, BATCH_BYTES // max(block_bytes, 1)))


def num_not_finite(stored: Shaped[np.ndarray, "*any width"], kv_dtype: KvDtype) -> int:
    """Count stored numbers that are NaN or infinite; for int8, those whose scale makes them so in float16."""
    if kv_dtype == "bfloat16":
        # an exponent of all ones is infinity or NaN
        return int(np.count_nonzero((stored & 0x7F80) == 0x7F80))
    if kv_dtype == "int8":
        scale = np.ascontiguousarray(stored[..., -SCALE_BYTES:]).view(np.float32)
        largest = np.abs(stored[..., :-SCALE_BYTES].astype(np.float32)).max(axis=-1, keepdims=True) * scale
        return int(np.count_nonzero(~(np.abs(largest) <= np.finfo(np.float16).max)))
    return stored.size - int(np.count_nonzero(np.isfinite(stored)))
