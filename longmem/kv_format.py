"""How keys and values are kept: in a floating-point type, or as int8 with a scale for each token and head.

    int8   │ q₁ … q_d │ scale, 4 bytes of float32 │      x ≈ scale · q       scale = max |x| / 127

A row of int8 carries its scale, so that a block is two arrays of one type whatever the format, and the stores, the
checksums and the wire know nothing of it. Readers get float16: half the bytes are saved on disk and on the way, not in
a reader's window.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from longmem.config import KvDtype
from longmem.dtypes import TORCH_DTYPES, to_array, to_tensor
from longmem.stored_format import SCALE_BYTES
from longmem.types import KVArray

LARGEST = 127


def rounded(numbers: Float[Tensor, "*any head_dim"], kv_dtype: KvDtype) -> Float[Tensor, "*any head_dim"]:
    """What a reader will get of these numbers: int8 as float16, any other format in its own type. What is too large for
    the type becomes infinite."""
    if kv_dtype != "int8":
        return numbers.to(TORCH_DTYPES[kv_dtype])
    quantised, scale = _quantised(numbers)
    return (quantised * scale).half()


def pack(numbers: Float[Tensor, "tokens kv_heads head_dim"], kv_dtype: KvDtype) -> KVArray:
    """As stored; numbers must be finite in the format (`rounded`)."""
    if kv_dtype != "int8":
        return to_array(numbers.to(TORCH_DTYPES[kv_dtype]))
    quantised, scale = _quantised(numbers)
    return to_array(torch.cat([quantised.to(torch.int8), scale.contiguous().view(torch.int8)], dim=-1))


def unpack(
    stored: KVArray, kv_dtype: KvDtype, device: torch.device | str = "cpu"
) -> Float[Tensor, "tokens kv_heads head_dim"]:
    """The very numbers of `rounded`, in memory of their own."""
    tensor: Tensor = to_tensor(stored, device)
    if kv_dtype != "int8":
        return tensor
    quantised, scale = tensor.split([tensor.shape[-1] - SCALE_BYTES, SCALE_BYTES], dim=-1)
    restored: Tensor = quantised.float() * scale.contiguous().view(torch.float32)
    return restored.half()


def _quantised(numbers: Tensor) -> tuple[Tensor, Tensor]:
    """Whole numbers of at most 127, as float32, and their scales."""
    numbers = numbers.float()
    scale = numbers.abs().amax(dim=-1, keepdim=True) / LARGEST
    # a row of zeros is zeros at any scale
    return (numbers / scale.where(scale > 0, 1.0)).round(), scale
