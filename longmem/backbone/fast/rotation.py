# SPDX-License-Identifier: Apache-2.0
"""Rotary positions of bfloat16 queries and keys in C (`longmem/native/rotation.c`), with AVX-512 BF16.

transformers computes them in five operations for each of the two, through memory. One pass rounds where torch rounds,
and gives the same bits where no product or sum is denormal (below 1.2e-38): those are zero.
"""

import ctypes
from functools import partial
from inspect import unwrap
from types import FunctionType
from typing import Any

import torch
from jaxtyping import BFloat16
from torch import Tensor, nn
from transformers import PreTrainedModel

from longmem.backbone.fast.attention import is_available
from longmem.backbone.fast.modules import FastModule, derived, run_rows, suit
from longmem.native.build import native_library
from longmem.native.params import RotationParams

ROTATED = frozenset(f"{name}Attention" for name in ("Llama", "Mistral", "Qwen2", "Qwen3", "Phi3", "Granite", "Gemma3"))
"""Classes of transformers whose forward calls the function `apply_rotary_pos_emb` of their module, which computes
`x * cos + rotate_half(x) * sin` in the model's dtype. That of others computes in float32, or pairs other numbers."""

NAME = "apply_rotary_pos_emb"


def use_fast_rotation(model: PreTrainedModel) -> None:
    """Let the attention of a bfloat16 model on the CPU rotate queries and keys so, where AVX-512 BF16 is available."""
    if model.dtype != torch.bfloat16 or model.device.type != "cpu" or not is_available():
        return
    for module in model.modules():
        plain: Any = type(module)
        if plain.__module__.startswith("transformers.models.") and plain.__name__ in ROTATED and _calls_it(plain):
            module.__class__ = derived(_FastRotated, plain)


def _calls_it(plain: Any) -> bool:
    """Return whether the forward itself calls the function: a decorator around it, in another version, hides that."""
    return NAME in getattr(getattr(plain.forward, "__code__", None), "co_names", ())


def rotation_of(attention: nn.Module) -> Any:
    """Return the function `(queries, keys, cos, sin)` with which an attention module rotates both."""
    return unwrap(type(attention).forward).__globals__[NAME]


class _FastRotated(FastModule):
    @classmethod
    def attributes(cls, plain: Any) -> dict[str, Any]:
        """Return the forward of a class of transformers, which finds another function under the name of its own."""
        forward = plain.forward
        names = {**forward.__globals__, NAME: partial(_rotate_both, forward.__globals__[NAME])}
        again = FunctionType(forward.__code__, names, forward.__name__, forward.__defaults__, forward.__closure__)
        again.__kwdefaults__ = forward.__kwdefaults__
        return {"forward": again}


def _rotate_both(plain: Any, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int = 1) -> Any:
    """Return queries and keys as transformers' function `plain` rotates them; the parameters are those of `plain`."""
    if unsqueeze_dim == 1 and suit(q, k, cos, sin) and all(_has_form(part, cos, sin) for part in (q, k)):
        return rotate(q, cos, sin), rotate(k, cos, sin)
    return plain(q, k, cos, sin, unsqueeze_dim=unsqueeze_dim)


def _has_form(rows: Tensor, cos: Tensor, sin: Tensor) -> bool:
    if rows.ndim != 4 or cos.ndim != 3:
        return False
    batch, _, tokens, dim = rows.shape
    tables = (batch, tokens, dim), (1, tokens, dim)
    contiguous = rows.stride(3) == cos.stride(2) == sin.stride(2) == 1
    return dim % 2 == 0 and cos.shape == sin.shape in tables and cos.stride() == sin.stride() and contiguous


def rotate(
    rows: BFloat16[Tensor, "batch heads tokens dim"],
    cos: BFloat16[Tensor, "tables tokens dim"],
    sin: BFloat16[Tensor, "tables tokens dim"],
) -> BFloat16[Tensor, "batch heads tokens dim"]:
    """Return `rows * cos + rotate_half(rows) * sin`, rounded to bfloat16 after each operation; without gradients.

    There is one table for each row of the batch, or one for all. Rows of `dim` numbers are contiguous.
    """
    assert _has_form(rows, cos, sin), (rows.shape, cos.shape, rows.stride(), cos.stride(), sin.stride())
    batch, heads, tokens, dim = rows.shape
    # as the projections have them: heads behind tokens
    output = torch.empty(batch, tokens, heads, dim, dtype=rows.dtype).transpose(1, 2)
    params = RotationParams(
        rows=rows.data_ptr(),
        row_batch=rows.stride(0),
        row_head=rows.stride(1),
        row_token=rows.stride(2),
        cos=cos.data_ptr(),
        sin=sin.data_ptr(),
        table_batch=cos.stride(0) if len(cos) == batch else 0,
        table_token=cos.stride(1),
        output=output.data_ptr(),
        output_batch=output.stride(0),
        output_head=output.stride(1),
        output_token=output.stride(2),
        heads=heads,
        tokens=tokens,
        dim=dim,
    )
    run, address = native_library().longmem_rotate, ctypes.byref(params)
    run_rows(lambda first, last: run(address, first, last), batch * tokens, heads * dim)
    return output
