# SPDX-License-Identifier: Apache-2.0
"""Causal bfloat16 attention in C (`longmem/native/attention.c`), on processors with AVX-512 BF16, with or without AMX.

With a KV cache in front of the tokens, as every layer reads the memory, torch's attention takes a mask and computes
what the mask discards. Even without one it reaches a fraction of the speed of the matrix products. This one takes no
mask, and is 1.7 to 2.9 times as fast (`python -m benchmarks attention`). Weights and outputs are rounded where
torch rounds them; its errors against float64 are as large as torch's.

transformers calls it by the name `ATTENTION`. Everything else (masks, sliding windows that cut, few tokens, gradients)
goes to transformers' own function for torch, as before.
"""

import ctypes
import math
import warnings
from functools import cache
from typing import Any

import torch
from jaxtyping import BFloat16, Bool
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import causal_mask_function, sdpa_mask

from longmem.errors import ConfigError
from longmem.native.build import native_library
from longmem.native.compiler import find_compiler
from longmem.native.params import AttentionParams
from longmem.native.threads import run_threads

ATTENTION = "longmem_bfloat16"
LANES = 16
TILE_DEPTH = 32
"""Numbers in a row of an AMX tile."""
MAX_DIM = 256
MIN_TOKENS = 16
"""Minimum number of query tokens; packing the keys for fewer costs more than it gains."""


@cache
def is_available() -> bool:
    """Return whether this machine can compute it: a C compiler, and a processor with AVX-512 BF16.

    Warns where the C code cannot be compiled.
    """
    if find_compiler() is None:
        return False
    try:
        return bool(native_library().longmem_attention_scratch_bytes())
    except ConfigError as error:
        warnings.warn(
            f"attention and log-probabilities are computed by torch, several times slower: {error}", stacklevel=2
        )
        return False


@cache
def has_tiles() -> bool:
    """Return whether this process may use AMX, which multiplies matrices in tile registers."""
    return bool(native_library().longmem_attention_request_tiles())


def use_fast_attention(model: PreTrainedModel) -> None:
    """Let a bfloat16 model on the CPU compute its attention so, where `is_available`."""
    plain = model.config._attn_implementation == "sdpa"
    if plain and model.dtype == torch.bfloat16 and model.device.type == "cpu" and is_available():
        AttentionInterface.register(ATTENTION, attention_forward)
        AttentionMaskInterface.register(ATTENTION, _mask)
        model.set_attn_implementation(ATTENTION)


def _mask(*args: Any, mask_function: Any = causal_mask_function, attention_mask: Any = None, **kwargs: Any) -> Any:
    """Return None for plain causal attention, whose last query sees every key; otherwise transformers' mask."""
    if mask_function is causal_mask_function and attention_mask is None:
        return None
    return sdpa_mask(*args, mask_function=mask_function, attention_mask=attention_mask, **kwargs)


def attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attend as transformers' own functions do: from [batch, heads, tokens, dim] to [batch, tokens, heads, dim]."""
    scale = query.shape[3] ** -0.5 if scaling is None else scaling
    if attention_mask is None and kwargs.get("position_bias") is None and scale > 0 and _suits(query, key, value):
        rows = [attend(*row, scale) for row in zip(query, key, value, strict=True)]
        return torch.stack(rows), None
    if attention_mask is None and 1 < query.shape[2] < key.shape[2]:
        # without a mask, transformers cuts the keys to as many as there are queries
        attention_mask = aligned_mask(query.shape[2], key.shape[2])[None, None].to(query.device)
    attended: tuple[Tensor, None] = sdpa_attention_forward(
        module, query, key, value, attention_mask, scaling=scaling, **kwargs
    )
    return attended


def aligned_mask(tokens: int, count: int) -> Bool[Tensor, "tokens count"]:
    """Return which keys each query sees: the last query all of them, every earlier one key less."""
    return torch.ones(tokens, count, dtype=torch.bool).tril(count - tokens)


def _suits(*parts: Tensor) -> bool:
    query, key, value = parts
    dim = query.shape[3]
    return (
        query.shape[2] >= MIN_TOKENS
        and key.shape[3] == value.shape[3] == dim <= MAX_DIM
        and dim % LANES == 0
        and all(part.dtype == torch.bfloat16 and part.device.type == "cpu" and part.stride(3) == 1 for part in parts)
        and not (torch.is_grad_enabled() and any(part.requires_grad for part in parts))
    )


def attend(
    queries: BFloat16[Tensor, "heads tokens dim"],
    keys: BFloat16[Tensor, "kv_heads count dim"],
    values: BFloat16[Tensor, "kv_heads count dim"],
    scale: float,
) -> BFloat16[Tensor, "tokens heads dim"]:
    """Return softmax(scale · queries · keysᵀ) · values, where query i sees the first `count - tokens + i + 1` keys.

    A token's result depends neither on the other queries nor on the number of threads, as long as keys and values are
    finite. `scale` is positive, and every query sees a key.
    """
    library = native_library()
    wanted = queries.shape[2]
    if has_tiles() and wanted % TILE_DEPTH:
        # a product with zeros costs less than one without tiles
        queries, keys, values = (pad(part, (0, -wanted % TILE_DEPTH)) for part in (queries, keys, values))
    heads, tokens, dim = queries.shape
    assert scale > 0, scale
    assert keys.shape == values.shape == (len(keys), keys.shape[1], dim), (queries.shape, keys.shape, values.shape)
    assert tokens <= keys.shape[1], (queries.shape, keys.shape)
    assert heads % len(keys) == dim % LANES == 0 < dim <= MAX_DIM, (queries.shape, keys.shape)
    output = torch.empty(tokens, heads, dim, dtype=torch.bfloat16)
    params = AttentionParams(
        queries=queries.data_ptr(),
        keys=keys.data_ptr(),
        values=values.data_ptr(),
        query_head=queries.stride(0),
        query_token=queries.stride(1),
        key_head=keys.stride(0),
        key_token=keys.stride(1),
        value_head=values.stride(0),
        value_token=values.stride(1),
        heads=heads,
        kv_heads=len(keys),
        tokens=tokens,
        count=keys.shape[1],
        dim=dim,
        tiles=has_tiles(),
        scale=scale * math.log2(math.e),
        packed_keys=None,
        packed_values=None,
        output=output.data_ptr(),
    )
    address = ctypes.byref(params)
    packed = torch.empty(2, library.longmem_attention_packed_bytes(address), dtype=torch.uint8)
    params.packed_keys, params.packed_values = packed[0].data_ptr(), packed[1].data_ptr()
    threads = torch.get_num_threads()

    def pack(first: int, _last: int) -> None:
        library.longmem_attention_pack(address, first, threads)

    def read(first: int, _last: int) -> None:
        scratch = torch.empty(library.longmem_attention_scratch_bytes(), dtype=torch.uint8)
        library.longmem_attention_read(address, first, threads, scratch.data_ptr())

    # later rows see more keys, so each thread takes one block in `threads`
    run_threads(pack, threads)
    run_threads(read, threads)
    return output[:, :, :wanted]
