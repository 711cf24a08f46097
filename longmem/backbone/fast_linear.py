"""Linear layers in float32 by oneDNN, on processors where torch's own product leaves half of the speed unused.

Torch multiplies float32 matrices with MKL, which takes no AVX-512 on processors that are not Intel's; oneDNN, which
torch brings too and uses for bfloat16, takes it. Sums are made in another order, so numbers differ in the last bits, as
they do between processors anyway; they do not depend on the number of threads or of rows.
"""

from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

MIN_ROWS = 4
"""Fewer are not worth it."""
CPU_INFO = Path("/proc/cpuinfo")


@cache
def is_worthwhile() -> bool:
    """Whether MKL holds this processor back. Told by its name and not measured, so that all processes on a machine
    make the same numbers."""
    return (
        torch.backends.cpu.get_cpu_capability() == "AVX512"
        and torch.backends.mkl.is_available()
        and torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
        and CPU_INFO.is_file()
        and "AuthenticAMD" in CPU_INFO.read_text(encoding="utf-8", errors="replace")
    )


def use_fast_linear(model: nn.Module) -> None:
    """Change the linear layers of `model`, in place, where that is worthwhile: the same parameters under the same
    names. A layer computes as before where gradients are recorded, elsewhere than on a CPU, and in other types."""
    if not is_worthwhile():
        return
    for module in model.modules():
        for plain, fast in FAST.items():
            # not of classes derived from it, which compute something else
            if type(module) is plain:
                module.__class__ = fast


class FastLinear(nn.Linear):
    """`torch.nn.Linear` for inference."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - the name that torch gives it
        if not _suits(input, self.weight):
            return super().forward(input)
        return _product(input, self.weight, self.bias)


class FastConv1D(Conv1D):  # type: ignore[misc]
    """The linear layer of GPT-2 in transformers, whose weight is the other way round, for inference."""

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
    # an operator that torch's own compiler uses, with no name of its own in the public interface
    made: Tensor = torch.ops.mkldnn._linear_pointwise(rows, weight, bias, "none", [], "")
    return made
