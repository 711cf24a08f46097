# SPDX-License-Identifier: Apache-2.0
"""Layers of a window against all rows in one array: views keep what they held, and a long document needs one window."""

import gc
import os
import resource
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from longmem.config import KvDtype
from longmem.errors import StoreError
from longmem.kv_format import pack, unpack
from longmem.memory import stored_rows
from longmem.memory.key_transform import KeySpace
from longmem.memory.layer_states import LayerStates
from longmem.memory.stored_rows import RowFile, TensorRows
from longmem.memory.view import MemoryView
from longmem.memory.window import WindowBuffer
from longmem.stored_format import STORED_TYPES
from longmem.types import DocumentKey, Fingerprint, KVArray, KVBlock

LAYERS, KV_HEADS, HEAD_DIM = 3, 2, 4
SEGMENT_TOKENS = 16
SPACE = KeySpace(layer=1)
FORMATS: list[KvDtype] = list(STORED_TYPES)


def rows_of(length: int, kv_dtype: KvDtype, seed: int = 0) -> KVArray:
    random = np.random.default_rng([length, seed])
    numbers = random.standard_normal((length, LAYERS * KV_HEADS, HEAD_DIM)).astype(np.float32)
    return pack(torch.from_numpy(numbers), kv_dtype)


def states_of(stored: Sequence[KVArray], in_file: bool, kv_dtype: KvDtype) -> LayerStates:
    if in_file:
        file = RowFile()
        return LayerStates([file.add(each) for each in stored])
    parts = [torch.from_numpy(each.copy()) for each in stored]
    return LayerStates([TensorRows(each.view(torch.bfloat16) if kv_dtype == "bfloat16" else each) for each in parts])


@settings(max_examples=60)
@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=6),
    kv_dtype=st.sampled_from(FORMATS),
    in_file=st.booleans(),
    data=st.data(),
)
def test_rows_are_those_of_one_array(lengths: list[int], kv_dtype: KvDtype, in_file: bool, data: st.DataObject) -> None:
    stored = [rows_of(length, kv_dtype, seed) for seed, length in enumerate(lengths)]
    states, every = states_of(stored, in_file, kv_dtype), unpack(np.concatenate(stored), kv_dtype)
    total = sum(lengths)
    assert (len(states), states.stored_heads) == (total, LAYERS * KV_HEADS)
    assert states.num_bytes == sum(each.nbytes for each in stored)

    def check(found: LayerStates, expected: Tensor) -> None:
        index = torch.tensor(data.draw(st.lists(st.integers(0, max(len(expected) - 1, 0)), max_size=12))).long()
        for chosen in (index[: len(index) * bool(len(expected))], torch.arange(len(expected))):
            rows = found.gather(chosen)
            assert rows.dtype == expected.dtype
            assert torch.equal(rows, expected[chosen])
            size = data.draw(st.integers(1, 13))
            pieces = list(found.chosen(chosen).split(size))
            assert [len(each) for each in pieces] == [len(each) for each in chosen.split(size)]
            assert torch.equal(torch.cat(pieces), rows)

    check(states, every)
    first = data.draw(st.integers(0, total))
    last = data.draw(st.integers(first, total))
    part = states.rows(first, last)
    check(part, every[first:last])
    others = rows_of(last - first, kv_dtype, seed=99)
    new = states_of([others], in_file, kv_dtype)
    check(states.replaced(first, new), torch.cat([every[:first], unpack(others, kv_dtype), every[last:]]))
    check(states, every)
    count = data.draw(st.integers(-2, total + 2))
    newest = states.newest(count)
    check(newest, every[total - len(newest) :])
    assert min(max(count, 1), total) <= len(newest)
    assert len(newest) - lengths[-len(newest._blocks)] < max(count, 1), "a block more than needed"


def test_rows_of_a_file_that_is_read_in_small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Linux may read less than was asked for."""
    stored = rows_of(9, "float16")
    states = states_of([stored], in_file=True, kv_dtype="float16")
    whole = os.preadv
    monkeypatch.setattr(os, "preadv", lambda file, places, at: whole(file, [places[0][:7]], at))
    assert torch.equal(states.gather(torch.arange(9)), unpack(stored, "float16"))


# ---- windows of all layers


def block_at(index: int, length: int = SEGMENT_TOKENS, kv_dtype: KvDtype = "float16") -> KVBlock:
    identity = Fingerprint(
        backbone="b",
        tokenizer="t",
        memory_layer=1,
        kv_heads=KV_HEADS,
        head_dim=HEAD_DIM,
        chunk_tokens=1,
        segment_tokens=SEGMENT_TOKENS,
        compute_dtype="float32",
        kv_dtype=kv_dtype,
        num_layers=LAYERS,
    )
    tokens = np.full(length, index, dtype=np.int32)
    keys, values = (rows_of(length, kv_dtype, 2 * index + offset) for offset in range(2))
    return KVBlock(DocumentKey("default", "book"), index, index * SEGMENT_TOKENS, tokens, keys, values, identity)


def layers_of(view: MemoryView) -> tuple[Tensor, Tensor]:
    assert view.layer_keys is not None
    assert view.layer_values is not None
    every = torch.arange(view.num_chunks)
    return view.layer_keys.gather(every), view.layer_values.gather(every)


@settings(max_examples=40)
@given(
    lengths=st.lists(st.integers(1, SEGMENT_TOKENS), min_size=1, max_size=14),
    retain=st.integers(1, 5 * SEGMENT_TOKENS),
    kv_dtype=st.sampled_from(FORMATS),
    keeps=st.integers(1, 4),
)
def test_a_view_has_the_layers_of_its_tokens_and_keeps_them(
    lengths: list[int], retain: int, kv_dtype: KvDtype, keeps: int
) -> None:
    """Check against all blocks in one array; some views are held while the window drops and replaces their blocks."""
    blocks = [block_at(index, length, kv_dtype) for index, length in enumerate(lengths)]
    buffer, held = WindowBuffer(retain, key_space=SPACE), []
    positions = np.concatenate([block.start_token + np.arange(block.num_tokens) for block in blocks])
    whole = [unpack(np.concatenate([getattr(each, name) for each in blocks]), kv_dtype) for name in ("keys", "values")]
    for block in blocks:
        buffer.append(block)
        assert buffer.start_token is not None
        start = max(block.end_token - retain, buffer.start_token)
        assert start == max(block.end_token - retain, 0), "the whole window"
        for first in (start, buffer.start_token):
            view = buffer.view(first, block.end_token)
            seen = torch.from_numpy((first <= positions) & (positions < block.end_token))
            expected = [part[seen] for part in whole]
            for found, part in zip(layers_of(view), expected, strict=True):
                assert torch.equal(found, part)
            own = slice(SPACE.layer * KV_HEADS, (SPACE.layer + 1) * KV_HEADS) if SPACE.layer is not None else slice(0)
            for found, part in zip((view.keys, view.values), expected, strict=True):
                assert torch.equal(found[:, :, 0].transpose(0, 1), part[:, own])
            if block.segment % keeps == 0:
                held.append((view, expected))
    for view, expected in held:
        for found, part in zip(layers_of(view), expected, strict=True):
            assert torch.equal(found, part), "a view that someone holds has changed"


def test_a_long_document_needs_the_space_of_its_window_and_copies_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[int] = []
    write = os.pwrite

    def counted(descriptor: int, content: Any, offset: int) -> int:
        written.append(write(descriptor, content, offset))
        return written[-1]

    monkeypatch.setattr(stored_rows.os, "pwrite", counted)
    window, blocks = 10, 200
    one = block_at(0)
    block_bytes = one.keys.nbytes + one.values.nbytes
    buffer = WindowBuffer(window * SEGMENT_TOKENS, key_space=SPACE)
    in_arrays = 1.5 * (window + 1) * SEGMENT_TOKENS * (2 * KV_HEADS * HEAD_DIM * 2 + 4 + 16) + 100
    view = None
    for index in range(blocks):
        buffer.append(block_at(index))
        assert buffer.num_bytes - buffer._repeats.num_bytes <= window * block_bytes + in_arrays
        # as a job does: the view of the segment before is held while the window goes on
        view = buffer.view(max(0, index + 1 - window) * SEGMENT_TOKENS, (index + 1) * SEGMENT_TOKENS)
    assert buffer._file is not None
    assert sum(written) == blocks * block_bytes, "each block is written once and never moved"
    assert os.fstat(buffer._file.descriptor).st_size <= (window + 1) * block_bytes
    assert view is not None
    assert buffer.file_bytes == window * block_bytes
    assert 0 < buffer.num_bytes - buffer.file_bytes - buffer._repeats.num_bytes <= in_arrays


def test_the_file_of_a_window_closes_with_its_last_view() -> None:
    buffer = WindowBuffer(3 * SEGMENT_TOKENS, key_space=SPACE)
    for index in range(5):
        buffer.append(block_at(index))
    assert buffer._file is not None
    descriptor = buffer._file.descriptor
    view = buffer.view(2 * SEGMENT_TOKENS, 5 * SEGMENT_TOKENS)
    before = layers_of(view)
    del buffer
    gc.collect()
    for found, expected in zip(layers_of(view), before, strict=True):
        assert torch.equal(found, expected)
    del view
    gc.collect()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)


def test_layers_on_another_device_stay_there() -> None:
    buffer = WindowBuffer(64, "meta", SPACE)
    assert isinstance(buffer._rows_of(block_at(0).keys), TensorRows)
    assert buffer._file is None


def test_a_folder_without_room_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    with pytest.raises(StoreError, match=r"missing.*TMPDIR"):
        WindowBuffer(64, key_space=SPACE).append(block_at(0))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    buffer, limits = WindowBuffer(64, key_space=SPACE), resource.getrlimit(resource.RLIMIT_FSIZE)
    buffer.append(block_at(0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (block_at(0).keys.nbytes, limits[1]))
    try:
        with pytest.raises(StoreError, match="File too large"):
            buffer.append(block_at(1))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list(tmp_path.iterdir()), "files have no name"
