# SPDX-License-Identifier: Apache-2.0
"""Gather of retrieved rows in C (`longmem/native/gather.c`), for scoring on the CPU without gradients."""

import ctypes
from collections.abc import Callable

import torch
from jaxtyping import Float, Float32, Int64, Shaped
from torch import Tensor

from longmem.native.build import native_library
from longmem.native.params import DTYPES, GatherParams, row_matrix
from longmem.native.threads import run_threads
from longmem.retrieval.gather import TORCH_GATHER, AbstractGather


class NativeGather(AbstractGather):
    """Gather in C. Falls back to torch for gradients, for queries or weights that are not float32, and for devices
    other than the CPU.

    The results differ from torch's by the rounding of sums in another order.

    Raises:
        ConfigError: The C library cannot be built (no C compiler).
    """

    def __init__(self) -> None:
        self._library = native_library()

    def products(
        self,
        queries: Float[Tensor, "tokens heads head_dim"],
        ids: Int64[Tensor, "tokens heads retrieved"],
        rows: Shaped[Tensor, "kv_heads rows head_dim"],
    ) -> Float[Tensor, "tokens heads retrieved"]:
        if not _runs_natively(queries, rows):
            return TORCH_GATHER.products(queries, ids, rows)
        return _gather(self._library.longmem_products, queries, ids, rows, torch.empty(ids.shape))

    def mixtures(
        self,
        weights: Float[Tensor, "tokens heads retrieved"],
        ids: Int64[Tensor, "tokens heads retrieved"],
        rows: Shaped[Tensor, "kv_heads rows head_dim"],
    ) -> Float[Tensor, "tokens heads head_dim"]:
        if not _runs_natively(weights, rows):
            return TORCH_GATHER.mixtures(weights, ids, rows)
        return _gather(self._library.longmem_mixtures, weights, ids, rows, torch.empty(*ids.shape[:2], rows.shape[2]))


def _runs_natively(left: Tensor, rows: Tensor) -> bool:
    plain = left.dtype == torch.float32 and left.device.type == "cpu" and rows.dtype in DTYPES
    return plain and not (torch.is_grad_enabled() and left.requires_grad)


def _gather(
    function: Callable[..., None],
    left: Float32[Tensor, "tokens heads inner"],
    ids: Int64[Tensor, "tokens heads retrieved"],
    rows: Shaped[Tensor, "kv_heads rows head_dim"],
    output: Float32[Tensor, "tokens heads outer"],
) -> Float32[Tensor, "tokens heads outer"]:
    """Fill `output` with a C function, a range of tokens in each thread, and return it."""
    left, ids = left.contiguous(), ids.contiguous()
    if rows.stride(2) != 1:
        rows = rows.contiguous()
    num_tokens, heads, retrieved = ids.shape
    first_head = row_matrix(rows[0])

    def gather_tokens(first: int, last: int) -> None:
        params = GatherParams(
            input=left[first:].data_ptr(),
            ids=ids[first:].data_ptr(),
            rows=first_head,
            head_stride=rows.stride(0),
            num_tokens=last - first,
            num_heads=heads,
            group_size=heads // len(rows),
            num_ids=retrieved,
            dim=rows.shape[2],
            output=output[first:].data_ptr(),
        )
        function(ctypes.byref(params))

    run_threads(gather_tokens, num_tokens)
    return output
