# SPDX-License-Identifier: Apache-2.0
"""Attention over retrieved chunks against loops in float64, alone and inside the SideNet of every family."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from longmem.backbone.backbone import Backbone
from longmem.backbone.families import FAMILIES
from longmem.memory.view import MemoryView
from longmem.model.longmem import LongMem
from longmem.retrieval import create_search, gather
from longmem.retrieval.base import AbstractChunkSearch, ChunkHits
from longmem.retrieval.ivf_index import KeyCells
from longmem.retrieval.low_rank_bound import KeySketch
from longmem.retrieval.positions import RetrievedPositions, num_searchable, places_of
from longmem.sidenet.memory_attention import attend, attend_to_memory, fuse
from tests.inputs import DEFAULT_FORM, sidenet_input

every_family = pytest.mark.parametrize("family", sorted(FAMILIES))
QUERY_AND_STORED = [
    (torch.float32, torch.float32),
    (torch.float32, torch.float16),
    (torch.bfloat16, torch.bfloat16),
    (torch.bfloat16, torch.float16),
]


def naive_attention(queries: Tensor, chunk_ids: Tensor, view: MemoryView, scale: float) -> Tensor:
    """Compute the formula per token and head, in float64, over the real tokens of the named chunks only."""
    num_tokens, heads, _ = queries.shape
    group = heads // view.keys.shape[0]
    result = torch.empty(queries.shape, dtype=torch.float64)
    for token in range(num_tokens):
        for head in range(heads):
            keys, values = [], []
            for chunk in chunk_ids[token, head].tolist():
                if chunk >= 0:
                    length = int(view.lengths[chunk])
                    keys.append(view.keys[head // group, chunk, :length].double())
                    values.append(view.values[head // group, chunk, :length].double())
            weights = (torch.cat(keys) @ queries[token, head].double() * scale).softmax(dim=0)
            result[token, head] = weights @ torch.cat(values)
    return result


def plain_attention(queries: Tensor, chunk_ids: Tensor, view: MemoryView, scale: float) -> Tensor:
    """Compute a straightforward torch version in the queries' dtype: gather, softmax(QK)V, a mask for missing slots."""
    num_tokens, heads, head_dim = queries.shape
    kv_heads, _, chunk, _ = view.keys.shape
    head_of = torch.arange(heads).div(heads // kv_heads, rounding_mode="floor")[None, :, None]
    ids = chunk_ids.clamp(min=0)
    real = torch.arange(chunk) < torch.where(chunk_ids >= 0, view.lengths[ids], 0)[..., None]
    shape = (num_tokens, heads, -1, head_dim)
    keys = view.keys[head_of, ids].to(queries.dtype).reshape(shape)
    values = view.values[head_of, ids].to(queries.dtype).reshape(shape)
    mask = real.reshape(num_tokens, heads, 1, -1)
    attended = nn.functional.scaled_dot_product_attention(
        queries[:, :, None], keys, values, attn_mask=mask, scale=scale
    )
    return attended[:, :, 0]


def random_queries(num_tokens: int, heads: int, head_dim: int, dtype: torch.dtype, seed: int = 1) -> Tensor:
    return torch.randn((num_tokens, heads, head_dim), generator=torch.Generator().manual_seed(seed)).to(dtype)


def random_ids(num_tokens: int, heads: int, slots: int, num_chunks: int, seed: int = 2) -> Tensor:
    """Return distinct chunks per token and head; a third of the rows have empty slots behind at least one filled
    one."""
    random = torch.Generator().manual_seed(seed)
    order = torch.rand((num_tokens, heads, num_chunks), generator=random).argsort(dim=-1)[..., :slots]
    ids = torch.full((num_tokens, heads, slots), -1)
    ids[..., : order.shape[-1]] = order
    filled = torch.randint(1, slots + 1, (num_tokens, heads, 1), generator=random)
    some = torch.rand((num_tokens, heads, 1), generator=random) < 1 / 3
    return ids.masked_fill(some & (torch.arange(slots) >= filled), -1)


def error(found: Tensor, reference: Tensor) -> float:
    return float((found.double() - reference).abs().max())


@every_family
@pytest.mark.parametrize(("dtype", "stored"), QUERY_AND_STORED, ids=str)
def test_as_exact_as_plain_torch(
    family: str,
    dtype: torch.dtype,
    stored: torch.dtype,
    small_backbone: Callable[[str], Path],
    random_view: Callable[..., MemoryView],
) -> None:
    shape = Backbone.load(small_backbone(family)).shape
    view = random_view(shape.kv_heads, shape.head_dim, chunks=20, dtype=stored)
    queries = random_queries(9, shape.heads, shape.head_dim, dtype) * 3
    local = random_queries(9, shape.heads, shape.head_dim, dtype, seed=5)
    gate_logits = torch.linspace(-2.0, 2.0, shape.heads)
    ids = random_ids(9, shape.heads, 6, view.num_chunks)
    scale = shape.head_dim**-0.5

    found = attend_to_memory(queries, ids, view, scale)
    reference = naive_attention(queries, ids, view, scale)
    plain = plain_attention(queries, ids, view, scale)
    assert found.dtype == dtype
    eps = torch.finfo(dtype).eps
    assert error(found, reference) <= 2 * error(plain, reference) + eps

    fused = fuse(local[None], found[None], gate_logits)[0]
    gate = gate_logits.double().sigmoid()
    mixed = torch.stack(
        [(1 - gate[h]) * local[:, h].double() + gate[h] * reference[:, h] for h in range(shape.heads)], 1
    )
    plain_mixed = torch.lerp(local, plain, gate_logits.sigmoid().to(dtype)[:, None].expand_as(local))
    assert fused.dtype == dtype
    assert error(fused, mixed) <= 2 * error(plain_mixed, mixed) + eps


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_as_exact_as_plain_torch_at_a_real_width(dtype: torch.dtype, random_view: Callable[..., MemoryView]) -> None:
    view = random_view(2, 64, chunks=100, dtype=dtype)
    queries = random_queries(5, 4, 64, dtype) * 2
    ids = random_ids(5, 4, 16, view.num_chunks)
    found, plain = (each(queries, ids, view, 0.125) for each in (attend_to_memory, plain_attention))
    reference = naive_attention(queries, ids, view, 0.125)
    assert error(found, reference) <= 2 * error(plain, reference) + torch.finfo(dtype).eps


@given(
    num_tokens=st.integers(1, 5),
    kv_heads=st.integers(1, 3),
    group=st.integers(1, 3),
    head_dim=st.sampled_from([1, 2, 8]),
    chunks=st.integers(1, 7),
    chunk=st.integers(1, 5),
    slots=st.integers(1, 9),
    gather_bytes=st.sampled_from([1, 200, 2**24]),
    seed=st.integers(0, 1000),
)
def test_any_shape(
    random_view: Callable[..., MemoryView],
    num_tokens: int,
    kv_heads: int,
    group: int,
    head_dim: int,
    chunks: int,
    chunk: int,
    slots: int,
    gather_bytes: int,
    seed: int,
) -> None:
    view = random_view(kv_heads, head_dim, chunks=chunks, chunk=chunk, seed=seed)
    queries = random_queries(num_tokens, kv_heads * group, head_dim, torch.float32, seed)
    ids = random_ids(num_tokens, kv_heads * group, slots, chunks, seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gather, "GATHER_BYTES", gather_bytes)
        found = attend_to_memory(queries, ids, view, 0.7)
    assert error(found, naive_attention(queries, ids, view, 0.7)) < 1e-5


def test_tiles_give_what_one_piece_gives(
    monkeypatch: pytest.MonkeyPatch, random_view: Callable[..., MemoryView]
) -> None:
    view = random_view(2, 8, chunks=30)
    queries, ids = random_queries(23, 4, 8, torch.float32), random_ids(23, 4, 5, 30)
    whole = attend_to_memory(queries, ids, view, 0.35)
    bytes_per_token = 5 * 4 * 8 * 4
    for rows in (1, 2, 7, 22, 23):
        monkeypatch.setattr(gather, "GATHER_BYTES", rows * bytes_per_token)
        assert error(attend_to_memory(queries, ids, view, 0.35), whole.double()) <= 2e-6, rows


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_what_is_not_there_weighs_exactly_nothing(dtype: torch.dtype, random_view: Callable[..., MemoryView]) -> None:
    view = random_view(2, 8, chunks=12, dtype=dtype)
    queries, ids = random_queries(15, 4, 8, dtype), random_ids(15, 4, 6, 11) + 1
    ids = torch.where(ids == 0, -1, ids)  # chunk 0 is never named, but an empty slot may well be gathered from there
    assert (ids == -1).any()
    assert {6, 11} <= set(ids.unique().tolist()), "both partial chunks must be read"
    clean = attend_to_memory(queries, ids, view, 0.35)

    poisoned = replace(view, keys=view.keys.clone(), values=view.values.clone())
    for part in (poisoned.keys, poisoned.values):
        part[:, 0] = 1e4
        for chunk, length in enumerate(view.lengths.tolist()):
            part[:, chunk, length:] = 1e4
    assert torch.equal(attend_to_memory(queries, ids, poisoned, 0.35), clean)
    poisoned.values[:, 0] = -1e4
    poisoned.keys[:, 0] = -1e4
    assert torch.equal(attend_to_memory(queries, ids, poisoned, 0.35), clean)


def test_chunks_that_no_slot_names_are_not_even_touched(random_view: Callable[..., MemoryView]) -> None:
    view = random_view(2, 8, chunks=12)
    queries, ids = random_queries(15, 4, 8, torch.float32), random_ids(15, 4, 3, 7)
    clean = attend_to_memory(queries, ids, view, 0.35)
    poisoned = replace(view, keys=view.keys.clone(), values=view.values.clone())
    poisoned.keys[:, 7:], poisoned.values[:, 7:] = torch.nan, torch.nan
    assert torch.equal(attend_to_memory(queries, ids, poisoned, 0.35), clean)


def naive_continuation(logits: Tensor, places: RetrievedPositions, view: MemoryView) -> Tensor:
    """Return values of the tokens after the places, per token and head, in float64."""
    in_order = [(chunk, slot) for chunk, length in enumerate(view.lengths.tolist()) for slot in range(length)]
    num_tokens, heads, _ = logits.shape
    result = torch.empty((num_tokens, heads, view.values.shape[3]), dtype=torch.float64)
    for token in range(num_tokens):
        for head in range(heads):
            valid = places.valid[token, head]
            weights = logits[token, head][valid].double().softmax(dim=0)
            following = [in_order[place + 1] for place in places.index[token, head][valid].tolist()]
            values = view.values[head // (heads // view.values.shape[0])]
            result[token, head] = weights @ torch.stack([values[each] for each in following]).double()
    return result


def plain_continuation(logits: Tensor, places: RetrievedPositions, view: MemoryView, dtype: torch.dtype) -> Tensor:
    """Compute the continuation with torch alone in `dtype`: values shifted by one place, then softmax(logits)V."""
    heads = logits.shape[1]
    values = view.values.flatten(1, 2)[:, (torch.arange(view.chunk_size) < view.lengths[:, None]).flatten()]
    moved = values.roll(-1, dims=1).repeat_interleave(heads // values.shape[0], dim=0).to(dtype)
    gathered = moved[torch.arange(heads)[None, :, None], places.index]
    weights = logits.masked_fill(~places.valid, -torch.inf).softmax(dim=2).to(dtype)
    return torch.einsum("thk,thkd->thd", weights, gathered)


@pytest.mark.parametrize(("dtype", "stored"), QUERY_AND_STORED, ids=str)
@pytest.mark.parametrize("chunk", [1, 4])
def test_continuations_are_as_exact_as_plain_torch(
    dtype: torch.dtype, stored: torch.dtype, chunk: int, random_view: Callable[..., MemoryView]
) -> None:
    view = random_view(2, 8, chunks=20, chunk=chunk, dtype=stored)
    ids = random_ids(9, 4, 6, num_searchable(view, continued=True))
    places = places_of(ids, view, continued=True)
    logits = 3 * torch.randn(places.index.shape, generator=torch.Generator().manual_seed(4))
    found = attend(logits, places, view, dtype, continued=True)
    reference = naive_continuation(logits, places, view)
    assert found.dtype == dtype
    plain = plain_continuation(logits, places, view, dtype)
    assert error(found, reference) <= 2 * error(plain, reference) + torch.finfo(dtype).eps


def test_the_newest_token_is_only_read_as_a_continuation(random_view: Callable[..., MemoryView]) -> None:
    view = random_view(1, 8, chunks=3, chunk=2, lengths=[2, 2])
    places = places_of(torch.tensor([[[1]]]), view, continued=True)
    found = attend(torch.zeros((1, 1, 2)), places, view, torch.float32, continued=True)
    assert torch.equal(found[0, 0], view.values[0, 1, 1])


def test_order_of_slots_does_not_matter_and_one_token_is_its_value(random_view: Callable[..., MemoryView]) -> None:
    view = random_view(2, 8, chunks=12)
    queries, ids = random_queries(4, 4, 8, torch.float32), random_ids(4, 4, 6, 12)
    forward, backward = (attend_to_memory(queries, each, view, 0.35) for each in (ids, ids.flip(-1)))
    torch.testing.assert_close(forward, backward, rtol=0, atol=1e-6)
    last = torch.full((4, 4, 6), -1)
    last[..., 2] = 11  # the last chunk holds one token
    expected = view.values[:, 11, 0].repeat_interleave(2, dim=0).expand(4, 4, 8)
    torch.testing.assert_close(attend_to_memory(queries, last, view, 0.35), expected, rtol=0, atol=1e-6)


def test_large_logits_do_not_overflow(random_view: Callable[..., MemoryView]) -> None:
    view = random_view(1, 8, dtype=torch.float16)
    view = replace(view, keys=view.keys * 1000)
    queries, ids = random_queries(4, 2, 8, torch.float32) * 1000, random_ids(4, 2, 6, 12)
    assert error(attend_to_memory(queries, ids, view, 1.0), naive_attention(queries, ids, view, 1.0)) < 1e-3


@pytest.mark.parametrize("logit", [-200.0, 200.0])
def test_a_closed_gate_takes_one_side_alone(logit: float) -> None:
    local, memory = (random_queries(3, 2, 8, torch.float32, seed)[None] for seed in (1, 2))
    assert torch.equal(fuse(local, memory, torch.full((2,), logit)), memory if logit > 0 else local)


def test_each_head_has_its_own_gate() -> None:
    local, memory = (random_queries(3, 2, 8, torch.float32, seed)[None] for seed in (1, 2))
    fused = fuse(local, memory, torch.tensor([200.0, -200.0]))
    assert torch.equal(fused[:, :, 0], memory[:, :, 0])
    assert torch.equal(fused[:, :, 1], local[:, :, 1])


def test_gradients_are_those_of_the_formula(random_view: Callable[..., MemoryView]) -> None:
    view = random_view(2, 8)
    ids = random_ids(5, 4, 4, 12)
    queries, gate = random_queries(5, 4, 8, torch.float32), torch.linspace(-1, 1, 4)
    local, direction = (random_queries(5, 4, 8, torch.float32, seed) for seed in (7, 8))

    def gradients(attention: Callable[..., Tensor], dtype: torch.dtype) -> list[Tensor]:
        inputs = [part.to(dtype, copy=True).requires_grad_() for part in (queries, gate, local)]
        mixed = fuse(inputs[2][None], attention(inputs[0], ids, view, 0.35).to(dtype)[None], inputs[1])
        (mixed[0] * direction).sum().backward()
        return [part.grad for part in inputs if part.grad is not None]

    def in_float64(queries: Tensor, ids: Tensor, view: MemoryView, scale: float) -> Tensor:
        wide = replace(view, keys=view.keys.double(), values=view.values.double())
        return plain_attention(queries, ids, wide, scale)

    found, expected = gradients(attend_to_memory, torch.float32), gradients(in_float64, torch.float64)
    assert len(found) == len(expected) == 3
    for one, other in zip(found, expected, strict=True):
        assert one.abs().max() > 0.01
        assert error(one, other) < 1e-5


# ---- inside the SideNet


class Recording(AbstractChunkSearch):
    """Real engine that records its arguments and results."""

    def __init__(self) -> None:
        self.engine = create_search("torch")
        self.calls: list[tuple[Tensor, Tensor, int]] = []
        self.answers: list[ChunkHits] = []

    def search(
        self,
        queries: Tensor,
        chunk_keys: Tensor,
        num_slots: int,
        sketch: KeySketch | None = None,
        cells: KeyCells | None = None,
    ) -> ChunkHits:
        self.calls.append((queries, chunk_keys, num_slots))
        self.answers.append(self.engine.search(queries, chunk_keys, num_slots))
        return self.answers[-1]


ATTENTION = {"bloom": "self_attention", "gpt2": "attn", "gpt_neox": "attention"}
OUTPUT = {"bloom": "dense", "gpt2": "c_proj", "gpt_neox": "dense", "opt": "out_proj"}
SCALE = {"gemma3_text": 20**-0.5, "granite": 0.2}
"""Scales of the small models that are not those of the head width."""


def own_queries(family: str, attention: Any, hidden: Tensor, heads: int, head_dim: int) -> Tensor:
    """Return unrotated queries [tokens, heads, head_dim], with projections split as in the family's paper."""
    if family == "gpt2":
        return attention.c_attn(hidden)[:, : heads * head_dim].reshape(-1, heads, head_dim)
    if family in ("bloom", "gpt_neox"):
        return attention.query_key_value(hidden).reshape(-1, heads, 3 * head_dim)[:, :, :head_dim]
    if family == "phi3":
        return attention.qkv_proj(hidden)[:, : heads * head_dim].reshape(-1, heads, head_dim)
    if family == "olmo2":  # one norm over all heads
        return attention.q_norm(attention.q_proj(hidden)).reshape(-1, heads, head_dim)
    queries = attention.q_proj(hidden).reshape(-1, heads, head_dim)
    return attention.q_norm(queries) if family in ("gemma3_text", "qwen3") else queries


def run_and_watch(
    model: LongMem, family: str, tokens: Tensor, view: MemoryView | None, search: AbstractChunkSearch
) -> tuple[Tensor, Tensor, Any]:
    """Return the memory layer's attention input [tokens, hidden], that of its output projection, and the output."""
    sidenet = model.sidenet
    attention = getattr(sidenet.layers[sidenet.memory_index], ATTENTION.get(family, "self_attn"))
    seen: dict[str, Tensor] = {}

    def entering(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen["hidden"] = (args[0] if args else kwargs["hidden_states"])[0]

    def projected(_module: nn.Module, args: tuple[Tensor, ...], _output: Tensor) -> None:
        seen["given"] = args[0][0]

    hooks = [
        attention.register_forward_pre_hook(entering, with_kwargs=True),
        getattr(attention, OUTPUT.get(family, "o_proj")).register_forward_hook(projected),
    ]
    with torch.no_grad():
        output = sidenet(sidenet_input(model, tokens, [view]), search)
    for hook in hooks:
        hook.remove()
    return seen["hidden"], seen["given"], output


@every_family
def test_the_memory_layer_of_the_sidenet_fuses_by_the_formula(
    family: str, small_model: Callable[..., LongMem], random_view: Callable[..., MemoryView]
) -> None:
    model = small_model(family, top_k=24)
    shape = model.backbone.shape
    with torch.no_grad():
        model.sidenet.scale.fill_(1.0)
        model.sidenet.gate.copy_(torch.linspace(-1.5, 1.5, shape.heads))
    tokens = torch.randint(256, (1, 29), generator=torch.Generator().manual_seed(3))
    view = random_view(shape.kv_heads, shape.head_dim, chunks=20, dtype=torch.float16)
    search = Recording()
    hidden, given, output = run_and_watch(model, family, tokens, view, search)
    _, local, _ = run_and_watch(model, family, tokens, None, search)
    assert len(search.calls) == 1, "without a view nothing may be searched"

    sidenet = model.sidenet
    attention = getattr(sidenet.layers[sidenet.memory_index], ATTENTION.get(family, "self_attn"))
    with torch.no_grad():
        queries = own_queries(family, attention, hidden, shape.heads, shape.head_dim)
    asked, searched, num_slots = search.calls[0]
    torch.testing.assert_close(asked, queries, rtol=0, atol=1e-5)
    assert torch.equal(searched, view.chunk_keys)
    assert searched.data_ptr() == view.chunk_keys.data_ptr(), "searched in place"
    assert num_slots == 6

    ids = output.readings[0].chunk_ids
    assert torch.equal(ids, search.answers[0].ids)
    for token in range(29):
        for head in range(shape.heads):
            keys = view.chunk_keys[head // (shape.heads // shape.kv_heads)].double()
            best = (keys @ queries[token, head].double()).topk(6)
            assert set(ids[token, head].tolist()) == set(best.indices.tolist())

    memory = naive_attention(queries, ids, view, SCALE.get(family, 1 / math.sqrt(shape.head_dim)))
    gate = sidenet.gate.detach().double().sigmoid()[:, None]
    fused = (1 - gate) * local.reshape(29, shape.heads, shape.head_dim).double() + gate * memory
    assert error(given.reshape(29, shape.heads, shape.head_dim), fused) < 1e-5
    assert (given - local).abs().max() > 0.05


@every_family
def test_the_memory_layer_asks_with_its_own_keys_in_the_default_form(
    family: str, small_model: Callable[..., LongMem], random_view: Callable[..., MemoryView]
) -> None:
    model = small_model(family, **{**DEFAULT_FORM, "top_k": 6})
    sidenet, shape = model.sidenet, model.backbone.shape
    tokens = torch.randint(256, (1, 29), generator=torch.Generator().manual_seed(3))
    view = random_view(
        shape.kv_heads, shape.head_dim, chunks=60, chunk=1, dtype=torch.float16, key_space=model.key_space
    )
    search = Recording()
    _, given, output = run_and_watch(model, family, tokens, view, search)
    _, local, _ = run_and_watch(model, family, tokens, None, search)

    own = sidenet_input(model, tokens, [view]).keys[0].double() - sidenet.reader.key_mean.double()
    own = (own / own.norm(dim=-1, keepdim=True)).flatten(1)  # all heads side by side; the map starts as the identity
    ((asked, searched, num_slots),) = search.calls
    torch.testing.assert_close(asked[:, 0].double(), own, rtol=0, atol=1e-3)  # keys are stored in half precision
    assert (searched.shape, num_slots) == ((1, 59, shape.kv_heads * shape.head_dim), 6), "the newest is not searched"
    best = (own @ view.chunk_keys[0, :59].double().T).topk(6).values
    reading = output.readings[0]
    found = (own[:, None] * view.chunk_keys[0][reading.chunk_ids[:, 0]].double()).sum(dim=2)
    torch.testing.assert_close(found.sort(descending=True).values, best, rtol=0, atol=2e-3)

    gate = sidenet.gate.detach().double().sigmoid()[:, None]
    local = local.reshape(29, shape.heads, shape.head_dim)
    fused = (1 - gate) * local.double() + gate * reading.attended.double()
    assert error(given.reshape(local.shape), fused) < 1e-5
