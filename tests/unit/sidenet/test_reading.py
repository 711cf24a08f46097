# SPDX-License-Identifier: Apache-2.0
"""Every form of reading against loops in float64: queries, retrieved chunks, attention."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from typing import Any

import pytest
import torch
import xxhash
from torch import Tensor

from longmem.backbone.families import AttentionShape
from longmem.config import LongMemConfig
from longmem.memory.view import MemoryView
from longmem.model.longmem import LongMem
from longmem.retrieval import create_search
from longmem.sidenet.readers import COSINE_SCALE, MemoryReader, RetrievedMemory, retrieval_stats
from longmem.text.language_reference import language_reference
from tests.inputs import DEFAULT_FORM

RandomView = Callable[..., MemoryView]

SHAPES = {"grouped, as llama": AttentionShape(4, 2, 8), "not grouped, as gpt2": AttentionShape(4, 4, 8)}
FORMS = [
    form
    for form in product(("side", "key_space"), ("raw", "centred", "unit"), ("same", "next"), ("per_head", "joint"))
    if form[:2] != ("key_space", "raw")
]
"""Query, keys, values and retrieval; queries of the key space require comparable keys (test_config.py)."""
SCALE = 0.3
NUM_TOKENS, CHUNK, SLOTS = 7, 3, 4
TOLERANCE = 1e-4
"""Tolerance. Products stay below 100: float32 sums of 16 terms are exact to 100 · 16 · 2^-24, and a softmax propagates
that."""

every_shape = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
every_form = pytest.mark.parametrize("form", FORMS, ids="-".join)


@dataclass
class Case:
    """Reader with changed weights everywhere, and its input."""

    reader: MemoryReader
    side_queries: Tensor
    own_keys: Tensor
    view: MemoryView

    def read(self) -> RetrievedMemory:
        reading = self.reader.read(self.side_queries, self.own_keys, self.view, create_search("torch"))
        assert reading is not None
        return reading


def config_of(form: tuple[str, ...], **settings: Any) -> LongMemConfig:
    names = dict(zip(("query", "keys", "values", "retrieval"), form, strict=True))
    sizes = {"segment_tokens": 3 * CHUNK, "memory_tokens": 30 * CHUNK, "chunk_tokens": CHUNK, "top_k": SLOTS * CHUNK}
    return LongMemConfig.from_dict(sizes | names | settings)


def case_of(shape: AttentionShape, form: tuple[str, ...], random_view: RandomView, **settings: Any) -> Case:
    random = torch.Generator().manual_seed(3)

    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=random)

    reader = MemoryReader(shape, config_of(form, **settings), SCALE)
    common = normal(shape.kv_heads, shape.head_dim)
    reader.calibrate(common + normal(50, shape.kv_heads, shape.head_dim))
    with torch.no_grad():
        for parameter in reader.parameters():
            if parameter.requires_grad:
                parameter += 0.3 * normal(*parameter.shape)
    return Case(
        reader,
        normal(NUM_TOKENS, shape.heads, shape.head_dim),
        common + normal(NUM_TOKENS, shape.kv_heads, shape.head_dim),
        random_view(shape.kv_heads, shape.head_dim, chunks=20, chunk=CHUNK, key_space=reader.key_space),
    )


def unit(vector: Tensor) -> Tensor:
    return vector / vector.norm()


def naive_queries(case: Case, shape: AttentionShape, form: tuple[str, ...]) -> Tensor:
    """Return one query for every query head [tokens, heads, head_dim], in float64."""
    query, keys, _, retrieval = form
    group = shape.heads // shape.kv_heads
    result = torch.empty(case.side_queries.shape, dtype=torch.float64)
    for token in range(NUM_TOKENS):
        if query == "side":
            for head in range(shape.heads):
                asked = case.side_queries[token, head].double()
                result[token, head] = unit(asked) if keys == "unit" else asked
            continue
        moved = case.own_keys[token].double() - case.reader.key_mean.double()
        own = torch.stack([unit(key) if keys == "unit" else key for key in moved])
        maps = case.reader.query_map.double()
        if retrieval == "joint":
            mapped = (maps[0] @ own.flatten()).reshape(shape.kv_heads, shape.head_dim)
        else:
            mapped = torch.stack([maps[head] @ own[head] for head in range(shape.kv_heads)])
        for head in range(shape.heads):
            result[token, head] = mapped[head // group]
    return result


def naive_scores(case: Case, shape: AttentionShape, form: tuple[str, ...]) -> Tensor:
    """Return inner products of each query with each chunk's mean key [tokens, searches, chunks].

    Query heads of a group with equal queries search together; a joint search sums the scores of the heads.
    """
    queries = naive_queries(case, shape, form)
    group = shape.heads // shape.kv_heads
    lengths = case.view.lengths.tolist()
    by_head = torch.empty((NUM_TOKENS, shape.heads, len(lengths)), dtype=torch.float64)
    for head in range(shape.heads):
        for chunk, length in enumerate(lengths):
            mean_key = case.view.keys[head // group, chunk, :length].double().mean(dim=0)
            by_head[:, head, chunk] = queries[:, head] @ mean_key
    if form[0] == "key_space":
        by_head = by_head[:, ::group]
    return by_head.sum(dim=1, keepdim=True) if form[3] == "joint" else by_head


@every_shape
@every_form
def test_the_best_chunks_are_found(shape: AttentionShape, form: tuple[str, ...], random_view: RandomView) -> None:
    case = case_of(shape, form, random_view)
    reading, scores = case.read(), naive_scores(case, shape, form)
    if form[2] == "next":
        assert case.view.lengths[-1] == 1, "the newest chunk has no continuation"
        scores = scores[..., :-1]
    assert reading.chunk_ids.shape == (*scores.shape[:2], SLOTS)
    assert all(len(set(row)) == SLOTS for row in reading.chunk_ids.flatten(0, 1).tolist())
    found = scores.gather(2, reading.chunk_ids)
    best = scores.topk(SLOTS, dim=2).values
    # either of two that differ by the rounding of float32 inner products
    torch.testing.assert_close(found.sort(dim=2, descending=True).values, best, rtol=0, atol=TOLERANCE)


@every_shape
@every_form
def test_products_and_attention_are_those_of_the_loop(
    shape: AttentionShape, form: tuple[str, ...], random_view: RandomView
) -> None:
    case = case_of(shape, form, random_view)
    reading, queries = case.read(), naive_queries(case, shape, form)
    view, group = case.view, shape.heads // shape.kv_heads
    in_order = [(chunk, slot) for chunk, length in enumerate(view.lengths.tolist()) for slot in range(length)]
    searches = reading.products.shape[1]
    assert reading.attended is not None
    scales = [SCALE] * shape.heads if form[1] == "raw" else case.reader.log_scale.double().exp().tolist()
    for token in range(NUM_TOKENS):
        products = []
        for head in range(shape.heads):
            search = head * searches // shape.heads
            valid = reading.places.valid[token, search]
            places = reading.places.index[token, search][valid].tolist()
            keys = torch.stack([view.keys[head // group][in_order[place]] for place in places]).double()
            products.append(keys @ queries[token, head])
            weights = (products[-1] * scales[head]).softmax(dim=0)
            given = [in_order[place + (form[2] == "next")] for place in places]
            expected = weights @ torch.stack([view.values[head // group][each] for each in given]).double()
            torch.testing.assert_close(reading.attended[token, head].double(), expected, rtol=0, atol=TOLERANCE)
        for search in range(searches):
            mine = products[search * shape.heads // searches : (search + 1) * shape.heads // searches]
            # heads of one joint search are averaged, and those of a group with equal queries are equal
            expected = torch.stack(mine).mean(dim=0)
            found = reading.products[token, search][reading.places.valid[token, search]]
            torch.testing.assert_close(found.double(), expected, rtol=0, atol=TOLERANCE)


@every_form
def test_gradients_reach_the_weights_and_the_queries_but_never_a_key(
    form: tuple[str, ...], random_view: RandomView
) -> None:
    case = case_of(SHAPES["grouped, as llama"], form, random_view)
    case.side_queries.requires_grad_()
    reading = case.read()
    assert reading.attended is not None
    (reading.attended.square().sum() + reading.products.square().sum()).backward()
    names = {"log_scale"} if form[1] != "raw" else set()
    names |= {"query_map"} if form[0] == "key_space" else set()
    trained = {name: each for name, each in case.reader.named_parameters() if each.requires_grad}
    assert set(trained) == names
    for name, parameter in trained.items():
        assert parameter.grad is not None, name
        assert (parameter.grad != 0).any(dim=-1).all(), f"a part of {name} has no gradient"
        assert parameter.grad.isfinite().all(), name
    assert (case.side_queries.grad is not None) == (form[0] == "side")
    if form[1] != "raw":
        assert case.reader.key_mean.grad is None
    assert not any(part.requires_grad for part in (case.view.keys, case.view.values, case.view.chunk_keys))


@every_form
def test_without_fusion_only_the_places_are_found(form: tuple[str, ...], random_view: RandomView) -> None:
    shape = SHAPES["grouped, as llama"]
    fused, alone = (case_of(shape, form, random_view, fusion=fusion).read() for fusion in (True, False))
    assert alone.attended is None
    assert torch.equal(alone.chunk_ids, fused.chunk_ids)
    assert torch.equal(alone.products, fused.products)


@pytest.mark.parametrize(("values", "found"), [("same", True), ("next", False)])
def test_a_memory_of_one_token_has_a_value_and_no_continuation(
    values: str, found: bool, random_view: RandomView
) -> None:
    case = case_of(SHAPES["grouped, as llama"], ("key_space", "unit", values, "joint"), random_view)
    view = random_view(2, 8, chunk=CHUNK, lengths=[1], key_space=case.reader.key_space)
    reading = case.reader.read(case.side_queries, case.own_keys, view, create_search("torch"))
    assert (reading is not None) == found


@pytest.mark.parametrize("retrieval", ["per_head", "joint"])
def test_an_untrained_key_finds_itself(retrieval: str, random_view: RandomView) -> None:
    shape = SHAPES["grouped, as llama"]
    reader = MemoryReader(shape, config_of(("key_space", "unit", "next", retrieval)), SCALE)
    stored = random_view(2, 8, chunk=1, lengths=[1] * 30)
    view = random_view(2, 8, chunk=1, lengths=[1] * 30, key_space=reader.key_space)
    own_keys = stored.keys[:, :29, 0].transpose(0, 1)
    reading = reader.read(torch.zeros((29, 4, 8)), own_keys, view, create_search("torch"))
    assert reading is not None
    assert (reading.chunk_ids[..., 0] == torch.arange(29)[:, None]).all()
    torch.testing.assert_close(reading.products[..., 0], torch.ones(29, reading.products.shape[1]))


def test_weights_start_where_nothing_is_learned_yet() -> None:
    shape = SHAPES["grouped, as llama"]

    def start(*form: str) -> dict[str, Tensor]:
        return dict(MemoryReader(shape, config_of(form), SCALE).named_parameters())

    assert start("side", "raw", "same", "per_head") == {}
    assert set(start("side", "unit", "next", "joint")) == {"key_mean", "log_scale"}
    per_head = start("key_space", "centred", "next", "per_head")
    assert torch.equal(per_head["query_map"], torch.stack([torch.eye(8)] * 2))
    torch.testing.assert_close(per_head["log_scale"].exp(), torch.full((4,), SCALE))
    joint = start("key_space", "unit", "next", "joint")
    assert torch.equal(joint["query_map"], torch.eye(16)[None])
    torch.testing.assert_close(joint["log_scale"].exp(), torch.full((4,), COSINE_SCALE))


# ---- the mean key


def test_calibration_takes_the_mean_of_all_keys() -> None:
    shape = SHAPES["grouped, as llama"]
    reader = MemoryReader(shape, config_of(("key_space", "unit", "next", "joint")), SCALE)
    keys = torch.randn((300, 2, 8), generator=torch.Generator().manual_seed(1)).half()
    reader.calibrate(keys)
    expected = torch.stack([key.double() for key in keys]).mean(dim=0)
    # half a unit in the last of bfloat16's eight binary digits
    assert ((reader.key_mean.double() - expected).abs() <= 2.0**-8 * expected.abs()).all()
    assert torch.equal(reader.key_mean, reader.key_mean.bfloat16().float())


def test_a_new_model_takes_its_mean_from_the_language_reference(
    small_model: Callable[..., LongMem], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("longmem.model.longmem.CALIBRATION_CHARACTERS", 150)
    model = small_model("llama", **DEFAULT_FORM)
    tokens = model.tokenizer.sequence(language_reference().text[:150])
    segments = [torch.tensor(tokens[start : start + 32])[None] for start in range(0, len(tokens), 32)]
    keys = torch.cat([model.backbone.forward(each, 3, 2).keys[0] for each in segments])
    assert len(keys) == 151
    assert torch.equal(model.sidenet.reader.key_mean, keys.double().mean(dim=0).bfloat16().float())
    assert model.sidenet.reader.key_mean.abs().max() > 0.1


# ---- statistics of a reading


@pytest.mark.parametrize("form", [("side", "raw", "same", "per_head"), ("key_space", "unit", "next", "joint")])
@pytest.mark.parametrize("fusion", [True, False])
def test_statistics_are_those_of_the_loop(form: tuple[str, ...], fusion: bool, random_view: RandomView) -> None:
    case = case_of(SHAPES["grouped, as llama"], form, random_view, fusion=fusion, top_k=24 * CHUNK)
    reading = case.read()
    gate, share = 0.35, torch.linspace(0.2, 0.4, NUM_TOKENS)
    position = case.view.num_tokens
    stats = retrieval_stats(reading, case.view, gate, share, position)
    distances, places, empty = [], [], 0
    for token, row in enumerate(reading.chunk_ids.tolist()):
        for chunk in (chunk for head in row for chunk in head):
            places.append(int(case.view.starts[chunk]) if chunk >= 0 else -1)
            empty += chunk < 0
            if chunk >= 0:
                distances.append(position + token - places[-1])
    assert empty > 0
    assert stats.empty_slots == empty
    assert stats.memory_tokens == case.view.num_tokens
    assert stats.distance_mean == pytest.approx(sum(distances) / len(distances))
    assert stats.distance_histogram.sum() == len(distances)
    for power, count in enumerate(stats.distance_histogram.tolist()):
        assert count == sum(power == int(math.log2(distance)) for distance in distances)
    assert stats.gate_mean == 0.35
    assert stats.copy_mean == pytest.approx(0.3)
    assert stats.chunks_digest == xxhash.xxh3_64_hexdigest(torch.tensor(places).numpy().tobytes())
    assert retrieval_stats(reading, case.view, gate, None, position).copy_mean == 0.0


def test_statistics_of_nothing_are_zero() -> None:
    stats = retrieval_stats(None, None, 1.0, None, 0)
    assert (stats.memory_tokens, stats.gate_mean, stats.copy_mean, stats.distance_mean, stats.empty_slots) == (0,) * 5
    assert not stats.distance_histogram.any()
