# SPDX-License-Identifier: Apache-2.0
"""Reading at every layer: against plain transformers, whose cache holds the same tokens at the same positions."""

import math
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, DynamicCache

from longmem import LongMem, MemoryStore
from longmem.backbone.families import FAMILIES
from longmem.backbone.small import SMALL_CONFIGS, save_small_backbone
from longmem.config import BlockChoice
from longmem.errors import ConfigError
from longmem.model.source import ModelSource
from longmem.retrieval import create_search
from longmem.sidenet import block_choice
from longmem.sidenet.block_choice import (
    PROMPT_TOKENS,
    Asking,
    BlockRow,
    chosen_blocks,
    score_by_both,
    score_by_overlap,
    tokens_to_read,
)
from longmem.text.segments import cut_segments
from longmem.types import DocumentKey

MOVABLE = sorted(name for name, family in FAMILIES.items() if not family.keys_have_positions)
SETTINGS = {
    "memory_layers": "all",
    "segment_tokens": 16,
    "memory_tokens": 96,
    "top_k": 8,
    "near_tokens": 16,
    "read_blocks": 3,
    "block_tokens": 4,
    "kv_dtype": "float32",
}
NUM_TOKENS = 90
TOLERANCE = 2e-4
"""float32 sums in another order, over four layers with weights of magnitude 0.15."""
KEY = DocumentKey("default", "text")


def open_model(folder: Path, family: str = "llama", **settings: object) -> LongMem:
    path = folder / family
    if not path.exists():
        save_small_backbone(path, family)
    return LongMem.from_backbone(path, **{**SETTINGS, **settings})


def sequence_of(model: LongMem, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    # few different tokens, so that places repeat
    return np.concatenate([[model.tokenizer.start_token], random.integers(0, 12, NUM_TOKENS)]).astype(np.int32)


def naive_logprobs(folder: Path, model: LongMem, sequence: np.ndarray) -> np.ndarray:
    """Score with plain transformers: every stored token is read again, alone in its segment, at its new position."""
    plain = AutoModelForCausalLM.from_pretrained(folder).eval()
    segments = cut_segments(KEY, sequence, model.config.segment_tokens)
    memory = _memory(model, segments)
    scores = []
    for segment in segments:
        view = memory[segment.index]
        places = None if view is None else tokens_to_read(view, model.config)
        cache = naive_cache(plain, segments, [] if places is None else view.starts[places].tolist())
        own = torch.tensor(segment.tokens.astype(np.int64))[None]
        with torch.no_grad():
            logits = plain(own) if segment.index == 0 else plain(own, past_key_values=cache)
        scores.append(
            logits.logits[0, : len(segment.targets)]
            .log_softmax(dim=1)
            .gather(1, torch.tensor(segment.targets.astype(np.int64))[:, None])[:, 0]
        )
    return torch.cat(scores).numpy()


def naive_cache(plain: torch.nn.Module, segments: list, positions: list[int]) -> DynamicCache:
    """Return a cache of the start token and of the tokens at `positions` of a text, one after the other."""
    start, size, views = int(segments[0].tokens[0]), len(segments[0].tokens), {}
    keys, values = [], []
    for place, position in enumerate(positions):
        # a cache of one token at its new position, from a forward over its own segment with shifted positions
        home = segments[position // size]
        own = ([] if home.index == 0 else [start]) + home.tokens.tolist()
        offset = position - home.start_token + (home.index > 0)
        shift = 1 + place - offset
        if (home.index, shift) not in views:
            views[home.index, shift] = _cache_at(plain, own, shift)
        cached = views[home.index, shift]
        keys.append([layer.keys[:, :, offset : offset + 1] for layer in cached])
        values.append([layer.values[:, :, offset : offset + 1] for layer in cached])
    cache = DynamicCache()
    for index, layer in enumerate(_cache_at(plain, [start], 0)):
        cache.update(
            torch.cat([layer.keys, *(key[index] for key in keys)], dim=2),
            torch.cat([layer.values, *(value[index] for value in values)], dim=2),
            index,
        )
    return cache


def _cache_at(plain: torch.nn.Module, tokens: list[int], shift: int) -> list:
    """Return the layers of a cache of tokens whose first one is at position `shift`, which may be negative.

    Attention depends on differences of positions only, so that values are those of the unshifted text.
    """
    positions = torch.arange(len(tokens))[None] + shift
    with torch.no_grad():
        output = plain(torch.tensor(tokens)[None], position_ids=positions, past_key_values=DynamicCache())
    return output.past_key_values.layers


def _memory(model: LongMem, segments: list) -> list:
    from longmem.memory.context import LocalMemory

    memory, views = LocalMemory(model), []
    for segment in segments:
        views.append(memory.view(segment.index))
        memory.accept(model.encode(segment).block)
    return views


# sliding windows and ALiBi: tests/unit/backbone/test_cache_assembly.py compares their caches
PLAIN = [name for name in MOVABLE if name != "bloom" and "sliding_window" not in SMALL_CONFIGS[name]]


@pytest.mark.parametrize("family", PLAIN)
def test_scores_equal_plain_attention_over_the_concatenated_cache(tmp_path: Path, family: str) -> None:
    model = open_model(tmp_path, family, copy_head=False)
    sequence = sequence_of(model)
    expected = naive_logprobs(tmp_path / family, model, sequence)
    found = np.concatenate([score.logprobs for score in _scores(model, sequence)])
    np.testing.assert_allclose(found, expected, atol=TOLERANCE)


def _scores(model: LongMem, sequence: np.ndarray) -> list:
    from longmem.scoring.text import score_segments

    return list(score_segments(model, sequence))


def test_without_memory_it_is_the_backbone(tmp_path: Path) -> None:
    model = open_model(tmp_path, memory_tokens=0)
    sequence = sequence_of(model)
    for segment, score in zip(cut_segments(KEY, sequence, 16), _scores(model, sequence), strict=True):
        np.testing.assert_allclose(score.logprobs, model.encode(segment).backbone_logprobs, atol=TOLERANCE)


def test_without_memory_only_the_segment_and_its_sink_must_fit(tmp_path: Path) -> None:
    """The small backbone has 128 positions, and the sizes of the memory that is not read take 28 of them."""
    model = open_model(tmp_path, memory_tokens=0, segment_tokens=127)
    sequence = np.tile(sequence_of(model), 3)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "llama").eval()
    second = model.encode(cut_segments(KEY, sequence, 127)[1])
    own = torch.tensor(np.concatenate([sequence[:1], sequence[127:254]])[None].astype(np.int64))
    with torch.no_grad():
        expected = torch.log_softmax(plain(own).logits[0, 1:], dim=-1)
    own_targets = torch.tensor(sequence[128:255].astype(np.int64))
    expected = expected[torch.arange(127), own_targets].numpy()
    np.testing.assert_allclose(second.backbone_logprobs, expected, atol=TOLERANCE)
    with pytest.raises(ConfigError, match=r"segment with its sink must fit .* got 129 = 1 \+ segment"):
        open_model(tmp_path, memory_tokens=0, segment_tokens=128)
    with pytest.raises(ConfigError, match="segment with its memory must fit the 128 positions"):
        open_model(tmp_path, segment_tokens=127)


def test_the_sink_is_in_front_of_every_segment_but_the_first(tmp_path: Path) -> None:
    model = open_model(tmp_path)
    sequence = sequence_of(model)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "llama").eval()
    first, second = cut_segments(KEY, sequence, 16)[:2]
    for tokens, segment in ((first.tokens, first), (np.concatenate([sequence[:1], second.tokens]), second)):
        with torch.no_grad():
            logits = plain(torch.tensor(tokens.astype(np.int64))[None]).logits[0, -16:]
        expected = logits.log_softmax(dim=1).gather(1, torch.tensor(segment.targets.astype(np.int64))[:, None])[:, 0]
        np.testing.assert_allclose(model.encode(segment).backbone_logprobs, expected.numpy(), atol=TOLERANCE)


def test_a_token_does_not_depend_on_later_ones(tmp_path: Path) -> None:
    model = open_model(tmp_path)
    sequence = sequence_of(model)
    changed = sequence.copy()
    changed[70:] = (changed[70:] + 5) % 12
    before, after = (np.concatenate([score.logprobs for score in _scores(model, each)]) for each in (sequence, changed))
    np.testing.assert_allclose(before[:69], after[:69], atol=TOLERANCE)
    assert abs(before[70:] - after[70:]).max() > 0.01


def test_every_layer_reads_the_near_past_and_chosen_blocks_once(tmp_path: Path) -> None:
    model = open_model(tmp_path)
    view = _memory(model, cut_segments(KEY, sequence_of(model), 16))[5]
    assert view is not None
    places = tokens_to_read(view, model.config)
    assert places is not None
    assert places.tolist() == sorted(set(places.tolist()))
    assert places[-16:].tolist() == list(range(64, 80))
    assert len(places) == 16 + 3 * 4
    first = chosen_blocks(view, model.config, 64)
    assert first is not None
    assert (first % 4).tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("engine", "searched_keys", "at_once"),
    [
        pytest.param("torch", 32, 5, id="compared, five tokens at a time"),
        pytest.param("torch", 32, 256, id="compared"),
        pytest.param("native", 32, 256, id="searched"),
        pytest.param("native", 12, 256, id="searched, some compared"),
        pytest.param("native", 4, 5, id="searched, all compared"),
        pytest.param("ivf", 32, 256, id="searched by an approximate engine"),
    ],
)
def test_blocks_have_the_most_votes_of_the_last_segment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engine: str, searched_keys: int, at_once: int
) -> None:
    monkeypatch.setattr(block_choice, "ASKING_AT_ONCE", at_once)
    monkeypatch.setattr(block_choice, "SEARCHED_KEYS", searched_keys)
    model = open_model(tmp_path, read_blocks=5)
    view = _memory(model, cut_segments(KEY, sequence_of(model), 16))[5]
    assert view is not None
    keys = view.keys[:, :, 0].transpose(0, 1).flatten(1).double().numpy()
    votes = np.zeros(16)
    for asking in keys[64:80]:
        closeness = [max(asking @ keys[place] for place in range(first, first + 4)) for first in range(0, 64, 4)]
        for block in np.argsort(closeness)[-8:]:
            votes[block] += max(closeness[block], 0) ** 4
    first = chosen_blocks(view, model.config, 64, search=create_search(engine))
    assert first is not None
    assert first.tolist() == sorted(4 * np.argsort(votes)[-5:])


@pytest.mark.parametrize("engine", ["torch", "native", "faiss"])
def test_of_equal_blocks_the_oldest_are_chosen(tmp_path: Path, engine: str) -> None:
    """Read a text of equal segments of one block each, more than a token votes for."""
    model = open_model(tmp_path, segment_tokens=4, near_tokens=4, read_blocks=3)
    sequence = sequence_of(model)
    sequence[4:] = np.resize(sequence[4:8], len(sequence) - 4)
    view = _memory(model, cut_segments(KEY, sequence, 4))[20]
    assert view is not None
    first = chosen_blocks(view, model.config, 76, search=create_search(engine))
    assert first is not None
    # the first block begins with the start token
    assert set(first.tolist()) <= set(range(4, 4 * 9, 4))
    compared = chosen_blocks(view, model.config, 76)
    assert compared is not None
    assert first.tolist() == compared.tolist()


def test_a_segment_chooses_its_blocks_by_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail where keys are compared although the engine skips products, and the closest keys are in enough blocks."""
    monkeypatch.setattr(block_choice, "SEARCHED_KEYS", 64)

    def compared(*_: object) -> None:
        raise AssertionError("all keys are compared")

    monkeypatch.setattr(block_choice, "_compared_matches", compared)
    sequence = np.concatenate([[0], np.random.default_rng(0).permutation(200)[:NUM_TOKENS]]).astype(np.int32)
    for settings in ({}, {"one_pass": True}):
        model = replace_search(open_model(tmp_path, **settings), "native")
        sequence[0] = model.tokenizer.start_token
        assert np.isfinite(np.concatenate([score.logprobs for score in _scores(model, sequence)])).all()
    with pytest.raises(AssertionError, match="all keys are compared"):
        _scores(replace_search(open_model(tmp_path), "torch"), sequence)


def replace_search(model: LongMem, engine: str) -> LongMem:
    model.search = create_search(engine)
    return model


def test_the_best_block_is_last_with_its_neighbours() -> None:
    best = torch.tensor([7, 2, 12, 6, 3, 9])
    assert block_choice.best_run_last(best).tolist() == [9, 12, 2, 3, 6, 7]


@pytest.mark.parametrize("continues", [True, False])
@pytest.mark.parametrize("ahead", [0, 2, 16])
@pytest.mark.parametrize("engine", ["torch", "native"])
def test_a_prompt_asks_for_blocks_with_its_newest_tokens(
    tmp_path: Path, engine: str, ahead: int, continues: bool
) -> None:
    """A match in the last tokens of a block votes for the next block as well: what follows it is wanted too.

    The best block is read last, and by a prompt of its own behind the near past.
    """
    model = open_model(tmp_path, read_blocks=5)
    view = _memory(model, cut_segments(KEY, sequence_of(model), 16))[5]
    assert view is not None
    random = torch.Generator().manual_seed(0)
    asking = torch.randn((PROMPT_TOKENS + 30, *view.keys[:, 0, 0].shape), generator=random)
    num_blocks = 16 if continues else 20
    keys = view.keys[:, : 4 * num_blocks, 0].transpose(0, 1).flatten(1).double().numpy()
    votes = np.zeros(num_blocks + 1)
    for query in asking[30:].flatten(1).double().numpy():
        closeness = (keys @ query).reshape(num_blocks, 4)
        for block in np.argsort(closeness.max(axis=1))[-8:]:
            vote = max(closeness[block].max(), 0) ** 4
            votes[block] += vote
            if closeness[block].argmax() >= 4 - ahead:
                votes[block + 1] += vote
    prompt = replace(Asking.prompt(torch.arange(len(asking)), asking, continues=continues), ahead=ahead)
    places = tokens_to_read(view, model.config, prompt, create_search(engine))
    assert places is not None
    # the near past is memory like any other for a prompt of its own
    best = np.argsort(votes[:num_blocks])[-5:].tolist()
    runs: list[list[int]] = []
    for block in sorted(best):
        if runs and runs[-1][-1] == block - 1:
            runs[-1].append(block)
        else:
            runs.append([block])
    runs.sort(key=lambda run: max(map(best.index, run)))
    blocks = [4 * block + offset for run in runs for block in run for offset in range(4)]
    near = list(range(64, 80))
    assert places.tolist() == (blocks + near if continues else near + blocks)


@pytest.mark.parametrize("ahead", [0, 3, 16])
def test_overlap_weighs_tokens_by_how_few_blocks_hold_them(tmp_path: Path, ahead: int) -> None:
    model = open_model(tmp_path)
    view = _memory(model, cut_segments(KEY, sequence_of(model), 16))[5]
    assert view is not None
    asking = replace(Asking.near_past(view, model.config), ahead=ahead)
    found = score_by_overlap(BlockRow(view, 0, 16, 4), asking)
    text = view.text.tolist()
    blocks = [Counter(text[max(0, start - min(ahead, 4)) : start + 4]) for start in range(0, 64, 4)]
    held = Counter(token for block in blocks for token in block)
    idf = {token: math.log(17 / (1 + held[token])) for token in text}

    def vector(counts: Counter) -> dict[int, float]:
        return {token: (1 + math.log(count)) * idf[token] for token, count in counts.items() if token in held}

    asked = vector(Counter(text[64:80]))
    for block, score in zip(blocks, found.tolist(), strict=True):
        ours = vector(block)
        product = sum(weight * asked.get(token, 0.0) for token, weight in ours.items())
        lengths = math.hypot(*ours.values()) * math.hypot(*asked.values())
        assert score == pytest.approx(product / lengths, abs=1e-12)


@pytest.mark.parametrize("choice", get_args(BlockChoice))
def test_every_choice_of_blocks_reads_blocks_and_no_later_token(tmp_path: Path, choice: str) -> None:
    model = open_model(tmp_path, block_choice=choice)
    before = sequence_of(model)
    after = before.copy()
    after[70:] = (after[70:] + 1) % 200
    segments, changed = (cut_segments(KEY, each, 16) for each in (before, after))
    view, other = _memory(model, segments)[4], _memory(model, changed)[4]
    assert view is not None
    assert other is not None
    first = chosen_blocks(view, model.config, 48)
    assert first is not None
    assert len(set(first.tolist())) == 3
    assert torch.equal(first, chosen_blocks(other, model.config, 48))


def test_blocks_of_equal_tokens_are_all_alike(tmp_path: Path) -> None:
    """A text of one token has no rare ones: every block has score 0, none is NaN."""
    model = open_model(tmp_path)
    view = _memory(model, cut_segments(KEY, np.full(81, 7, np.int32), 16))[5]
    assert view is not None
    blocks, asking = BlockRow(view, 0, 16, 4), Asking.near_past(view, model.config)
    assert score_by_overlap(blocks, asking).tolist() == [0.0] * 16
    assert bool(score_by_both(blocks, asking).isfinite().all())


def _prompts(model: LongMem) -> list[np.ndarray]:
    """Return texts of a prompt of 7 tokens and 4 more; the first two share their prompt."""
    first, second, third = (sequence_of(model, seed)[1:12] for seed in (3, 4, 5))
    return [first, np.concatenate([first[:7], third[7:]]), second]


@pytest.mark.parametrize(("begins", "continues"), [(False, False), (False, True), (True, False)])
def test_what_is_read_for_a_prompt_equals_plain_attention(tmp_path: Path, begins: bool, continues: bool) -> None:
    """A prompt that begins with the start token has the memory between it and its other tokens."""
    from longmem.scoring.batch import Item, score_items

    model = open_model(tmp_path, copy_head=False)
    segments = cut_segments(KEY, sequence_of(model), 16)
    view = _memory(model, segments)[5]
    assert view is not None
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "llama").eval()
    start = segments[0].tokens[:begins]
    texts = _prompts(model)
    items = [Item("text", np.concatenate([start, tokens]), len(start) + 7, continues=continues) for tokens in texts]
    chosen = []
    for tokens, score in zip(texts, score_items(model, items, [view] * 3, keep_readings=True), strict=True):
        own = torch.tensor(tokens.astype(np.int64))[None]
        keys = model.key_space.transform(model.searched(model.run_backbone(own[:, :7]).keys)[0])
        places = tokens_to_read(view, model.config, Asking.prompt(own[0, :7], keys, continues=continues))
        assert places is not None
        chosen.append(places.tolist())
        with torch.no_grad():
            logits = plain(own[:, :-1], past_key_values=naive_cache(plain, segments, view.starts[places].tolist()))
        expected = logits.logits[0, 6:].log_softmax(dim=1).gather(1, own[0, 7:, None])[:, 0]
        np.testing.assert_allclose(score.longmem.logprobs, expected.numpy(), atol=TOLERANCE)
        assert score.readings is not None
        # intervals name a token once, even one that is read twice
        named = [position for first, end in score.readings.blocks.tolist() for position in range(first, end)]
        assert named == sorted(set(view.starts[places].tolist()))
    assert chosen[0] == chosen[1] != chosen[2]


def test_prompts_read_the_same_alone_together_and_step_by_step(tmp_path: Path) -> None:
    from longmem.memory.context import FixedMemory
    from longmem.scoring.batch import Item, score_items
    from longmem.scoring.generate import Decoder

    model = open_model(tmp_path)
    view = _memory(model, cut_segments(KEY, sequence_of(model), 16))[5]
    items = [Item("text", tokens, 7) for tokens in _prompts(model)]
    together = score_items(model, items, [view] * 3)
    for item, found in zip(items, together, strict=True):
        alone = score_items(model, [item], [view])[0]
        np.testing.assert_allclose(found.longmem.logprobs, alone.longmem.logprobs, atol=TOLERANCE)
        decoder, fed, steps = Decoder(model, None, FixedMemory(view), prompt=True), item.tokens[:7].tolist(), []
        for target in item.tokens[7:].tolist():
            steps.append(float(decoder.feed(fed).log_softmax(dim=0)[target]))
            fed = [target]
        np.testing.assert_allclose(steps, alone.longmem.logprobs, atol=TOLERANCE)


def test_a_prompt_of_several_segments_asks_with_its_last_one(tmp_path: Path) -> None:
    """Full segments of a prompt are read as those of a document; what follows the prompt too."""
    from longmem.scoring.generate import Decoder

    model = open_model(tmp_path, read_blocks=1)
    sequence = sequence_of(model).tolist()
    prompt, document = Decoder(model, None, prompt=True), Decoder(model, None)
    ends = [prompt.feed(sequence[:70]), document.feed(sequence[:70])]
    assert (ends[0] - ends[1]).abs().max() > 0.001
    for token in sequence[70:]:
        ends = [prompt.feed([token]), document.feed([token])]
    # 91 tokens: the sixth segment began behind the prompt
    torch.testing.assert_close(*ends, rtol=0, atol=TOLERANCE)


def test_a_store_gives_the_scores_of_a_private_memory(tmp_path: Path) -> None:
    model = open_model(tmp_path, kv_dtype="float16")
    text = "the cat sat on the mat and the dog sat on the cat, " * 3
    alone = model.score(text)
    with MemoryStore.open(tmp_path / "memory.lance") as store:
        stored = model.score(text, store.document("text"))
        block = store.read(DocumentKey("default", "text"), 0, 1)[0]
        assert block.keys.shape == (16, 4 * 2, 8)
    assert np.array_equal(alone.logprobs, stored.logprobs)


def test_decoding_step_by_step_gives_the_scores(tmp_path: Path) -> None:
    from longmem.scoring.generate import Decoder

    model = open_model(tmp_path, copy_head=False)
    sequence = sequence_of(model)[:60]
    decoder = Decoder(model, None)
    found = []
    for token, target in zip(sequence.tolist(), sequence[1:].tolist(), strict=False):
        found.append(float(decoder.feed([token]).log_softmax(dim=0)[target]))
    expected = np.concatenate([score.logprobs for score in _scores(model, sequence)])
    np.testing.assert_allclose(found, expected, atol=TOLERANCE)


def test_items_that_begin_with_the_sink_have_their_memory_behind_it(tmp_path: Path) -> None:
    from longmem.scoring.batch import Item, score_items

    # the near past alone: the start token, which asks for nothing, chooses no block
    model = open_model(tmp_path, copy_head=False, read_blocks=0)
    view = _memory(model, cut_segments(KEY, sequence_of(model), 16))[4]
    tokens = sequence_of(model, seed=3)[:9]
    with_start, without = (
        Item(name, each, 5 + extra) for name, each, extra in (("start", tokens, 1), ("none", tokens[1:], 0))
    )
    scores = score_items(model, [with_start, without, with_start], [view, view, None])
    np.testing.assert_allclose(scores[0].longmem.logprobs, scores[1].longmem.logprobs, atol=TOLERANCE)
    np.testing.assert_allclose(scores[2].longmem.logprobs, scores[0].backbone.logprobs, atol=TOLERANCE)
    assert abs(scores[0].longmem.logprobs - scores[2].longmem.logprobs).max() > 0.001


def test_it_is_saved_without_layers_and_opens_again(tmp_path: Path) -> None:
    model = open_model(tmp_path)
    sequence = sequence_of(model)
    model.save_pretrained(tmp_path / "saved")
    again = ModelSource(str(tmp_path / "saved")).open()
    assert (tmp_path / "saved" / "sidenet.safetensors").stat().st_size < 60_000
    assert again.fingerprint == model.fingerprint
    for first, second in zip(_scores(model, sequence), _scores(again, sequence), strict=True):
        assert np.array_equal(first.logprobs, second.logprobs)


def test_what_cannot_be_read_so_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="rotary or ALiBi"):
        open_model(tmp_path, "gpt2")
    with pytest.raises(ConfigError, match="128 positions of backbone llama, got 133"):
        open_model(tmp_path, near_tokens=104)
    with pytest.raises(ConfigError, match="chunk_tokens=1"):
        open_model(tmp_path, chunk_tokens=4)
    with pytest.raises(ConfigError, match="memory_layer must be below"):
        open_model(tmp_path, memory_layer=4)


def test_fingerprints_of_one_layer_all_layers_and_sinks_differ(tmp_path: Path) -> None:
    every = open_model(tmp_path).fingerprint
    one = open_model(tmp_path, memory_layers="one").fingerprint
    assert replace(every, num_layers=1, sink=False, memory_layer=one.memory_layer) == one
    assert open_model(tmp_path, sink=False).fingerprint != every


def test_default_sizes_fit_a_backbone_of_few_positions(tmp_path: Path) -> None:
    """A backbone of 128 positions reads its memory; a source tells the sizes before weights are loaded."""
    save_small_backbone(tmp_path / "llama", "llama")
    source = ModelSource(str(tmp_path / "llama"), settings={"memory_layers": "all"})
    model = source.open()
    assert model.config == source.config()
    assert model.config.segment_tokens == 64
    model.save_pretrained(tmp_path / "saved")
    assert ModelSource(str(tmp_path / "saved"), settings={"top_k": 8}).config() == replace(model.config, top_k=8)
    assert np.isfinite(model.score("the cat sat on the mat, " * 20).logprobs).all()
