# SPDX-License-Identifier: Apache-2.0
"""Key forms against NumPy in float64, and the layouts that are searched."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from longmem.memory.key_transform import KeySpace

KV_HEADS, HEAD_DIM = 2, 8
MEAN = 3 * torch.randn((KV_HEADS, HEAD_DIM), generator=torch.Generator().manual_seed(5))
DTYPES = [torch.float32, torch.float16, torch.bfloat16]

every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def random_keys(dtype: torch.dtype, *shape: int) -> Tensor:
    """Return keys with a large common direction, like the keys of a layer."""
    random = torch.Generator().manual_seed(1)
    return (torch.randn((*shape, KV_HEADS, HEAD_DIM), generator=random) + MEAN).to(dtype)


def naive_place(keys: Tensor, form: str) -> np.ndarray:
    """Transform one key at a time, in float64."""
    placed = keys.double().numpy().reshape(-1, KV_HEADS, HEAD_DIM)
    for key in placed:
        for head in range(KV_HEADS):
            moved = key[head] - MEAN[head].double().numpy()
            key[head] = moved / np.sqrt((moved**2).sum()) if form == "unit" else moved
    return placed.reshape(keys.shape)


@every_dtype
def test_raw_keys_are_the_very_tensor(dtype: torch.dtype) -> None:
    keys = random_keys(dtype, 5)
    assert KeySpace().transform(keys) is keys
    assert KeySpace("raw", "joint", MEAN).transform(keys) is keys


@every_dtype
@pytest.mark.parametrize("form", ["centred", "unit"])
@pytest.mark.parametrize("shape", [(), (7,), (2, 3)], ids=str)
def test_keys_of_a_form_are_those_of_numpy(shape: tuple[int, ...], form: Any, dtype: torch.dtype) -> None:
    keys = random_keys(dtype, *shape)
    before = keys.clone()
    placed = KeySpace(form, "per_head", MEAN).transform(keys)
    assert placed.dtype == dtype
    assert torch.equal(keys, before), "what is stored never changes"
    expected = naive_place(keys, form)
    # one rounding to the stored dtype, plus float32 errors amplified by the difference of two large numbers
    length = np.linalg.norm(naive_place(keys, "centred"), axis=-1, keepdims=True)
    rounding = 8 * 2.0**-23 * (MEAN.abs().max() + keys.double().abs().max()).item()
    tolerance = torch.finfo(dtype).eps * np.abs(expected) + rounding / (length if form == "unit" else 1.0)
    assert (np.abs(placed.double().numpy() - expected) <= tolerance).all()


def test_unit_keys_have_cosines_for_products() -> None:
    keys = random_keys(torch.float32, 50)
    placed = KeySpace("unit", "per_head", MEAN).transform(keys)
    torch.testing.assert_close(placed.norm(dim=-1), torch.ones(50, KV_HEADS), rtol=0, atol=1e-6)


@every_dtype
def test_a_key_that_is_the_mean_has_no_direction_and_is_not_nan(dtype: torch.dtype) -> None:
    mean = MEAN.bfloat16().float()  # exactly representable in every dtype
    transformed = KeySpace("unit", "per_head", mean).transform(mean.to(dtype))
    assert torch.equal(transformed, torch.zeros_like(mean, dtype=dtype))


def test_one_matrix_for_each_head_or_one_with_all_side_by_side() -> None:
    chunk_keys = torch.randn((KV_HEADS, 5, HEAD_DIM), generator=torch.Generator().manual_seed(2))
    assert KeySpace().searched(chunk_keys) is chunk_keys
    joint = KeySpace("raw", "joint").searched(chunk_keys)
    assert joint.shape == (1, 5, KV_HEADS * HEAD_DIM)
    for chunk in range(5):
        assert joint[0, chunk].tolist() == [number for head in range(KV_HEADS) for number in chunk_keys[head, chunk]]


def test_only_raw_keys_need_no_mean() -> None:
    for form in ("centred", "unit"):
        with pytest.raises(AssertionError, match=f"keys={form} needs the mean key"):
            KeySpace(form)  # type: ignore[arg-type]
