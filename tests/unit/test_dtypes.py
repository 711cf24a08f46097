# SPDX-License-Identifier: Apache-2.0
"""Conversion to arrays and back keeps every bit, and arrays of readers are immutable."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from longmem.dtypes import TORCH_DTYPES, to_array, to_tensor

FLOATS = {"float32": np.float32, "float16": np.float16, "bfloat16": np.uint16}
INTEGERS = {torch.float32: torch.int32, torch.float16: torch.int16, torch.bfloat16: torch.int16}

every_dtype = pytest.mark.parametrize("name", sorted(FLOATS))


@every_dtype
@given(bits=st.lists(st.integers(-(2**31), 2**31 - 1), min_size=1, max_size=20))
def test_every_bit_pattern_survives(name: str, bits: list[int]) -> None:
    dtype = TORCH_DTYPES[name]
    tensor = torch.tensor(bits, dtype=torch.int32).to(INTEGERS[dtype]).view(dtype)  # NaNs and infinities among them
    array = to_array(tensor)
    assert array.dtype == FLOATS[name]
    back = to_tensor(array)
    assert back.dtype == dtype
    assert torch.equal(back.view(INTEGERS[dtype]), tensor.view(INTEGERS[dtype]))


def test_names_are_the_types() -> None:
    assert all(str(dtype) == f"torch.{name}" for name, dtype in TORCH_DTYPES.items())
    assert set(TORCH_DTYPES) == set(FLOATS)


@every_dtype
def test_shape_and_order_of_a_view_that_is_not_contiguous(name: str) -> None:
    whole = torch.arange(24.0).reshape(2, 3, 4).to(TORCH_DTYPES[name])
    part = whole.transpose(0, 2)[1:, :, :1]
    array = to_array(part)
    assert array.flags.c_contiguous
    assert torch.equal(to_tensor(array), part)


@every_dtype
def test_arrays_are_read_only(name: str) -> None:
    array = to_array(torch.ones(3, dtype=TORCH_DTYPES[name]))
    with pytest.raises(ValueError, match="read-only"):
        array[0] = 0


@every_dtype
def test_tensors_have_memory_of_their_own(name: str) -> None:
    array = to_array(torch.ones(3, dtype=TORCH_DTYPES[name]))
    one, other = to_tensor(array), to_tensor(array)
    one.zero_()
    assert torch.equal(other, torch.ones(3, dtype=TORCH_DTYPES[name]))
    assert torch.equal(to_tensor(array), other)


def test_gradients_stay_behind() -> None:
    tensor = torch.ones(3, requires_grad=True)
    assert not to_tensor(to_array(tensor)).requires_grad


def test_integers_pass_unchanged() -> None:
    for dtype in (torch.int32, torch.int64):
        tensor = torch.tensor([1, -2, 3], dtype=dtype)
        assert torch.equal(to_tensor(to_array(tensor)), tensor)
