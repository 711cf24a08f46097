# SPDX-License-Identifier: Apache-2.0
"""Storage formats of keys and values: a floating-point type, or int8 with a scale per token and head.

    int8   │ q₁ … q_d │ scale, 4 bytes of float32 │      x ≈ scale · q       scale = max |x| / 127

A row of int8 includes its scale, so that a block is two arrays of one type in every format. Stores, checksums and
transfers are therefore independent of the format. Readers dequantise to float16: int8 halves the bytes on disk and in
transfers, but not in a reader's window of one layer.
"""

import torch
from jaxtyping import Float, Float16, Int8
from torch import Tensor

from longmem.config import KvDtype
from longmem.dtypes import TORCH_DTYPES, to_array, to_tensor
from longmem.stored_format import SCALE_BYTES
from longmem.types import KVArray

LARGEST = 127
"""Largest magnitude of a quantised value."""


def rounded(numbers: Float[Tensor, "*any head_dim"], kv_dtype: KvDtype) -> Float[Tensor, "*any head_dim"]:
    """Return the numbers as a reader gets them: int8 dequantised to float16, other formats in their own type.

    Numbers that are too large for the type become infinite.
    """
    if kv_dtype != "int8":
        return numbers.to(TORCH_DTYPES[kv_dtype])
    quantised, scale = _quantised(numbers)
    return (quantised * scale).half()


def pack(numbers: Float[Tensor, "tokens kv_heads head_dim"], kv_dtype: KvDtype) -> KVArray:
    """Return the stored form of numbers, which must be finite in the format (`rounded`)."""
    if kv_dtype != "int8":
        return to_array(numbers.to(TORCH_DTYPES[kv_dtype]))
    quantised, scale = _quantised(numbers)
    return to_array(torch.cat([quantised.to(torch.int8), scale.contiguous().view(torch.int8)], dim=-1))


def unpack(
    stored: KVArray, kv_dtype: KvDtype, device: torch.device | str = "cpu"
) -> Float[Tensor, "tokens kv_heads head_dim"]:
    """Return exactly the numbers of `rounded`, as a copy."""
    tensor: Tensor = to_tensor(stored, device)
    return dequantised(tensor) if kv_dtype == "int8" else tensor


def dequantised(stored: Int8[Tensor, "*any width"]) -> Float16[Tensor, "*any head_dim"]:
    """Return the numbers of stored int8 rows."""
    quantised, scale = stored.split([stored.shape[-1] - SCALE_BYTES, SCALE_BYTES], dim=-1)
    # a copy and not `contiguous`, which leaves an empty tensor of NumPy with strides that allow no other type
    scales = scale.clone(memory_format=torch.contiguous_format).view(torch.float32)
    restored: Tensor = quantised.float() * scales
    return restored.half()


def _quantised(numbers: Tensor) -> tuple[Tensor, Tensor]:
    """Return integers of magnitude at most 127, as float32, and their scales."""
    numbers = numbers.float()
    scale = numbers.abs().amax(dim=-1, keepdim=True) / LARGEST
    # a row of zeros has scale 0: divide by 1 instead
    return (numbers / scale.where(scale > 0, 1.0)).round(), scale
