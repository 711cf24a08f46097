# SPDX-License-Identifier: Apache-2.0
"""Check for finite numbers: a sum decides quickly, and single numbers where the sum is not finite."""

import math

import pytest
import torch

from longmem.errors import NumericError
from longmem.model.forward import require_finite


@pytest.mark.parametrize(
    "finite",
    [
        torch.full((3,), 60_000.0, dtype=torch.float16),
        torch.full((3,), 3e38),
        torch.tensor([3e38, 3e38, -3e38, -3e38]),
        torch.full((3,), 3e38, dtype=torch.bfloat16),
        torch.zeros(0),
    ],
)
def test_finite_numbers_whose_sum_is_too_large_pass(finite: torch.Tensor) -> None:
    require_finite(finite, "numbers", "none")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("wrong", [[math.nan], [math.inf], [-math.inf], [math.inf, -math.inf]])
def test_other_numbers_are_counted_and_told(wrong: list[float], dtype: torch.dtype) -> None:
    numbers = torch.tensor([1.0, 2.0, *wrong], dtype=dtype)
    with pytest.raises(NumericError, match=rf"keys: expected finite numbers, {len(wrong)} of {len(numbers)} .*; retry"):
        require_finite(numbers, "keys", "retry")
