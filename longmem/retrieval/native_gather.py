"""Reading retrieved rows in C (`native/gather.c`): for scoring on the CPU, where no gradient is wanted."""

from collections.abc import Callable

import torch
from jaxtyping import Float, Float32, Int64, Shaped
from torch import Tensor

from longmem.retrieval.gather import TORCH_GATHER, AbstractGather
from longmem.retrieval.native.build import KINDS, native_library
from longmem.retrieval.native.threads import in_threads


class NativeGather(AbstractGather):
    """Leaves to torch what it cannot do: gradients, queries and weights that are not float32, other devices than the
    CPU.

    The results differ from torch's by the rounding of sums in another order.
    """

    def __init__(self) -> None:
        self._library = native_library()

    def products(
        self,
        queries: Float[Tensor, "tokens heads head_dim"],
        ids: Int64[Tensor, "tokens heads retrieved"],
        rows: Shaped[Tensor, "kv_heads rows head_dim"],
    ) -> Float[Tensor, "tokens heads retrieved"]:
        if not _in_c(queries, rows):
            return TORCH_GATHER.products(queries, ids, rows)
        return _run(self._library.longmem_products, queries, ids, rows, torch.empty(ids.shape))

    def mixtures(
        self,
        weights: Float[Tensor, "tokens heads retrieved"],
        ids: Int64[Tensor, "tokens heads retrieved"],
        rows: Shaped[Tensor, "kv_heads rows head_dim"],
    ) -> Float[Tensor, "tokens heads head_dim"]:
        if not _in_c(weights, rows):
            return TORCH_GATHER.mixtures(weights, ids, rows)
        return _run(self._library.longmem_mixtures, weights, ids, rows, torch.empty(*ids.shape[:2], rows.shape[2]))


def _in_c(left: Tensor, rows: Tensor) -> bool:
    plain = left.dtype == torch.float32 and left.device.type == "cpu" and rows.dtype in KINDS
    return plain and not (torch.is_grad_enabled() and left.requires_grad)


def _run(
    function: Callable[..., None],
    left: Float32[Tensor, "tokens heads inner"],
    ids: Int64[Tensor, "tokens heads retrieved"],
    rows: Shaped[Tensor, "kv_heads rows head_dim"],
    out: Float32[Tensor, "tokens heads outer"],
) -> Float32[Tensor, "tokens heads outer"]:
    """Threads take ranges of tokens."""
    left, ids = left.contiguous(), ids.contiguous()
    if rows.stride(2) != 1:
        rows = rows.contiguous()
    num_tokens, heads, retrieved = ids.shape

    def of_tokens(first: int, last: int) -> None:
        function(
            *(left[first:].data_ptr(), ids[first:].data_ptr()),
            *(rows.data_ptr(), rows.stride(1), rows.stride(0), KINDS[rows.dtype]),
            *(last - first, heads, heads // len(rows), retrieved, rows.shape[2], out[first:].data_ptr()),
        )

    in_threads(of_tokens, num_tokens)
    return out
