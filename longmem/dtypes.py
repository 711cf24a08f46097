"""Tensors to arrays that cross processes and rest on disk, and back.

NumPy has no bfloat16: its bits travel as uint16.
"""

import numpy as np
import torch
from torch import Tensor

from longmem.config import Dtype

TORCH_DTYPES: dict[Dtype, torch.dtype] = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}


def to_array(tensor: Tensor) -> np.ndarray:
    """A contiguous read-only array of the same bits (bfloat16 becomes uint16)."""
    tensor = tensor.detach().cpu().contiguous()
    array: np.ndarray = (tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor).numpy()
    array.flags.writeable = False
    return array


def to_tensor(array: np.ndarray, device: torch.device | str = "cpu") -> Tensor:
    """A tensor with memory of its own (uint16 becomes bfloat16).

    The copy costs a few milliseconds per 32 MB and is what keeps one reader from changing what another one sees.
    """
    copied = torch.from_numpy(np.array(array))
    return (copied.view(torch.bfloat16) if copied.dtype == torch.uint16 else copied).to(device)
