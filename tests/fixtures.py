# SPDX-License-Identifier: Apache-2.0
"""Fixtures of all tests, loaded by tests/conftest.py: small real backbones, real books, and a naive memory."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jaxtyping
import numpy as np
import pytest
import torch
from torch import Tensor

import longmem.model.longmem
from longmem.kv_format import unpack
from longmem.memory.key_transform import KeySpace
from longmem.memory.view import MemoryView
from longmem.memory.window import RAW_KEYS
from longmem.model.longmem import LongMem
from longmem.testing import save_small_backbone, small_longmem
from longmem.types import KVBlock

torch.set_num_threads(1)
# a byte tokenizer and segments of 32 tokens need hundreds of forwards for a text that suffices for real models
longmem.model.longmem.CALIBRATION_CHARACTERS = 250


@pytest.fixture(scope="session")
def data_folder(request: pytest.FixtureRequest) -> Path:
    """Return the folder of real books for tests marked `data`; skip where they are absent."""
    folder: Path = request.config.getoption("--data")
    if not (folder / "books_test").is_dir():
        pytest.skip(f"no books in {folder}; name their folder with --data")
    return folder


@pytest.fixture(scope="session")
def backbones_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of this session's small backbones, in the layout that `small_longmem` expects."""
    return tmp_path_factory.mktemp("backbones")


@pytest.fixture(scope="session")
def small_backbone(backbones_folder: Path) -> Callable[[str], Path]:
    """Return the folder of the small backbone of a family, saved on first use. Copy it before damaging it."""

    def folder(family: str) -> Path:
        path = backbones_folder / f"{family}-0"
        if not path.exists():
            save_small_backbone(path, family)
        return path

    return folder


@pytest.fixture(scope="session")
def small_model(backbones_folder: Path, small_backbone: Callable[[str], Path]) -> Callable[..., LongMem]:
    """Return a factory of fresh LongMems on small backbones: `small_model(family, unsettled=..., **settings)`."""

    def model(family: str = "llama", **settings: Any) -> LongMem:
        small_backbone(family)
        return small_longmem(backbones_folder, family, **settings)

    return model


@pytest.fixture
def as_users_run() -> Iterator[None]:
    """Disable the run-time type checks of the tests, which would hide the product's own error messages."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(scope="session")
def naive_view() -> Callable[..., MemoryView | None]:
    """Return the memory view by definition: every chunk of the blocks that lies wholly in [start, end), built from
    scratch.

    Call as `naive_view(blocks, start, end, key_space)`; without a key space, keys are in their stored form.
    """
    return _naive_view


@pytest.fixture(scope="session")
def random_view() -> Callable[..., MemoryView]:
    """Return a factory of random views: `random_view(kv_heads, head_dim, chunks=…, chunk=…, dtype=…, seed=…)`.

    One chunk in the middle and the last one are partial, as where blocks ended inside a chunk. Alternatively pass the
    `lengths` of all chunks, and the `key_space` of a reader.
    """
    return _random_view


def _naive_view(blocks: Sequence[KVBlock], start: int, end: int, key_space: KeySpace = RAW_KEYS) -> MemoryView | None:
    chunks: list[tuple[int, Tensor, Tensor, Tensor]] = []
    for block in blocks:
        size = block.fingerprint.chunk_tokens
        for first in range(0, block.num_tokens, size):
            last = min(first + size, block.num_tokens)
            if start <= block.start_token + first and block.start_token + last <= end:
                stored = (array[first:last] for array in (block.keys, block.values))
                numbers = (unpack(array, block.fingerprint.kv_dtype) for array in stored)
                chunks.append((block.start_token + first, _tensor(block.tokens[first:last]), *numbers))
    if not chunks:
        return None
    return _view_of(chunks, blocks[0].fingerprint.chunk_tokens, end, key_space)


def _random_view(
    kv_heads: int,
    head_dim: int,
    *,
    chunks: int = 12,
    chunk: int = 4,
    lengths: Sequence[int] | None = None,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    key_space: KeySpace = RAW_KEYS,
) -> MemoryView:
    if lengths is None:
        lengths = [
            max(1, chunk - 1) if index == chunks // 2 else 1 if index == chunks - 1 else chunk
            for index in range(chunks)
        ]
    random = torch.Generator().manual_seed(seed)
    parts = []
    position = 0
    for length in lengths:
        tokens = torch.randint(256, (length,), generator=random).int()
        keys, values = (torch.randn((length, kv_heads, head_dim), generator=random).to(dtype) for _ in range(2))
        parts.append((position, tokens, keys, values))
        position += length
    return _view_of(parts, chunk, position, key_space)


def _view_of(chunks: list[tuple[int, Tensor, Tensor, Tensor]], size: int, end: int, key_space: KeySpace) -> MemoryView:
    _, kv_heads, head_dim = chunks[0][2].shape
    # indexed by head first, laid out by token, like real views
    keys, values = (
        torch.zeros((len(chunks), size, kv_heads, head_dim), dtype=chunks[0][2].dtype).permute(2, 0, 1, 3)
        for _ in range(2)
    )
    tokens = torch.zeros((len(chunks), size), dtype=torch.int32)
    chunk_keys = torch.empty((kv_heads, len(chunks), head_dim))
    for index, (_, chunk_tokens, stored_keys, chunk_of_values) in enumerate(chunks):
        chunk_of_keys = key_space.transform(stored_keys)
        length = len(chunk_tokens)
        tokens[index, :length] = chunk_tokens
        keys[:, index, :length] = chunk_of_keys.transpose(0, 1)
        values[:, index, :length] = chunk_of_values.transpose(0, 1)
        chunk_keys[:, index] = chunk_of_keys.double().mean(dim=0).float()
    return MemoryView(
        chunk_keys=key_space.searched(chunk_keys if size > 1 else chunk_keys.to(keys.dtype)),
        keys=keys,
        values=values,
        tokens=tokens,
        starts=torch.tensor([chunk[0] for chunk in chunks]),
        lengths=torch.tensor([len(chunk[1]) for chunk in chunks]),
        sketch=None,
        cells=None,
        end_token=end,
    )


def _tensor(array: np.ndarray) -> Tensor:
    tensor = torch.from_numpy(np.array(array))
    return tensor.view(torch.bfloat16) if tensor.dtype == torch.uint16 else tensor
