# SPDX-License-Identifier: Apache-2.0
"""Arrays in their own memory mappings: their content, and when the memory returns to the system."""

from collections.abc import Callable

import numpy as np
import psutil
import pytest
import torch
from torch import Tensor

from longmem.system.allocator import in_pages, zeros_in_pages


def ones() -> Tensor:
    return zeros_in_pages([4, 2**23], torch.float32).fill_(1.0)


def copied_ones() -> Tensor:
    return torch.from_numpy(np.array(in_pages(np.ones((4, 2**23), dtype=np.float32)), copy=False))


@pytest.mark.filterwarnings("ignore:The given NumPy array is not writable")
@pytest.mark.parametrize("make", [ones, copied_ones])
def test_what_is_let_go_returns_to_the_system(make: Callable[[], Tensor]) -> None:
    """Check that the memory is released with the last view of it, and not before."""
    process = psutil.Process()
    before = process.memory_info().rss
    array = make()
    view = array[1, 5:9]
    held = process.memory_info().rss - before
    assert held > 0.9 * array.nbytes
    del array
    assert view.tolist() == [1.0] * 4
    assert process.memory_info().rss - before > 0.9 * held
    del view
    assert process.memory_info().rss - before < 0.1 * held


@pytest.mark.parametrize("size", [[3, 5], [7], [2, 0, 4], []])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.int64])
def test_zeros_of_any_shape(size: list[int], dtype: torch.dtype) -> None:
    zeros = zeros_in_pages(size, dtype)
    assert torch.equal(zeros, torch.zeros(size, dtype=dtype))
    assert zeros.dtype == dtype


@pytest.mark.parametrize("shape", [(3, 5), (0, 4), ()])
@pytest.mark.parametrize("dtype", [np.float32, np.uint16, np.int8])
def test_copy_is_equal_and_immutable(shape: tuple[int, ...], dtype: type[np.generic]) -> None:
    array = np.asarray(np.arange(np.prod(shape)).reshape(shape), dtype=dtype)
    copy = in_pages(array)
    assert copy.dtype == dtype
    np.testing.assert_array_equal(copy, array)
    assert copy.size == 0 or not copy.flags.writeable
    assert copy.size == 0 or not np.shares_memory(copy, array)
