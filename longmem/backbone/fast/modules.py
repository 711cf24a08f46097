# SPDX-License-Identifier: Apache-2.0
"""Classes of modules that take the place of transformers' own, and the rows and inputs that they compute in C."""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from longmem.native.threads import run_threads

THREADED = 2**17
"""Numbers from which threads are used: starting them takes as long as some 50,000 numbers."""


class FastModule(nn.Module):
    """Base of the classes that are put in front of one of transformers."""

    @classmethod
    def attributes(cls, _plain: Any) -> dict[str, Any]:
        """Return attributes of the class that is derived of this one and a class of transformers."""
        return {}

    def __reduce_ex__(self, protocol: Any) -> Any:
        # pickle finds no class that was made here, only what it is made of
        return _new, type(self).__bases__, self.__dict__.copy()


@cache
def derived(fast: Any, plain: Any) -> Any:
    """Return a class of transformers with `fast` in front of it. Its modules keep parameters and their names."""
    return type(f"Fast{plain.__name__}", (fast, plain), fast.attributes(plain))


def _new(fast: Any, plain: Any) -> Any:
    made = derived(fast, plain)
    return made.__new__(made)


def run_rows(work: Callable[[int, int], None], num_rows: int, width: int) -> None:
    """Call `work(first, last)` for ranges that cover all rows of `width` numbers, in threads where they are many."""
    if num_rows * width < THREADED:
        work(0, num_rows)
    else:
        run_threads(work, num_rows)


def suit(*parts: Tensor) -> bool:
    """Return whether tensors are of bfloat16 on the CPU, and need no gradients."""
    return all(part.dtype == torch.bfloat16 and part.device.type == "cpu" for part in parts) and not (
        torch.is_grad_enabled() and any(part.requires_grad for part in parts)
    )
