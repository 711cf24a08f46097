# SPDX-License-Identifier: Apache-2.0
"""Formats of stored keys and values: the decoded numbers are within the documented error."""

from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from longmem.config import KvDtype
from longmem.kv_format import LARGEST, pack, rounded, unpack
from longmem.stored_format import SCALE_BYTES, STORED_TYPES, num_not_finite, stored_width, token_bytes

FORMATS: tuple[KvDtype, ...] = get_args(KvDtype)


def numbers(seed: int = 0, tokens: int = 7, heads: int = 2, width: int = 5) -> Tensor:
    """Return rows of very different magnitudes."""
    random = torch.Generator().manual_seed(seed)
    size = torch.logspace(-6, 4, tokens)[:, None, None]
    return size * torch.randn((tokens, heads, width), generator=random)


@pytest.mark.parametrize("kv_dtype", FORMATS)
@pytest.mark.parametrize("given_type", [torch.float32, torch.bfloat16])
def test_unpacking_gives_the_bits_of_rounding(kv_dtype: KvDtype, given_type: torch.dtype) -> None:
    given_numbers = numbers().to(given_type)
    stored = pack(given_numbers, kv_dtype)
    assert stored.dtype == STORED_TYPES[kv_dtype]
    assert stored.shape == (7, 2, stored_width(5, kv_dtype))
    assert stored.nbytes * 2 == 7 * token_bytes(2, 5, kv_dtype)
    assert not stored.flags.writeable
    restored = unpack(stored, kv_dtype)
    assert torch.equal(restored, rounded(given_numbers, kv_dtype))
    # memory of its own
    restored.zero_()
    assert torch.equal(unpack(stored, kv_dtype), rounded(given_numbers, kv_dtype))


@given(seed=st.integers(0, 1000), width=st.integers(1, 70))
def test_int8_is_off_by_half_a_step_at_most(seed: int, width: int) -> None:
    exact = numbers(seed, width=width)
    found = rounded(exact, "int8").double()
    step = exact.double().abs().amax(dim=2, keepdim=True) / LARGEST
    # plus float16's own rounding, 2^-11 of the number or its smallest step
    error = step / 2 + exact.abs() * 2**-11 + 2**-25
    assert ((found - exact).abs() <= error).all()


def test_a_row_of_zeros_stays_one() -> None:
    zeros = torch.zeros((3, 2, 4))
    assert torch.equal(unpack(pack(zeros, "int8"), "int8"), zeros.half())


@pytest.mark.parametrize("kv_dtype", FORMATS)
def test_numbers_that_are_not_finite_are_counted(kv_dtype: KvDtype) -> None:
    stored = pack(numbers(), kv_dtype).copy()
    assert num_not_finite(stored, kv_dtype) == 0
    if kv_dtype == "int8":
        # one row with numbers beyond float16, one with a NaN scale
        stored[0, 0, -SCALE_BYTES:] = np.array([1e5], np.float32).view(np.int8)
        stored[1, 1, -SCALE_BYTES:] = np.array([np.nan], np.float32).view(np.int8)
    else:
        bad = pack(torch.tensor([[[torch.inf, torch.nan]]]), kv_dtype)
        stored[0, 0, 0], stored[1, 1, 1] = bad[0, 0]
    assert num_not_finite(stored, kv_dtype) == 2


def test_what_float16_cannot_hold_is_infinite_before_it_is_stored() -> None:
    assert rounded(torch.full((1, 1, 2), 1e6), "int8").isinf().all()
