# SPDX-License-Identifier: Apache-2.0
"""Norms and gated activations of bfloat16 models in C (`longmem/native/elementwise.c`), with AVX-512 BF16.

transformers computes a norm in seven operations and a gated activation in two, each of which reads and writes all
numbers. One pass takes a quarter and half of that time. Results are rounded where torch rounds them. They differ in the
last bit where a sum of squares or an exponential lies next to a border of rounding, and denormal results are zero.
"""

import ctypes
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from jaxtyping import BFloat16
from torch import Tensor, nn
from transformers import PreTrainedModel

from longmem.backbone.fast.attention import is_available
from longmem.native.build import native_library
from longmem.native.params import RmsNormParams, SiluProductParams
from longmem.native.threads import run_threads

NORMS = frozenset(f"{name}RMSNorm" for name in ("Llama", "Mistral", "Qwen2", "Qwen3", "Phi3", "Granite"))
"""Classes of transformers whose forward is the weight times the rounded norm. Others round later, or add 1."""

GATED = frozenset(f"{name}MLP" for name in ("Llama", "Mistral", "Qwen2", "Qwen3", "Granite", "Olmo2"))
"""Classes whose forward is `down_proj(act_fn(gate_proj(x)) * up_proj(x))`."""

SILU = ("SiLU", "SiLUActivation")
"""Classes of the activation that is computed here."""

THREADED = 2**17
"""Numbers from which threads are used: starting them takes as long as some 50,000 numbers."""


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
            module.__class__ = _derived(_FastNorm, plain)
        elif plain.__name__ in GATED and type(module.act_fn).__name__ in SILU:
            module.__class__ = _derived(_FastGated, plain)


@cache
def _derived(fast: Any, plain: Any) -> Any:
    return type(f"Fast{plain.__name__}", (fast, plain), {})


def _new(fast: Any, plain: Any) -> Any:
    derived = _derived(fast, plain)
    return derived.__new__(derived)


class _Fast(nn.Module):
    def __reduce_ex__(self, protocol: Any) -> Any:
        # pickle finds no class that was made here, only what it is made of
        return _new, type(self).__bases__, self.__dict__.copy()


class _FastNorm(_Fast):
    weight: nn.Parameter
    variance_epsilon: float

    def forward(self, hidden_states: Tensor) -> Tensor:
        if not _suit(hidden_states, self.weight) or hidden_states.shape[-1] != len(self.weight):
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
        _run(lambda first, last: run(address, first, last), rows)
        return output


class _FastGated(_Fast):
    gate_proj: nn.Module
    up_proj: nn.Module
    down_proj: nn.Module
    act_fn: nn.Module

    def forward(self, x: Tensor) -> Tensor:
        gates, factors = self.gate_proj(x), self.up_proj(x)
        product = silu_product(gates, factors) if _suit(gates, factors) else self.act_fn(gates) * factors
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
    _run(lambda first, last: run(address, first * width, last * width), gates)
    return output


def _run(work: Callable[[int, int], None], rows: BFloat16[Tensor, "*rows width"]) -> None:
    """Call `work(first, last)` for ranges that cover all rows, in threads where they are many."""
    num_rows = rows.numel() // max(rows.shape[-1], 1)
    if rows.numel() < THREADED:
        work(0, num_rows)
    else:
        run_threads(work, num_rows)


def _suit(*parts: Tensor) -> bool:
    return all(part.dtype == torch.bfloat16 and part.device.type == "cpu" for part in parts) and not (
        torch.is_grad_enabled() and any(part.requires_grad for part in parts)
    )
