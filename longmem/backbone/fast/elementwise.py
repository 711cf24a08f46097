# SPDX-License-Identifier: Apache-2.0
"""Norms and gated activations of bfloat16 models in C (`longmem/native/elementwise.c`), with AVX-512 BF16.

transformers computes a norm in seven operations and a gated activation in two, each of which reads and writes all
numbers. One pass takes a quarter and half of that time. Results are rounded where torch rounds them. They differ in the
last bit where a sum of squares or an exponential lies next to a border of rounding, and denormal results are zero.
"""

import ctypes
from typing import Any

import torch
from jaxtyping import BFloat16
from torch import Tensor, nn
from transformers import PreTrainedModel

from longmem.backbone.fast.attention import is_available
from longmem.backbone.fast.modules import FastModule, derived, run_rows, suit
from longmem.native.build import native_library
from longmem.native.params import RmsNormParams, SiluProductParams

NORMS = frozenset(f"{name}RMSNorm" for name in ("Llama", "Mistral", "Qwen2", "Qwen3", "Phi3", "Granite"))
"""Classes of transformers whose forward is the weight times the rounded norm. Others round later, or add 1."""

GATED = frozenset(f"{name}MLP" for name in ("Llama", "Mistral", "Qwen2", "Qwen3", "Granite", "Olmo2"))
"""Classes whose forward is `down_proj(act_fn(gate_proj(x)) * up_proj(x))`."""

SILU = ("SiLU", "SiLUActivation")
"""Classes of the activation that is computed here."""


def use_fast_elementwise(model: PreTrainedModel) -> None:
    """Replace norms and gated layers of a bfloat16 model on the CPU in place, where AVX-512 BF16 is available.

    Parameters and their names stay. Where gradients are needed, and for inputs of another type, a layer computes as
    before.
    """
    if model.dtype != torch.bfloat16 or model.device.type != "cpu" or not is_available():
        return
    for module in model.modules():
        plain: Any = type(module)
        # exact classes of transformers: derived ones compute something else
        if not plain.__module__.startswith("transformers.models."):
            continue
        if plain.__name__ in NORMS:
            module.__class__ = derived(_FastNorm, plain)
        elif plain.__name__ in GATED and type(module.act_fn).__name__ in SILU:
            module.__class__ = derived(_FastGated, plain)


class _FastNorm(FastModule):
    weight: nn.Parameter
    variance_epsilon: float

    def forward(self, hidden_states: Tensor) -> Tensor:
        if not suit(hidden_states, self.weight) or hidden_states.shape[-1] != len(self.weight):
            plain: Tensor = super().forward(hidden_states)
            return plain
        rows = hidden_states.contiguous()
        output = torch.empty_like(rows)
        params = RmsNormParams(
            rows=rows.data_ptr(),
            weight=self.weight.data_ptr(),
            width=len(self.weight),
            epsilon=self.variance_epsilon,
            output=output.data_ptr(),
        )
        run, address = native_library().longmem_rms_norm, ctypes.byref(params)
        run_rows(lambda first, last: run(address, first, last), rows.numel() // len(self.weight), len(self.weight))
        return output


class _FastGated(FastModule):
    gate_proj: nn.Module
    up_proj: nn.Module
    down_proj: nn.Module
    act_fn: nn.Module

    def forward(self, x: Tensor) -> Tensor:
        gates, factors = self.gate_proj(x), self.up_proj(x)
        product = silu_product(gates, factors) if suit(gates, factors) else self.act_fn(gates) * factors
        gated: Tensor = self.down_proj(product)
        return gated


def silu_product(
    gates: BFloat16[Tensor, "*rows width"], factors: BFloat16[Tensor, "*rows width"]
) -> BFloat16[Tensor, "*rows width"]:
    """Return `silu(gates) * factors`, rounded to bfloat16 after each of the two; without gradients."""
    assert gates.shape == factors.shape, (gates.shape, factors.shape)
    gates, factors = gates.contiguous(), factors.contiguous()
    output = torch.empty_like(gates)
    params = SiluProductParams(gates=gates.data_ptr(), factors=factors.data_ptr(), output=output.data_ptr())
    run, address, width = native_library().longmem_silu_product, ctypes.byref(params), gates.shape[-1]
    run_rows(lambda first, last: run(address, first * width, last * width), gates.numel() // max(width, 1), width)
    return output
