"""What goes back to the system: large arrays that live long, in mappings of their own, and what the heap has freed.

The C library's heap holds tensors that live for one operation. An array that stays there longer takes the front of a
hole that a larger tensor has left, so the next such tensor finds no hole, and the heap grows by it: by some 90 MiB in
two seconds, on a bad day. A mapping costs a page fault for each 4 KiB written: 0.1 ms for a segment's keys and values.
"""

import ctypes
import math
from collections.abc import Sequence
from mmap import MAP_ANONYMOUS, MAP_PRIVATE, mmap

import numpy as np
import torch
from jaxtyping import Shaped
from torch import Tensor


def zeros_in_pages(size: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Zeros, on the CPU. Pages that nobody writes cost nothing."""
    num_bytes = math.prod(size) * dtype.itemsize
    if num_bytes == 0:
        return torch.zeros(tuple(size), dtype=dtype)
    return torch.frombuffer(_mapping(num_bytes), dtype=dtype).view(tuple(size))


def in_pages(array: Shaped[np.ndarray, "*any"]) -> Shaped[np.ndarray, "*any"]:
    """A read-only copy."""
    if array.nbytes == 0:
        return array
    copy: np.ndarray = np.frombuffer(_mapping(array.nbytes), dtype=array.dtype).reshape(array.shape)
    copy[...] = array
    copy.flags.writeable = False
    return copy


def _mapping(num_bytes: int) -> mmap:
    return mmap(-1, num_bytes, flags=MAP_PRIVATE | MAP_ANONYMOUS)


def trim_heap() -> None:
    """Give free pages of the C library's heap back, wherever in it they lie. Does nothing where it is not glibc."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
