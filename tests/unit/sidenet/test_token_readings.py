# SPDX-License-Identifier: Apache-2.0
"""Readings of tokens: against dictionaries of places, and against the probability that it explains."""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch

from longmem.memory.context import LocalMemory
from longmem.memory.view import MemoryView
from longmem.model import forward
from longmem.model.longmem import LongMem
from longmem.retrieval.repeats import LONGEST
from longmem.sidenet.block_choice import tokens_to_read
from longmem.sidenet.token_readings import PlacesRead, token_readings
from longmem.text.segments import cut_segments
from longmem.types import PLACES, DocumentKey, Segment, SegmentScore, TokenReadings
from tests.inputs import EVERY_FORM
from tests.unit.search.test_repeats import naive_run
from tests.unit.sidenet.test_copy_head import (
    TOLERANCE,
    Case,
    RandomView,
    by_word,
    case_of,
    every_form,
    naive_places,
    text_of,
    with_and_without_repeats,
)

SmallModel = Callable[..., LongMem]

WITHOUT_COPIES = {"paper": EVERY_FORM["paper"], "joint": {**EVERY_FORM["default"], "copy_head": False}}


def readings_of(case: Case, targets: torch.Tensor) -> TokenReadings:
    copies, index = case.copies(), case.reading.places.index.flatten(1)
    if copies.repeated is not None:
        index = torch.cat([index, copies.repeated.index], dim=1)
    read = PlacesRead(index, copies.weights, copies.share, continued=True)
    return token_readings(read, None, case.view, case.context, targets, torch.zeros(len(targets)))


def naive_positions(view: MemoryView) -> list[int]:
    """Return the document position of each place, and that of the token after the memory."""
    found = []
    for start, length in zip(view.starts.tolist(), view.lengths.tolist(), strict=True):
        found += range(start, start + length)
    return [*found, view.end_token]


def check_places(readings: TokenReadings, token: int, expected: dict[int, float], positions: list[int]) -> list[int]:
    """Check positions and weights against the weight of each place; return the places."""
    heaviest = sorted(expected.values(), reverse=True)[:PLACES]
    kept = readings.places[token] >= 0
    assert readings.weights[token][kept].tolist() == pytest.approx(heaviest, abs=TOLERANCE)
    assert not readings.weights[token][~kept].any()
    places = [positions.index(position) for position in readings.places[token][kept].tolist()]
    assert len(set(places)) == len(places), "a place that was found several times is one place"
    # places of equal weight may come in any order
    for place, weight in zip(places, readings.weights[token][kept].tolist(), strict=True):
        assert weight == pytest.approx(expected[place], abs=TOLERANCE)
    return places


@every_form
@with_and_without_repeats
@pytest.mark.parametrize("quoted", [False, True])
def test_places_and_weights_are_those_of_the_dictionary(
    form: tuple[str, ...], repeats: int, quoted: bool, random_view: RandomView
) -> None:
    """Chunks of up to three tokens, of which one in the middle is short; some places are found by several heads."""
    case = case_of(random_view, form, before=0, quoted=quoted, copy_repeats=repeats)
    targets = torch.tensor([0, 1, 2, 0])
    readings = readings_of(case, targets)
    expected, logits = naive_places(case)
    past, text = text_of(case.view), text_of(case.view) + case.context.tolist()
    # positions of the copied tokens, which come after the places
    positions = naive_positions(case.view)[1:]
    assert readings.places.shape == readings.weights.shape == readings.runs.shape == (4, PLACES)
    for token, target in enumerate(targets.tolist()):
        places = check_places(readings, token, expected[token], positions)
        runs = [naive_run(text, place, len(past) + token, LONGEST) for place in places]
        assert readings.runs[token][: len(places)].tolist() == runs
        copied = by_word(expected[token], text)[target]
        assert readings.copied[token] == pytest.approx(copied, abs=TOLERANCE)
        assert readings.copy_share[token] == pytest.approx(1 / (1 + np.exp(-logits[token])), abs=TOLERANCE)
    assert max(len(each) for each in expected) > PLACES, "else nothing is left out"


def test_fewer_places_than_are_kept_are_marked(random_view: RandomView) -> None:
    view = random_view(2, 8, chunk=1, lengths=[1] * 6)
    read = PlacesRead(torch.tensor([[3, 0, 3, 0]]), torch.tensor([[0.5, 0.25, 0.25, 0.0]]), torch.ones(1), True)
    readings = token_readings(read, None, view, torch.tensor([1]), torch.tensor([2]), torch.zeros(1))
    starts = view.starts.tolist()
    assert readings.places.tolist() == [[starts[4], starts[1], -1, -1]]
    assert readings.weights.tolist() == [[0.75, 0.25, 0, 0]]
    assert readings.runs[0, 2:].tolist() == [0, 0]


def scored(model: LongMem, keep_readings: bool = True) -> list[tuple[Segment, MemoryView | None, SegmentScore]]:
    """Score a text of few letters, which repeats, and return each segment with what it could read."""
    random = np.random.default_rng(5)
    text = "".join(random.choice(list("abc "), 150))
    size = model.config.segment_tokens
    segments = cut_segments(DocumentKey("", "text"), model.tokenizer.sequence(text), size, keep_readings=keep_readings)
    memory, found = LocalMemory(model), []
    for segment in segments:
        encoded, view = model.encode(segment), memory.view(segment.index)
        score = model.score_segment(segment, encoded.block.keys, encoded.state, view)
        found.append((segment, view, score))
        memory.accept(encoded.block)
    return found


def output_of(model: LongMem, segment: Segment, view: MemoryView | None) -> Any:
    tokens = torch.tensor(segment.tokens)[None]
    given = model.sidenet_input(tokens, model.run_backbone(tokens), [view])
    return model.sidenet(given, model.search)


@pytest.mark.parametrize("form", EVERY_FORM)
def test_share_and_copies_explain_the_probability(form: str, small_model: SmallModel) -> None:
    """Mix the model's own probability with the copied one, in float64: this is the score of the token."""
    model = small_model(**EVERY_FORM[form])
    for segment, view, score in scored(model):
        assert score.readings is not None
        read, targets = score.readings, torch.tensor(segment.targets)
        with torch.no_grad():
            hidden = output_of(model, segment, view).hidden[0]
            own = model.backbone.target_logprobs(hidden, targets).double().exp().numpy()
        np.testing.assert_allclose(np.exp(read.uncopied.astype(np.float64)), own, atol=1e-6)
        share = read.copy_share.astype(np.float64)
        mixed = (1 - share) * own + (share * read.copied if model.config.copy_head else 0.0)
        np.testing.assert_allclose(np.exp(score.logprobs.astype(np.float64)), mixed, atol=1e-6)
        if view is None:
            assert not read.copy_share.any()
            assert (read.places == -1).all()
            continue
        assert (read.copy_share > 0).all() == model.config.copy_head
        assert (read.places.max(axis=1) >= 0).all()
        assert (read.places <= segment.start_token).all(), "the newest place is the segment's first token"
        assert (np.diff(read.weights, axis=1) <= 0).all()
        assert (read.weights.sum(axis=1) <= 1 + 1e-6).all()


@pytest.mark.parametrize("form", WITHOUT_COPIES)
def test_without_a_copy_head_the_places_are_those_of_attention(form: str, small_model: SmallModel) -> None:
    model = small_model(**WITHOUT_COPIES[form])
    heads = model.backbone.shape.heads
    segment, view, score = scored(model)[-2]
    assert view is not None
    assert score.readings is not None
    with torch.no_grad():
        reading = output_of(model, segment, view).readings[0]
        scale = model.sidenet.reader._scale
        scales = [scale] * heads if model.config.keys == "raw" else model.sidenet.reader.log_scale.exp().tolist()
    group = heads // reading.products.shape[1]
    continued = int(model.config.values == "next")
    positions = naive_positions(view)[continued:]
    for token in range(len(segment.targets)):
        expected: dict[int, float] = defaultdict(float)
        for head in range(heads):
            valid = reading.places.valid[token, head // group]
            places = reading.places.index[token, head // group][valid].tolist()
            products = reading.products[token, head // group][valid].double() * scales[head]
            for place, weight in zip(places, products.softmax(dim=0).tolist(), strict=True):
                expected[place] += weight / heads
        check_places(score.readings, token, expected, positions)


def test_blocks_are_what_every_layer_reads(small_model: SmallModel) -> None:
    model = small_model(**EVERY_FORM["all layers"])
    some_are_chosen = False
    for segment, view, score in scored(model):
        assert score.readings is not None
        blocks = score.readings.blocks.tolist()
        if view is None:
            assert blocks == []
            continue
        index = tokens_to_read(view, model.config)
        assert index is not None
        assert [each for first, end in blocks for each in range(first, end)] == view.starts[index].tolist()
        near = min(model.config.near_tokens, view.num_tokens)
        assert blocks[-1][0] <= segment.start_token - near
        assert blocks[-1][1] == segment.start_token
        # intervals that touch are one
        assert all(first[1] < second[0] for first, second in pairwise(blocks))
        some_are_chosen |= len(blocks) > 1
    assert some_are_chosen


def test_a_sidenet_reads_no_blocks(small_model: SmallModel) -> None:
    for _, _, score in scored(small_model(**EVERY_FORM["default"])):
        assert score.readings is not None
        assert score.readings.blocks.shape == (0, 2)


@pytest.mark.parametrize("form", EVERY_FORM)
def test_what_is_not_asked_for_is_not_computed(
    form: str, small_model: SmallModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = small_model(**EVERY_FORM[form])
    asked = [score for _, _, score in scored(model)]
    monkeypatch.setattr(forward, "token_readings", lambda *_: pytest.fail("readings were computed"))
    for expected, (_, _, score) in zip(asked, scored(model, keep_readings=False), strict=True):
        assert score.readings is None
        assert np.array_equal(score.logprobs, expected.logprobs)
        assert replace(score, logprobs=expected.logprobs, retrieval=expected.retrieval) == replace(
            expected, readings=None
        )
