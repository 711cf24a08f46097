# SPDX-License-Identifier: Apache-2.0
"""Low-rank changes of copied layers (LoRA: Hu et al. 2022, arXiv 2106.09685): W + up · down, with the backbone's W.

W is no parameter and not saved, so that a trained SideNet is a few MB instead of half of its backbone. Norms and biases
are trained and saved whole.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils.parametrize import register_parametrization


class LowRank(nn.Module):
    """Parametrisation of a matrix by `up` [rows, rank] and `down` [rank, columns]; it starts with the matrix itself."""

    base: Tensor

    def __init__(self, rank: int) -> None:
        super().__init__()
        self._rank = rank

    def forward(self, up: Float[Tensor, "rows rank"], down: Float[Tensor, "rank columns"]) -> Tensor:
        return self.base + (up @ down).to(self.base.dtype)

    def right_inverse(self, weight: Float[Tensor, "rows columns"]) -> tuple[Tensor, Tensor]:
        """Keep the matrix, and return `up` and `down` of no change."""
        self.register_buffer("base", weight.detach(), persistent=False)
        rows, columns = weight.shape
        # fixed seed: every worker that opens an untrained model gets equal numbers
        random = torch.Generator().manual_seed(0)
        down = torch.randn(self._rank, columns, generator=random) * columns**-0.5
        return weight.new_zeros(rows, self._rank), down.to(weight)


def use_low_rank(layers: nn.ModuleList, rank: int) -> None:
    """Let every matrix of `layers` change by at most this rank."""
    matrices = [module for module in layers.modules() if getattr(module, "weight", None) is not None]
    for module in matrices:
        if isinstance(module.weight, Tensor) and module.weight.ndim == 2:
            register_parametrization(module, "weight", LowRank(rank))
