# SPDX-License-Identifier: Apache-2.0
"""float32 linear layers by oneDNN, on processors where torch's own product reaches half of the speed.

Torch multiplies float32 matrices with MKL, which uses AVX-512 only on Intel processors. oneDNN,
which ships with torch and computes its bfloat16 products, does. It sums in another order, so numbers differ in the last
bits, as they do between processors. They do not depend on the number of threads or rows.
"""

from functools import cache

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from longmem.system.processor import CPU_INFO

MIN_ROWS = 4
"""Minimum number of rows; fewer gain nothing."""


@cache
def is_worthwhile() -> bool:
    """Return True if MKL is slow on this processor.

    Decided by the processor's name and not by a measurement, so that all processes on a machine compute equal numbers.
    """
    return (
        torch.backends.cpu.get_cpu_capability() == "AVX512"
        and torch.backends.mkl.is_available()
        and torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
        and CPU_INFO.is_file()
        and "AuthenticAMD" in CPU_INFO.read_text(encoding="utf-8", errors="replace")
    )


def use_fast_linear(model: nn.Module) -> None:
    """Replace the linear layers of `model` in place, if `is_worthwhile`. Parameters and their names stay.

    With gradients, on a GPU, and in types other than float32, a layer computes as before.
    """
    if not is_worthwhile():
        return
    for module in model.modules():
        for plain, fast in FAST.items():
            # exact type: derived classes compute something else
            if type(module) is plain:
                module.__class__ = fast


class FastLinear(nn.Linear):
    """`torch.nn.Linear` with a oneDNN product for inference."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - name in the base class
        if not _suits(input, self.weight):
            return super().forward(input)
        return _product(input, self.weight, self.bias)


class FastConv1D(Conv1D):  # type: ignore[misc]
    """GPT-2's linear layer in transformers, whose weight is transposed, with a oneDNN product for inference."""

    def forward(self, x: Tensor) -> Tensor:
        if not _suits(x, self.weight):
            plain: Tensor = super().forward(x)
            return plain
        return _product(x, self.weight.t(), self.bias)


FAST: dict[type[nn.Module], type[nn.Module]] = {nn.Linear: FastLinear, Conv1D: FastConv1D}


def _suits(rows: Tensor, weight: Tensor) -> bool:
    return (
        not (torch.is_grad_enabled() and (rows.requires_grad or weight.requires_grad))
        and rows.dtype == weight.dtype == torch.float32
        and rows.device.type == weight.device.type == "cpu"
        and rows.numel() >= MIN_ROWS * rows.shape[-1]
    )


def _product(rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    # an operator of torch's compiler, which has no public name
    made: Tensor = torch.ops.mkldnn._linear_pointwise(rows, weight, bias, "none", [], "")
    return made
