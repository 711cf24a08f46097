# SPDX-License-Identifier: Apache-2.0
"""Conversion between tensors and the arrays that are sent between processes and stored on disk.

NumPy has no bfloat16: its bits are stored as uint16.
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
    """Return a contiguous read-only array of the same bits (bfloat16 becomes uint16)."""
    tensor = tensor.detach().cpu().contiguous()
    array: np.ndarray = (tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor).numpy()
    array.flags.writeable = False
    return array


def to_tensor(array: np.ndarray, device: torch.device | str = "cpu") -> Tensor:
    """Return a copy as a tensor (uint16 becomes bfloat16).

    The copy isolates readers from changes by each other. It costs a few milliseconds per 32 MB.
    """
    copied = torch.from_numpy(np.array(array))
    return (copied.view(torch.bfloat16) if copied.dtype == torch.uint16 else copied).to(device)
