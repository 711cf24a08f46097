# SPDX-License-Identifier: Apache-2.0
"""Reading rows in C against torch, which is differentiable and portable, and both against float64."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from longmem.retrieval.gather import TORCH_GATHER
from longmem.retrieval.native_gather import NativeGather

STORED = [torch.float32, torch.float16, torch.bfloat16]


def case(
    num_tokens: int, kv_heads: int, group: int, retrieved: int, num_rows: int, head_dim: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return queries, weights, ids, and rows that are a slice of a larger array, laid out by token like a view."""
    random = torch.Generator().manual_seed(num_tokens + num_rows)
    heads = kv_heads * group
    queries = torch.randn((num_tokens, heads, head_dim), generator=random)
    weights = torch.rand((num_tokens, heads, retrieved), generator=random).softmax(dim=2)
    ids = torch.randint(num_rows, (num_tokens, heads, retrieved), generator=random)
    around = torch.full((num_rows + 9, kv_heads, head_dim), 1e3).to(dtype)
    around[4 : 4 + num_rows] = torch.randn((num_rows, kv_heads, head_dim), generator=random).to(dtype)
    return queries, weights, ids, around[4 : 4 + num_rows].transpose(0, 1)


def expected(queries: Tensor, weights: Tensor, ids: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Compute products and sums by their definition, in float64."""
    kv_head = torch.arange(queries.shape[1]) // (queries.shape[1] // len(rows))
    gathered = rows.double()[kv_head[None, :, None], ids]
    return (gathered @ queries.double()[..., None])[..., 0], (weights.double()[..., None] * gathered).sum(dim=2)


@given(
    num_tokens=st.integers(0, 5),
    kv_heads=st.integers(1, 3),
    group=st.integers(1, 3),
    retrieved=st.integers(1, 20),
    num_rows=st.integers(1, 30),
    head_dim=st.sampled_from([1, 7, 8, 12, 64]),
    dtype=st.sampled_from(STORED),
    threads=st.sampled_from([1, 2]),
)
def test_any_shape(
    num_tokens: int,
    kv_heads: int,
    group: int,
    retrieved: int,
    num_rows: int,
    head_dim: int,
    dtype: torch.dtype,
    threads: int,
) -> None:
    queries, weights, ids, rows = case(num_tokens, kv_heads, group, retrieved, num_rows, head_dim, dtype)
    products, mixtures = expected(queries, weights, ids, rows)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for gather in (TORCH_GATHER, NativeGather()) if num_tokens else (NativeGather(),):
            # sums of at most 64 products of numbers of size one, in float32
            torch.testing.assert_close(gather.products(queries, ids, rows).double(), products, rtol=1e-5, atol=1e-4)
            torch.testing.assert_close(gather.mixtures(weights, ids, rows).double(), mixtures, rtol=1e-5, atol=1e-5)
            for layout in (rows.contiguous(), rows.transpose(1, 2).contiguous().transpose(1, 2)):
                assert torch.equal(gather.products(queries, ids, layout), gather.products(queries, ids, rows))
                assert torch.equal(gather.mixtures(weights, ids, layout), gather.mixtures(weights, ids, rows))
    finally:
        torch.set_num_threads(before)


def test_every_float16_is_widened_exactly() -> None:
    """Check all finite bit patterns, subnormal ones included, each in a row of its own."""
    bits = torch.arange(2**16, dtype=torch.int32).to(torch.uint16).view(torch.float16)
    finite = bits[bits.isfinite()]
    for head_dim in (1, 8):
        rows = finite[:, None].expand(-1, head_dim).contiguous()[None]
        ids = torch.arange(len(finite))[:, None, None]
        mixed = NativeGather().mixtures(torch.ones(ids.shape), ids, rows)
        assert torch.equal(mixed[:, 0], finite.float()[:, None].expand(-1, head_dim))


def test_gradients_go_the_way_of_torch() -> None:
    queries, weights, ids, rows = case(4, 2, 2, 6, 10, 8, torch.float16)
    for left, read in ((queries, NativeGather().products), (weights, NativeGather().mixtures)):
        wanted = left.clone().requires_grad_()
        read(wanted, ids, rows).sum().backward()
        assert wanted.grad is not None
        assert float(wanted.grad.abs().max()) > 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_other_compute_types_go_the_way_of_torch(dtype: torch.dtype) -> None:
    queries, _, ids, rows = case(4, 2, 2, 6, 10, 8, torch.float16)
    found = NativeGather().products(queries.to(dtype), ids, rows)
    assert found.dtype == dtype
    assert torch.equal(found, TORCH_GATHER.products(queries.to(dtype), ids, rows))
