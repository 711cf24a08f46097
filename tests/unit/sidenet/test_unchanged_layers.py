# SPDX-License-Identifier: Apache-2.0
"""A SideNet that is the backbone runs no layer; running them all is the naive twin."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from longmem.backbone.families import FAMILIES
from longmem.memory.context import LocalMemory
from longmem.model.longmem import LongMem
from longmem.model.source import describe
from longmem.scoring.batch import Item, score_items
from longmem.scoring.text import TextScores, score_sequence
from longmem.sidenet.sidenet import SideNet
from longmem.text.segments import cut_segments
from longmem.types import DocumentKey
from tests.inputs import ALL_LAYERS, DEFAULT_FORM

SmallModel = Callable[..., LongMem]
LENGTH = 150
TOLERANCE = 1e-5
"""Nats. The layers' residuals telescope in float32, whose rounding moves a log-probability by less."""


def sequence(length: int = LENGTH) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 40, length).astype(np.int32)


@contextmanager
def layers_run(model: LongMem) -> Iterator[list[int]]:
    """Count the calls of all SideNet layers."""
    runs: list[int] = []
    hooks = [
        layer.register_forward_hook(lambda *_args, index=index: runs.append(index))
        for index, layer in enumerate(sidenet_of(model).layers)
    ]
    yield runs
    for hook in hooks:
        hook.remove()


def sidenet_of(model: LongMem) -> SideNet:
    assert isinstance(model.sidenet, SideNet)
    return model.sidenet


def both(model: LongMem, run: Callable[[], Any]) -> tuple[Any, Any]:
    """Return results without layers and with all of them."""
    with layers_run(model) as runs:
        found = run()
        assert not runs
        sidenet_of(model).always_runs_layers = True
        expected = run()
        assert set(runs) == set(range(len(sidenet_of(model).layers)))
    sidenet_of(model).always_runs_layers = False
    return found, expected


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_scores_are_those_of_all_layers(family: str, small_model: SmallModel) -> None:
    model = small_model(family, unsettled=False, **DEFAULT_FORM)
    found, expected = both(model, lambda: score_sequence(model, sequence()))
    assert_equal(found, expected)
    assert np.abs(found.logprobs - found.backbone_logprobs).max() > 0.01  # copies are mixed in


@pytest.mark.parametrize(
    "settings",
    [{"fusion": False}, {"copy_head": False}, {"retrieval": "per_head"}, {"copy_repeats": 0}, {"kv_dtype": "int8"}],
    ids=str,
)
def test_scores_are_those_of_all_layers_in_every_form(settings: dict[str, Any], small_model: SmallModel) -> None:
    model = small_model("llama", unsettled=False, **{**DEFAULT_FORM, **settings})
    found, expected = both(model, lambda: score_sequence(model, sequence()))
    assert_equal(found, expected)
    # the initial gate, where there is one
    assert found.segments[-1].retrieval.gate_mean == (0.5 if model.config.fusion else 0.0)


def assert_equal(found: TextScores, expected: TextScores) -> None:
    np.testing.assert_allclose(found.logprobs, expected.logprobs, rtol=0, atol=TOLERANCE)
    np.testing.assert_array_equal(found.backbone_logprobs, expected.backbone_logprobs)
    for mine, theirs in zip(found.segments, expected.segments, strict=True):
        one, other = vars(mine.retrieval), vars(theirs.retrieval)
        assert one["chunks_digest"] == other["chunks_digest"]
        np.testing.assert_array_equal(one["distance_histogram"], other["distance_histogram"])
        for name in ("memory_tokens", "gate_mean", "distance_mean", "empty_slots"):
            assert one[name] == other[name], name
        assert one["copy_mean"] == pytest.approx(other["copy_mean"], abs=1e-6)


def test_the_backbones_logprobs_are_not_computed_twice_and_stay_equal(small_model: SmallModel) -> None:
    model = small_model("llama", unsettled=False, **{**DEFAULT_FORM, "copy_head": False})
    scores = score_sequence(model, sequence())
    np.testing.assert_array_equal(scores.logprobs, scores.backbone_logprobs)
    segment = cut_segments(DocumentKey("", ""), sequence(), model.config.segment_tokens)[0]
    encoded = model.encode(segment)
    again = model.score_segment(segment, encoded.block.keys, encoded.state, None)
    np.testing.assert_array_equal(again.logprobs, encoded.backbone_logprobs)


@pytest.mark.parametrize("form", [DEFAULT_FORM, ALL_LAYERS], ids=["one layer", "all layers"])
def test_without_a_view_nothing_runs_and_the_score_is_the_same(
    small_model: SmallModel, monkeypatch: pytest.MonkeyPatch, form: dict[str, Any]
) -> None:
    model = small_model("llama", unsettled=False, **form)
    segment = replace(cut_segments(DocumentKey("", ""), sequence(), model.config.segment_tokens)[0], keep_readings=True)
    encoded = model.encode(segment)
    expected = model.score_segment(segment, encoded.block.keys, encoded.state, None)
    monkeypatch.setattr(type(model.sidenet), "forward", None)
    found = model.score_segment(segment, encoded.block.keys, encoded.state, None, encoded.backbone_logprobs)
    np.testing.assert_array_equal(found.logprobs, encoded.backbone_logprobs)
    np.testing.assert_allclose(found.logprobs, expected.logprobs, rtol=0, atol=TOLERANCE)
    assert found.retrieval.memory_tokens == expected.retrieval.memory_tokens == 0
    for name, mine in vars(found.readings).items():
        np.testing.assert_allclose(mine, getattr(expected.readings, name), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("form", [DEFAULT_FORM, ALL_LAYERS], ids=["one layer", "all layers"])
def test_items_without_a_view_take_no_second_run_and_stay_equal(
    small_model: SmallModel, monkeypatch: pytest.MonkeyPatch, form: dict[str, Any]
) -> None:
    model = small_model("llama", unsettled=False, **form)
    tokens = sequence()
    memory = LocalMemory(model)
    memory.accept(model.encode(cut_segments(DocumentKey("", ""), tokens, model.config.segment_tokens)[0]).block)
    items = [Item(str(length), tokens[64 : 64 + length], 4) for length in (12, 20, 20)]
    view = memory.view(1)
    with_memory = score_items(model, items, [view] * 3)
    rows: list[int] = []
    model.sidenet.register_forward_pre_hook(lambda _model, given: rows.append(len(given[0].views)))
    mixed = score_items(model, items, [None, view, None])
    without = score_items(model, items, [None] * 3)
    assert rows == [1]
    np.testing.assert_allclose(mixed[1].longmem.logprobs, with_memory[1].longmem.logprobs, rtol=0, atol=TOLERANCE)
    for score in (mixed[0], mixed[2], *without):
        np.testing.assert_array_equal(score.longmem.logprobs, score.backbone.logprobs)
        assert score.reads.shape == (score.longmem.logprobs.size, 0)


def test_generation_and_items_are_those_of_all_layers(small_model: SmallModel) -> None:
    model = small_model("llama", unsettled=False, **DEFAULT_FORM)
    prompt = "abcabdabe" * 10
    new, expected_text = both(model, lambda: model.generate(prompt, max_new_tokens=8))
    assert new == expected_text
    tokens = sequence()
    memory = LocalMemory(model)
    segments = cut_segments(DocumentKey("", ""), tokens, model.config.segment_tokens)
    for segment in segments[:2]:
        memory.accept(model.encode(segment).block)
    items = [Item(str(length), tokens[64 : 64 + length], 4) for length in (12, 20)]
    found, expected = both(model, lambda: score_items(model, items, [memory.view(2), None]))
    for mine, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(mine.longmem.logprobs, theirs.longmem.logprobs, rtol=0, atol=TOLERANCE)
        np.testing.assert_array_equal(mine.reads, theirs.reads)


def test_preparing_changes_nothing(small_model: SmallModel) -> None:
    model = small_model("llama", unsettled=False, **DEFAULT_FORM)
    segment = cut_segments(DocumentKey("", ""), sequence(), model.config.segment_tokens)[0]
    plain, prepared = model.encode(segment), model.encode(segment, prepare=True)
    np.testing.assert_array_equal(plain.state, prepared.state)
    assert len(plain.state) == 1


def change_a_scale(sidenet: SideNet) -> None:
    sidenet.scale[-1] = 1e-3


def change_the_norm(sidenet: SideNet) -> None:
    assert sidenet.norm is not None
    next(sidenet.norm.parameters())[0] += 1e-3


@pytest.mark.parametrize("change", [change_a_scale, change_the_norm])
def test_layers_run_where_a_weight_makes_a_difference(
    change: Callable[[SideNet], None], small_model: SmallModel
) -> None:
    model = small_model("llama", unsettled=False, **DEFAULT_FORM)
    unchanged = score_sequence(model, sequence())
    with torch.no_grad():
        change(sidenet_of(model))
    with layers_run(model) as runs:
        changed = score_sequence(model, sequence())
    assert set(runs) == set(range(len(sidenet_of(model).layers)))
    assert not np.array_equal(changed.logprobs, unchanged.logprobs)


def test_layers_run_where_their_queries_search(small_model: SmallModel) -> None:
    model = small_model("llama", unsettled=False, **{**DEFAULT_FORM, "query": "side"})
    with layers_run(model) as runs:
        score_sequence(model, sequence())
    assert runs


def test_layers_run_for_gradients(small_model: SmallModel) -> None:
    model = small_model("llama", unsettled=False, **DEFAULT_FORM)
    tokens = torch.from_numpy(sequence(32))[None]
    output = model.run_backbone(tokens)
    given = model.sidenet_input(tokens, output, [None])
    model.target_logprobs(model.sidenet(given, model.search), 0, tokens[0, 1:]).sum().backward()
    gradient = sidenet_of(model).scale.grad
    assert gradient is not None
    assert gradient.abs().min() > 0


def test_a_description_counts_the_state_that_is_passed(small_model: SmallModel) -> None:
    model = small_model("llama", unsettled=False, **DEFAULT_FORM)
    segment = cut_segments(DocumentKey("", ""), sequence(), model.config.segment_tokens)[0]
    assert describe(model).segment_bytes == model.encode(segment).num_bytes
    sidenet_of(model).always_runs_layers = True
    assert describe(model).segment_bytes == model.encode(segment).num_bytes
