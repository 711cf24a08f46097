# SPDX-License-Identifier: Apache-2.0
"""Small blocks for store tests, different for every seed and segment."""

import numpy as np
import torch

from longmem.kv_format import pack
from longmem.types import DocumentKey, Fingerprint, KVBlock

SEGMENT_TOKENS = 16
IDENTITY = Fingerprint(
    backbone="b",
    tokenizer="t",
    memory_layer=1,
    kv_heads=2,
    head_dim=4,
    chunk_tokens=4,
    segment_tokens=SEGMENT_TOKENS,
    compute_dtype="float32",
    kv_dtype="float16",
)
KEY = DocumentKey("default", "moby-dick")


def make_block(
    key: DocumentKey = KEY,
    segment: int = 0,
    num_tokens: int = SEGMENT_TOKENS,
    seed: int = 0,
    identity: Fingerprint = IDENTITY,
) -> KVBlock:
    random = np.random.default_rng([seed, segment, num_tokens])
    shape = (num_tokens, identity.kv_heads, identity.head_dim)
    keys, values = (random.standard_normal(shape).astype(np.float32) for _ in range(2))
    keys, values = (pack(torch.from_numpy(each), identity.kv_dtype).copy() for each in (keys, values))
    tokens = random.integers(0, 1000, num_tokens).astype(np.int32)
    return KVBlock(key, segment, segment * identity.segment_tokens, tokens, keys, values, identity)


def assert_same(found: KVBlock, expected: KVBlock) -> None:
    assert (found.key, found.segment, found.start_token) == (expected.key, expected.segment, expected.start_token)
    assert found.fingerprint == expected.fingerprint
    for name in ("tokens", "keys", "values"):
        ours, theirs = getattr(found, name), getattr(expected, name)
        assert ours.dtype == theirs.dtype
        np.testing.assert_array_equal(ours, theirs)
