# SPDX-License-Identifier: Apache-2.0
"""Approximate search: cells that depend on the text alone, and the exact top-k of the probed cells."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from longmem.memory.key_transform import KeySpace
from longmem.memory.window import WindowBuffer
from longmem.retrieval import create_search, ivf_index
from longmem.retrieval.faiss_search import make_cells
from longmem.retrieval.ivf_index import Cells, KeyCells
from longmem.retrieval.ivf_search import IvfSearch
from longmem.retrieval.low_rank_bound import KeySketch, fit_basis
from tests.blocks import IDENTITY, make_block

PROBES = 3


@pytest.fixture(autouse=True)
def small_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ivf_index, "CELL_CHUNKS", 8)
    monkeypatch.setattr(ivf_index, "STRETCHES", (32, 64))


def keys_of(heads: int, chunks: int, dim: int, seed: int) -> Tensor:
    """Return clustered vectors whose dimensions have decreasing variance."""
    random = torch.Generator().manual_seed(seed)
    centres = torch.randn((heads, 12, dim), generator=random)
    chosen = torch.randint(12, (chunks,), generator=random)
    noise = 0.4 * torch.randn((heads, chunks, dim), generator=random)
    return (centres[:, chosen] + noise) * 0.8 ** torch.arange(dim)


def naive_search(
    queries: Tensor, keys: Tensor, slots: int, stretches: list[tuple[int, Cells]]
) -> tuple[list[list[list[int]]], int]:
    """Return the best in double precision among all keys that a query may read, and the number of the others."""
    num_tokens, heads, _ = queries.shape
    kv_heads, num_chunks, _ = keys.shape
    found, missed = [], 0
    for token in range(num_tokens):
        found.append([])
        for head in range(heads):
            kv_head = head // (heads // kv_heads)
            query = queries[token, head]
            promised = [
                (float(mean @ query), first, number, cell)
                for number, (first, each) in enumerate(stretches)
                for cell, mean in enumerate(each.means[kv_head])
                if (each.cell_of[kv_head] == cell).any()
            ]
            best = {(number, cell) for _, _, number, cell in sorted(promised, reverse=True)[:PROBES]}
            open_to = []
            for chunk in range(num_chunks):
                inside = [
                    (number, int(each.cell_of[kv_head, chunk - first]))
                    for number, (first, each) in enumerate(stretches)
                    if first <= chunk < first + each.cell_of.shape[1]
                ]
                if not inside or inside[0] in best:
                    open_to.append(chunk)
            missed += num_chunks - len(open_to)
            scores = keys[kv_head].double() @ query.double()
            ranked = sorted(open_to, key=lambda chunk: (-float(scores[chunk]), chunk))
            found[-1].append((ranked + [-1] * slots)[:slots])
    return found, missed


@settings(max_examples=40)
@given(
    sizes=st.lists(st.tuples(st.integers(0, 9), st.sampled_from([24, 40])), min_size=1, max_size=3),
    tail=st.integers(0, 9),
    group=st.integers(1, 2),
    kv_heads=st.integers(1, 2),
    slots=st.integers(1, 30),
    sketched=st.booleans(),
    threads=st.sampled_from([1, 2]),
    seed=st.integers(0, 1000),
)
def test_the_best_of_what_is_looked_into(
    sizes: list[tuple[int, int]],
    tail: int,
    group: int,
    kv_heads: int,
    slots: int,
    sketched: bool,
    threads: int,
    seed: int,
) -> None:
    num_chunks = sum(gap + size for gap, size in sizes) + tail
    keys = keys_of(kv_heads, num_chunks, 16, seed)
    queries = keys_of(kv_heads * group, 7, 16, seed + 1).transpose(0, 1).contiguous()
    stretches, at = [], 0
    for gap, size in sizes:
        stretches.append((at + gap, make_cells(keys[:, at + gap : at + gap + size])))
        at += gap + size
    sketch = None
    if sketched and (basis := fit_basis(keys, keys)) is not None:
        sketch = KeySketch(basis, basis.place_keys(keys))
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        hits = IvfSearch(PROBES).search(queries, keys, slots, sketch, KeyCells(tuple(stretches)))
    finally:
        torch.set_num_threads(before)
    expected, _ = naive_search(queries, keys, slots, stretches)
    assert hits.ids.tolist() == expected
    assert torch.equal(hits.scores == -torch.inf, hits.ids < 0)
    scores = torch.einsum(
        "thd,thsd->ths",
        queries,
        keys.repeat_interleave(group, 0)[torch.arange(kv_heads * group)[None, :, None], hits.ids.clamp(min=0)],
    )
    torch.testing.assert_close(hits.scores.where(hits.ids >= 0, scores), scores)


def test_it_is_approximate_and_nearly_right_where_keys_are_in_clusters() -> None:
    keys = keys_of(1, 400, 16, 0)
    queries = keys_of(1, 40, 16, 0).transpose(0, 1).contiguous()
    stretches = [(first, make_cells(keys[:, first : first + 96])) for first in (0, 96, 192, 288)]
    _, missed = naive_search(queries, keys, 8, stretches)
    assert missed > 40 * 200, "most keys are looked at by nobody"
    found = IvfSearch(PROBES).search(queries, keys, 8, None, KeyCells(tuple(stretches))).ids
    exact = create_search("native").search(queries, keys, 8).ids
    recall = sum(
        len(set(one) & set(other)) for one, other in zip(found[:, 0].tolist(), exact[:, 0].tolist(), strict=True)
    )
    assert 0.5 < recall / (40 * 8) < 1.0


def test_without_cells_it_is_exact() -> None:
    keys, queries = keys_of(2, 300, 16, 3), keys_of(2, 9, 16, 4).transpose(0, 1).contiguous()
    exact = create_search("native").search(queries, keys, 5)
    for none in (None, KeyCells(())):
        found = IvfSearch(PROBES).search(queries, keys, 5, None, none)
        assert torch.equal(found.ids, exact.ids)
        assert torch.equal(found.scores, exact.scores)


def test_cells_hold_every_chunk_once_and_the_same_ones_every_time() -> None:
    keys = keys_of(2, 100, 16, 5)
    made, again = make_cells(keys), make_cells(keys.clone())
    assert made.means.shape == (2, 12, 16)
    assert torch.equal(made.cell_of, again.cell_of)
    assert torch.equal(made.means, again.means)
    assert made.sizes.sum(dim=1).tolist() == [100, 100]
    for head in range(2):
        assert sorted(made.members[head].tolist()) == list(range(100))
        by_cell = made.members[head].split(made.sizes[head].tolist())
        for cell, members in enumerate(by_cell):
            assert (made.cell_of[head, members] == cell).all()
            assert members.tolist() == sorted(members.tolist())
    nearest = torch.cdist(keys.double(), made.means.double()).argmin(dim=2)
    assert torch.equal(made.cell_of, nearest)


def test_equal_keys_and_fewer_keys_than_a_cell_can_be_clustered() -> None:
    for keys in (torch.ones(1, 40, 8), torch.zeros(1, 40, 8), keys_of(1, 3, 8, 0)):
        made = make_cells(keys)
        assert made.sizes.sum() == keys.shape[1]
        hits = IvfSearch(PROBES).search(keys.transpose(0, 1).contiguous(), keys, 2, None, KeyCells(((0, made),)))
        assert (hits.ids[:, 0, 0] >= 0).all()


def test_keys_that_change_move_to_other_cells() -> None:
    keys = keys_of(1, 120, 16, 6)
    stretches = KeyCells(((4, make_cells(keys[:, 4:52])), (60, make_cells(keys[:, 60:108]))))
    keys[:, 40:70] = keys_of(1, 30, 16, 7)
    moved = stretches.with_keys(40, keys[:, 40:70])
    for (first, before), (_, after) in zip(stretches.stretches, moved.stretches, strict=True):
        assert torch.equal(before.means, after.means)
        expected = torch.cdist(keys[:, first : first + 48], after.means).argmin(dim=2)
        assert torch.equal(after.cell_of, expected)
        assert not torch.equal(before.cell_of, after.cell_of)


# ---- cells of a window


def blocks_of(count: int, last: int = IDENTITY.segment_tokens) -> list:
    return [
        make_block(segment=segment, num_tokens=last if segment == count - 1 else IDENTITY.segment_tokens)
        for segment in range(count)
    ]


@given(start=st.integers(0, 500), length=st.integers(0, 500), scales=st.sampled_from([(8,), (8, 16), (4, 16, 64)]))
def test_a_view_is_covered_by_the_largest_stretches_in_it(start: int, length: int, scales: tuple[int, ...]) -> None:
    end = start + length
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(ivf_index, "STRETCHES", scales)
        covered = ivf_index.cover(start, end)
    smallest = scales[0]
    at = -(-start // smallest) * smallest
    for first, size in covered:
        assert (first, first % size) == (at, 0)
        assert start <= first
        assert first + size <= end
        larger = [each for each in scales if each > size and first % each == 0]
        assert all(first + each > end for each in larger)
        at += size
    assert end - at < smallest or end < at, "what is left is shorter than a stretch"


@pytest.mark.parametrize("retrieval", ["joint", "per_head"])
@pytest.mark.parametrize("scales", [(32, 64), (48, 96), (40,), (7, 14)])
def test_cells_of_a_view_are_a_function_of_its_text(
    retrieval: str, scales: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compare cells for any start of the reader, and any length that it keeps."""
    monkeypatch.setattr(ivf_index, "STRETCHES", scales)
    key_space = KeySpace("raw", retrieval, celled=True)  # type: ignore[arg-type]
    size, blocks = IDENTITY.segment_tokens, blocks_of(24)
    for begin in (0, 3, 10):
        for memory_segments in (6, 9):
            buffer = WindowBuffer(memory_segments * size, key_space=key_space)
            for block in blocks[begin:]:
                buffer.append(block)
                end = block.end_token
                for start in (max(begin * size, end - memory_segments * size), max(begin * size, end - 90)):
                    view = buffer.view(start, end)
                    assert view.cells is not None
                    covered = ivf_index.cover(start, end)
                    assert len(view.cells.stretches) == len(covered)
                    for (token, length), (first, found) in zip(covered, view.cells.stretches, strict=True):
                        inside = ((view.starts >= token) & (view.starts < token + length)).nonzero().squeeze(1)
                        assert first == int(inside[0])
                        expected = make_cells(view.chunk_keys[:, inside])
                        assert torch.equal(found.means, expected.means)
                        assert torch.equal(found.cell_of, expected.cell_of)


def test_cells_come_only_where_they_are_asked_for() -> None:
    buffer = WindowBuffer(2**20)
    for block in blocks_of(8):
        buffer.append(block)
    assert buffer.view(0, 8 * IDENTITY.segment_tokens).cells is None


def test_what_cannot_be_searched_is_left_out_and_the_rest_of_its_stretch_stays() -> None:
    """Check the last chunk of a view, which has no continuation to copy, wherever the view ends."""
    made = make_cells(keys_of(1, 48, 16, 0))
    view = KeyCells(((4, made), (60, made)))
    assert view.narrow(108).stretches == view.stretches
    for num_chunks, sizes in ((107, [48, 47]), (61, [48, 1]), (60, [48]), (51, [47]), (4, [])):
        cut = view.narrow(num_chunks)
        assert [int(each.sizes.sum()) for _, each in cut.stretches] == sizes
        assert cut.outside(num_chunks).tolist() == [each for each in view.outside(110).tolist() if each < num_chunks]
        for (_, found), (_, whole) in zip(cut.stretches, view.stretches, strict=False):
            assert torch.equal(found.means, whole.means)
            assert torch.equal(found.cell_of, whole.cell_of[:, : found.cell_of.shape[1]])
    assert view.outside(110).tolist() == [0, 1, 2, 3, *range(52, 60), 108, 109]
    assert replace(view, stretches=()).outside(3).tolist() == [0, 1, 2]
