# SPDX-License-Identifier: Apache-2.0
"""Both engines against brute force in float64: the best chunks of each head, and no invalid one."""

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor

from longmem.errors import ConfigError
from longmem.retrieval import SEARCH_ENGINES, create_search, torch_search
from longmem.retrieval.base import AbstractChunkSearch, ChunkHits

every_engine = pytest.mark.parametrize("engine", SEARCH_ENGINES)


def check_against_brute_force(hits: ChunkHits, queries: Tensor, chunk_keys: Tensor, num_slots: int) -> None:
    """Check that hits are a top-k of the exact scores; chunks whose scores differ by rounding are interchangeable."""
    num_tokens, heads, head_dim = queries.shape
    kv_heads, num_chunks, _ = chunk_keys.shape
    assert hits.ids.shape == hits.scores.shape == (num_tokens, heads, num_slots)
    assert (hits.ids.dtype, hits.scores.dtype) == (torch.int64, torch.float32)
    found = min(num_slots, num_chunks)
    assert (hits.ids[..., found:] == -1).all()
    assert (hits.scores[..., found:] == -torch.inf).all()
    if found == 0:
        return
    for token in range(num_tokens):
        for head in range(heads):
            keys = chunk_keys[head // (heads // kv_heads)].double()
            exact = keys @ queries[token, head].double()
            # rounding of a float32 inner product, summed in any order
            tolerance = float((keys.abs() @ queries[token, head].abs().double()).max()) * head_dim * 2**-23 + 1e-30
            ids, scores = hits.ids[token, head, :found], hits.scores[token, head, :found]
            assert len(set(ids.tolist())) == found
            assert ((ids >= 0) & (ids < num_chunks)).all()
            assert (scores.diff() <= 0).all(), "best first"
            assert ((scores.double() - exact[ids]).abs() <= tolerance).all(), "a score belongs to its own chunk"
            best = exact.sort(descending=True).values[:found]
            assert ((exact[ids].sort(descending=True).values - best).abs() <= 2 * tolerance).all()


def inputs(num_tokens: int, heads: int, kv_heads: int, chunks: int, head_dim: int, seed: int) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(seed)
    queries = torch.randn((num_tokens, heads, head_dim), generator=random)
    return queries, torch.randn((kv_heads, chunks, head_dim), generator=random)


@every_engine
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("head_dim", [3, 16, 70])
@pytest.mark.parametrize("num_chunks", [9, 3000])
def test_keys_of_half_the_length_are_searched_as_if_they_were_float32(
    engine: str, dtype: torch.dtype, head_dim: int, num_chunks: int
) -> None:
    """Check the layout of windows with one-token chunks: by token, all heads concatenated."""
    queries, keys = inputs(12, 4, 2, num_chunks, head_dim, seed=5)
    keys = keys.to(dtype).transpose(0, 1).contiguous().transpose(0, 1)
    keys[:, 7] *= 2.0**-13  # below the normal numbers of float16
    search = create_search(engine)
    found, expected = search.search(queries, keys, 7), search.search(queries, keys.float(), 7)
    assert torch.equal(found.ids, expected.ids)
    assert torch.equal(found.scores, expected.scores)
    check_against_brute_force(found, queries, keys.float(), 7)


@every_engine
@given(
    num_tokens=st.integers(0, 6),
    kv_heads=st.integers(1, 3),
    group=st.integers(1, 3),
    chunks=st.integers(0, 20),
    head_dim=st.sampled_from([1, 3, 8, 64]),
    num_slots=st.integers(1, 25),
    score_bytes=st.sampled_from([1, 100, 2**24]),
    seed=st.integers(0, 1000),
)
@example(num_tokens=3, kv_heads=1, group=1, chunks=0, head_dim=8, num_slots=4, score_bytes=1, seed=0)
@example(num_tokens=0, kv_heads=2, group=2, chunks=5, head_dim=8, num_slots=4, score_bytes=1, seed=0)
def test_any_shape(
    engine: str,
    num_tokens: int,
    kv_heads: int,
    group: int,
    chunks: int,
    head_dim: int,
    num_slots: int,
    score_bytes: int,
    seed: int,
) -> None:
    queries, chunk_keys = inputs(num_tokens, kv_heads * group, kv_heads, chunks, head_dim, seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch_search, "SCORE_BYTES", score_bytes)
        hits = create_search(engine).search(queries, chunk_keys, num_slots)
    check_against_brute_force(hits, queries, chunk_keys, num_slots)


@every_engine
def test_a_longer_memory(engine: str) -> None:
    queries, chunk_keys = inputs(12, 4, 2, 3000, 16, seed=1)
    hits = create_search(engine).search(queries, chunk_keys, 16)
    check_against_brute_force(hits, queries, chunk_keys, 16)


def test_engines_name_the_same_chunks() -> None:
    queries, chunk_keys = inputs(30, 8, 2, 500, 32, seed=2)
    one, *others = (create_search(engine).search(queries, chunk_keys, 10) for engine in SEARCH_ENGINES)
    for other in others:
        assert torch.equal(one.ids, other.ids)
        torch.testing.assert_close(one.scores, other.scores, rtol=1e-5, atol=1e-5)


@every_engine
def test_heads_of_one_group_search_the_same_keys(engine: str) -> None:
    # each KV head's keys point along its own axis, so the scores tell which head was searched
    chunk_keys = torch.stack([torch.eye(3)[head].repeat(5, 1) * torch.arange(1.0, 6.0)[:, None] for head in range(3)])
    queries = torch.tensor([[10.0**head, 10.0 * 10**head, 100.0 * 10**head] for head in range(6)])[None]
    hits = create_search(engine).search(queries, chunk_keys, 1)
    assert hits.ids.flatten().tolist() == [4] * 6
    expected = [5.0 * 10**head * 10 ** (head // 2) for head in range(6)]
    torch.testing.assert_close(hits.scores.flatten(), torch.tensor(expected))


@every_engine
def test_the_best_may_be_negative(engine: str) -> None:
    hits = create_search(engine).search(torch.ones(1, 1, 2), -torch.tensor([[[3.0, 3.0], [1.0, 1.0], [2.0, 2.0]]]), 2)
    assert hits.ids.flatten().tolist() == [1, 2]
    assert hits.scores.flatten().tolist() == [-2.0, -4.0]


@every_engine
def test_equal_chunks_are_named_once_each(engine: str) -> None:
    queries = torch.ones(4, 2, 3)
    chunk_keys = torch.ones(1, 9, 3)
    hits = create_search(engine).search(queries, chunk_keys, 6)
    check_against_brute_force(hits, queries, chunk_keys, 6)


@every_engine
def test_views_are_searched_where_they_lie(engine: str) -> None:
    """Check keys of a view, a slice of a larger array: rows outside the slice must not be found."""
    queries, chunk_keys = inputs(5, 4, 2, 10, 8, seed=3)
    around = torch.full((2, 30, 8), 1e3)
    around[:, 7:17] = chunk_keys
    hits = create_search(engine).search(queries.transpose(0, 1).contiguous().transpose(0, 1), around[:, 7:17], 4)
    check_against_brute_force(hits, queries, chunk_keys, 4)


@every_engine
def test_answers_depend_on_the_arguments_alone_and_carry_no_gradient(engine: str) -> None:
    search: AbstractChunkSearch = create_search(engine)
    queries, chunk_keys = inputs(5, 4, 2, 10, 8, seed=4)
    first = search.search(queries.clone(), chunk_keys, 3)
    search.search(*inputs(2, 2, 1, 3, 8, seed=5), 7)
    again = search.search(queries, chunk_keys, 3)
    assert torch.equal(first.ids, again.ids)
    assert torch.equal(first.scores, again.scores)
    assert not again.scores.requires_grad


def test_unknown_engine() -> None:
    with pytest.raises(ConfigError, match=r"native, torch, faiss.*'hnsw'"):
        create_search("hnsw")
