# SPDX-License-Identifier: Apache-2.0
"""Pass keys: their position, their uniqueness, and exact results when only a few segments are encoded again."""

import random
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from longmem.dtypes import to_tensor
from longmem.errors import ConfigError
from longmem.kv_format import unpack
from longmem.memory import window
from longmem.memory.view import MemoryView
from longmem.model.longmem import LongMem
from longmem.retrieval import create_search, ivf_index
from longmem.retrieval.ivf_search import IvfSearch
from longmem.retrieval.repeats import RepeatIndex
from longmem.synthetic.memory import PARTS, FillerMemory, encode, start_of, tokens_of
from longmem.synthetic.passkey import (
    AFTER,
    QUESTION,
    PasskeyPlan,
    draw_keys,
    passkey_trials,
    place_of,
    shuffled,
)
from longmem.synthetic.vocabulary import sentences_of, words_of
from longmem.text.language_reference import language_reference
from tests.inputs import ALL_LAYERS, DEFAULT_FORM

TEXT = language_reference().text
WORDS = words_of(TEXT, 1000)


@pytest.fixture
def model(small_model: Callable[..., LongMem]) -> LongMem:
    return small_model(**DEFAULT_FORM, segment_tokens=64)


@given(st.integers(0, 10**6), st.sampled_from(["words", "digits"]), st.floats(0, 1))
def test_passkey_key_is_in_text_once_and_never_in_question(seed: int, kind: str, depth: float) -> None:
    plan = PasskeyPlan(key=kind, seed=seed)
    keys = draw_keys(plan, WORDS, random.Random(seed))
    assert len(set(keys)) == plan.choices
    needle = f"{QUESTION} {keys[0]}{AFTER}"
    cut = place_of(depth, 0, len(TEXT), 0)
    assert f"{TEXT[:cut]}{needle}{TEXT[cut:]}".count(keys[0]) == 1
    assert keys[0] not in QUESTION


@given(st.floats(0, 1), st.integers(1, 50), st.integers(0, 2000), st.integers(0, 1))
def test_a_needle_lies_in_the_memory_at_its_depth(depth: float, needle: int, more: int, first: int) -> None:
    length = first + needle + more
    place = place_of(depth, needle, length, first)
    assert first <= place <= length - needle
    assert abs((place - first) - depth * more) <= 0.5 + 1e-9
    assert place_of(0.0, needle, length, first) == first
    assert place_of(1.0, needle, length, first) == length - needle


def test_shuffling_keeps_every_sentence_and_follows_the_seed() -> None:
    once = shuffled(TEXT, 1)
    assert once == shuffled(TEXT, 1)
    assert once != shuffled(TEXT, 2)
    assert sorted(once.split()) == sorted(" ".join(sentences_of(TEXT)).split())


@pytest.mark.parametrize("position", [0, 50, 64, 100, 236])
def test_a_view_with_a_needle_is_that_of_a_memory_encoded_with_it(model: LongMem, position: int) -> None:
    needle = tokens_of(model.tokenizer, "a needle of 20 bytes")
    memory = FillerMemory(model, "some hay, and more of it. ", 256)
    whole = memory.tokens.copy()
    whole[position : position + 20] = needle
    blocks = [encode(model, index, whole[64 * index : 64 * index + 64]) for index in range(4)]
    with memory.with_needle(needle, position, 256) as view:
        np.testing.assert_array_equal(view.tokens.flatten().numpy(), whole)
        expected = torch.cat([to_tensor(block.values) for block in blocks])
        torch.testing.assert_close(view.values[:, :, 0].transpose(0, 1), expected, rtol=0, atol=0)


def test_a_needle_is_found_as_a_repeat_whatever_was_asked_before(model: LongMem) -> None:
    """Check the index of repeats, which a window shares among its views: it must be that of the needle's own tokens."""
    memory = FillerMemory(model, "some hay, and more of it. ", 512)
    for position in (100, 300, 100):
        needle = tokens_of(model.tokenizer, f"a needle of 20 bytes, put at {position}")
        with memory.with_needle(needle, position, 512) as view:
            asked = torch.from_numpy(needle[:-3].astype(np.int64))
            found, expected = (each.find(asked, 1, 2) for each in (view.repeats, RepeatIndex(view.text)))
            for name, part in vars(expected).items():
                assert torch.equal(getattr(found, name), part), name
            assert position + len(needle) - 4 in found.index[found.valid].tolist()
    with memory.with_needle(memory.tokens[:1].copy(), 0, 512) as view:
        assert not view.repeats.find(asked, 1, 2).valid[:, -2:].any(), "a needle was left in the index"


def test_a_needle_is_read_at_every_layer(small_model: Callable[..., LongMem]) -> None:
    model = small_model(**{**ALL_LAYERS, "segment_tokens": 64})
    memory = FillerMemory(model, "some hay, and more of it. ", 256)
    needle, whole = tokens_of(model.tokenizer, "a needle of 20 bytes"), memory.tokens.copy()
    before = layers_of(memory._buffer.view(0, 256))
    whole[100:120] = needle
    blocks = [encode(model, index, whole[64 * index : 64 * index + 64]) for index in range(4)]
    with memory.with_needle(needle, 100, 256) as view:
        found = layers_of(view)
    for part, name in zip(found, ("keys", "values"), strict=True):
        expected = torch.cat([unpack(getattr(block, name), model.config.kv_dtype) for block in blocks])
        torch.testing.assert_close(part, expected, rtol=0, atol=0)
    with memory.with_needle(needle, 100, 125) as view:
        # the view ends inside the segment of the needle
        shorter = layers_of(view)
    for one, other, kept, part in zip(shorter, found, before, layers_of(memory._buffer.view(0, 256)), strict=True):
        torch.testing.assert_close(one, other[:125], rtol=0, atol=0)
        torch.testing.assert_close(part, kept, rtol=0, atol=0)


def layers_of(view: MemoryView) -> tuple[torch.Tensor, torch.Tensor]:
    assert view.layer_keys is not None
    assert view.layer_values is not None
    every = torch.arange(view.num_chunks)
    return view.layer_keys.gather(every), view.layer_values.gather(every)


def test_a_needle_is_found_in_a_memory_that_is_sketched(model: LongMem, monkeypatch: pytest.MonkeyPatch) -> None:
    """Check the bounds: those of the replaced keys would hide the keys of the needle from the search."""
    monkeypatch.setattr(window, "SKETCHED_CHUNKS", 64)
    memory = FillerMemory(model, "some hay, and more of it. ", 512)
    with memory.with_needle(tokens_of(model.tokenizer, "a needle of 20 bytes"), 100, 512) as view:
        assert view.sketch is not None
        torch.testing.assert_close(view.sketch.rows, view.sketch.basis.place_keys(view.chunk_keys))
        asked = view.chunk_keys[:, 100:120].transpose(0, 1).float().contiguous()
        found = create_search("native").search(asked, view.chunk_keys, 1, view.sketch)
        assert found.ids.flatten().tolist() == list(range(100, 120))


def test_a_needle_moves_to_cells_of_its_own_and_moves_none_of_the_filler_s(
    model: LongMem, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Check cells: the needle needs a current cell, and the replaced tokens must not affect later searches."""
    monkeypatch.setattr(ivf_index, "STRETCHES", (128, 256))
    monkeypatch.setattr(ivf_index, "CELL_CHUNKS", 8)
    model.search = IvfSearch()
    expected = FillerMemory(model, "some hay, and more of it. ", 512)._buffer.view(0, 512).cells
    assert expected is not None
    memory = FillerMemory(model, "some hay, and more of it. ", 512)
    for position in (100, 300):
        with memory.with_needle(tokens_of(model.tokenizer, "a needle of 20 bytes"), position, 512) as view:
            assert view.cells is not None
            for (first, found), (_, filler) in zip(view.cells.stretches, expected.stretches, strict=True):
                assert torch.equal(found.means, filler.means)
                nearest = torch.cdist(view.chunk_keys[:, first : first + 256].float(), found.means).argmin(dim=2)
                assert torch.equal(found.cell_of, nearest)
                assert torch.equal(found.cell_of, filler.cell_of) == (not first <= position < first + 256)


def test_a_needle_leaves_nothing_behind(model: LongMem) -> None:
    memory = FillerMemory(model, "some hay, and more of it. ", 256)
    with memory.with_needle(memory.tokens[:1].copy(), 0, 256) as view:
        before = {name: getattr(view, name).clone() for name in PARTS}
    with pytest.raises(RuntimeError), memory.with_needle(tokens_of(model.tokenizer, "needle"), 61, 256):
        raise RuntimeError
    with memory.with_needle(memory.tokens[:1].copy(), 0, 256) as view:
        for name, part in before.items():
            torch.testing.assert_close(getattr(view, name), part, rtol=0, atol=0)


def test_a_filler_is_repeated_by_segments_and_begins_like_a_document(model: LongMem) -> None:
    memory = FillerMemory(model, "x" * 100, 1000)
    start = start_of(model.tokenizer)
    assert len(memory.tokens) == 1024
    np.testing.assert_array_equal(memory.tokens[: len(start)], start)
    np.testing.assert_array_equal(memory.tokens[64:128], memory.tokens[960:])


def test_trials_cover_every_length_and_depth_and_follow_the_seed(small_model: Callable[..., LongMem]) -> None:
    model = small_model(**DEFAULT_FORM, segment_tokens=128)
    plan = PasskeyPlan(lengths=(256, 512), depths=(0.0, 1.0), trials=2, choices=3)
    trials = list(passkey_trials(model, TEXT[:5000], plan))
    assert [(trial.memory_tokens, trial.depth) for trial in trials] == [
        (length, depth) for length in (256, 512) for depth in (0.0, 1.0) for _ in range(2)
    ]
    assert trials == list(passkey_trials(model, TEXT[:5000], plan))
    other = PasskeyPlan(lengths=(256, 512), depths=(0.0, 1.0), trials=2, choices=3, seed=1)
    assert trials != list(passkey_trials(model, TEXT[:5000], other))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"depths": (0.5, 1.5)}, "depths must lie between 0"),
        ({"depths": (-0.1,)}, "depths must lie between 0"),
        ({"depths": (float("nan"),)}, "depths must lie between 0"),
        ({"lengths": ()}, "lengths must be"),
        ({"lengths": (0,)}, "lengths must be"),
        ({"trials": 0}, "trials must be"),
        ({"choices": 1}, "choices must be"),
        ({"key": "runes"}, "words or digits"),
    ],
)
@pytest.mark.usefixtures("as_users_run")
def test_a_plan_that_cannot_be_asked_is_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        PasskeyPlan(**settings)  # type: ignore[arg-type]


def test_a_memory_shorter_than_the_needle_is_refused(model: LongMem) -> None:
    with pytest.raises(ConfigError, match="does not fit a memory of 16"):
        list(passkey_trials(model, TEXT[:5000], PasskeyPlan(lengths=(16,))))


def test_a_memory_that_ends_inside_a_chunk_is_refused(small_model: Callable[..., LongMem]) -> None:
    with pytest.raises(ConfigError, match="multiple of chunk_tokens=4"):
        list(passkey_trials(small_model(segment_tokens=64), TEXT[:5000], PasskeyPlan(lengths=(254,))))
