# SPDX-License-Identifier: Apache-2.0
"""Labels after whole demonstrations, against plain transformers, whose cache is put together by hand."""

import math
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, DynamicCache

from longmem import LongMem
from longmem.backbone.families import FAMILIES
from longmem.backbone.small import SMALL_CONFIGS, save_small_backbone
from longmem.errors import ConfigError, DocumentError
from longmem.memory.context import LocalMemory
from longmem.memory.view import MemoryView
from longmem.scoring.batch import Item, score_items
from longmem.scoring.labels import LabelPrompt, read_labels, score_labels
from longmem.sidenet.demonstration_choice import (
    DemonstrationIndex,
    DemonstrationPlan,
    DemonstrationQuery,
    Demonstrations,
    Similarity,
    upper_layers,
)
from longmem.text.demonstrations import pack, positions_of, segments_of
from longmem.types import DocumentKey

SETTINGS: dict[str, Any] = {
    "memory_layers": "all",
    "segment_tokens": 24,
    "memory_tokens": 240,
    "near_tokens": 16,
    "read_blocks": 3,
    "block_tokens": 4,
    "kv_dtype": "float32",
}
TOLERANCE = 2e-4
"""float32 sums in another order, over four layers with weights of magnitude 0.15."""
KEY = DocumentKey("icl", "demonstrations")
PLAIN = [
    name
    for name, family in sorted(FAMILIES.items())
    # sliding windows and ALiBi: tests/unit/backbone/test_cache_assembly.py compares their caches
    if not family.keys_have_positions and name != "bloom" and "sliding_window" not in SMALL_CONFIGS[name]
]


@dataclass(frozen=True)
class Case:
    """A model with a memory of demonstrations."""

    model: LongMem
    examples: list[np.ndarray]
    units: Demonstrations
    segments: list[np.ndarray]
    view: MemoryView

    def plan(self, **changes: Any) -> DemonstrationPlan:
        return replace(DemonstrationPlan(self.units, "idf", num_read=4, num_compared=6), **changes)


def case_of(folder: Path, family: str = "llama", **settings: Any) -> Case:
    save_small_backbone(folder / family, family)
    model = LongMem.from_backbone(folder / family, **{**SETTINGS, **settings})
    random = np.random.default_rng(0)
    # few different tokens, so that demonstrations share some
    examples = [random.integers(20, 60, random.integers(5, 9)).astype(np.int32) for _ in range(20)]
    packed = pack(examples, 24, model.tokenizer.start_token)
    units = Demonstrations(
        np.array(positions_of(examples, packed, 24)),
        np.array([len(example) for example in examples]),
        np.array([len(example) - 2 for example in examples]),
    )
    memory = LocalMemory(model)
    for segment in segments_of(KEY, packed, 24):
        memory.accept(model.encode(segment).block)
    view = memory.view(len(packed))
    assert view is not None
    return Case(model, examples, units, packed, view)


def prompts_of(case: Case, num_context: int = 2) -> list[LabelPrompt]:
    random = np.random.default_rng(1)
    start = np.array([case.model.tokenizer.start_token], dtype=np.int32)
    context = np.concatenate([start, *(random.integers(20, 60, 3) for _ in range(num_context))]).astype(np.int32)
    targets = tuple(np.array(label, dtype=np.int32) for label in ([70], [71, 72], [70, 73, 74]))
    return [
        LabelPrompt(f"item {number}", context, random.integers(20, 60, 4 + number).astype(np.int32), targets)
        for number in range(3)
    ]


def layers_at(plain: torch.nn.Module, tokens: np.ndarray, shift: int) -> list[Any]:
    """Return the layers of a cache of tokens whose first one is at position `shift`, which may be negative."""
    positions = torch.arange(len(tokens))[None] + shift
    with torch.no_grad():
        output = plain(
            torch.tensor(tokens.astype(np.int64))[None], position_ids=positions, past_key_values=DynamicCache()
        )
    return list(output.past_key_values.layers)


def naive_logprobs(case: Case, plain: torch.nn.Module, prompt: LabelPrompt, read: list[int]) -> list[float]:
    """Return label log-probabilities; each one is a run of item and label behind a cache of pieces."""
    start = case.model.tokenizer.start_token
    pieces = [(layers_at(plain, np.array([start]), 0), slice(0, 1))]
    place = 1
    for index in read:
        position, length = int(case.units.starts[index]), int(case.units.lengths[index])
        home, offset = divmod(position, 24)
        own = case.segments[home] if home == 0 else np.concatenate([[start], case.segments[home]])
        offset += home > 0
        pieces.append((layers_at(plain, own, place - offset), slice(offset, offset + length)))
        place += length
    pieces.append((layers_at(plain, prompt.context, place - 1), slice(1, None)))
    found = []
    for target in prompt.targets:
        cache = DynamicCache()
        for layer in range(len(pieces[0][0])):
            keys, values = (
                torch.cat([getattr(layers[layer], name)[:, :, part] for layers, part in pieces], dim=2)
                for name in ("keys", "values")
            )
            cache.update(keys, values, layer)
        tokens = np.concatenate([prompt.own, target[:-1]]).astype(np.int64)
        with torch.no_grad():
            logits = plain(torch.tensor(tokens)[None], past_key_values=cache).logits[0, len(prompt.own) - 1 :]
        found.append(float(logits.log_softmax(dim=1)[range(len(target)), target.astype(np.int64)].sum()))
    return found


@pytest.mark.parametrize("family", PLAIN)
def test_labels_equal_plain_attention_over_the_chosen_demonstrations(tmp_path: Path, family: str) -> None:
    case = case_of(tmp_path, family)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / family).eval()
    for prompt, score in zip(
        prompts_of(case), score_labels(case.model, prompts_of(case), case.view, case.plan()), strict=True
    ):
        assert len(score.read) == 4
        expected = naive_logprobs(case, plain, prompt, score.read.tolist())
        np.testing.assert_allclose(score.longmem.logprobs, expected, atol=TOLERANCE)
        assert abs(score.longmem.logprobs - score.backbone.logprobs).max() > 0.01


@pytest.mark.parametrize("family", ["llama", "bloom", "gemma3_text"])
def test_a_shared_context_gives_the_scores_of_whole_prompts(tmp_path: Path, family: str) -> None:
    case = case_of(tmp_path, family)
    for prompt, score in zip(prompts_of(case), score_labels(case.model, prompts_of(case)), strict=True):
        items = [
            Item("", np.concatenate([prompt.context, prompt.own, target]), prompt.num_read) for target in prompt.targets
        ]
        naive = score_items(case.model, items, [None] * len(items))
        np.testing.assert_allclose(score.backbone.logprobs, [each.backbone.total for each in naive], atol=1e-5)
        assert score.backbone.first_choice == naive[0].backbone.first_choice
        assert score.longmem == score.backbone


def test_neither_order_nor_number_of_items_changes_a_bit(tmp_path: Path) -> None:
    case = case_of(tmp_path)
    prompts = prompts_of(case)
    together = score_labels(case.model, prompts, case.view, case.plan())
    for number in (2, 0, 1):
        (alone,) = score_labels(case.model, [prompts[number]], case.view, case.plan())
        for side in ("longmem", "backbone"):
            assert np.array_equal(getattr(alone, side).logprobs, getattr(together[number], side).logprobs)
        for by, nearest in alone.nearest.items():
            assert np.array_equal(nearest.similarity, together[number].nearest[by].similarity)


@pytest.mark.parametrize("choice", ["idf", "random"])
def test_reading_alone_gives_the_same_scores_by_one_run_of_an_item(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, choice: Any
) -> None:
    case = case_of(tmp_path)
    prompts, plan = prompts_of(case), case.plan(choice=choice)
    expected = score_labels(case.model, prompts, case.view, plan)
    runs, forward = [], case.model.backbone.forward
    monkeypatch.setattr(case.model.backbone, "forward", lambda *given: (runs.append(1), forward(*given))[1])
    found = read_labels(case.model, prompts, case.view, plan)
    contexts = {prompt.context.tobytes() for prompt in prompts}
    assert len(runs) == len(prompts) + len(contexts)
    for mine, theirs in zip(found, expected, strict=True):
        np.testing.assert_array_equal(mine.scores.logprobs, theirs.longmem.logprobs)
        assert mine.scores.first_choice == theirs.longmem.first_choice
        np.testing.assert_array_equal(mine.read, theirs.read)


def test_reading_alone_cannot_choose_by_states(tmp_path: Path) -> None:
    case = case_of(tmp_path)
    with pytest.raises(ConfigError, match="idf or random, got values"):
        read_labels(case.model, prompts_of(case), case.view, case.plan(choice="values"))


@pytest.mark.parametrize("choice", ["idf", "keys", "values", "random"])
def test_a_demonstration_that_is_left_out_sees_nothing_of_its_segment(tmp_path: Path, choice: Any) -> None:
    case = case_of(tmp_path)
    home = case.units.starts // 24
    for index in (0, 7, 19):
        own = case.examples[index][:-2]
        prompt = LabelPrompt("left out", prompts_of(case)[0].context, own, prompts_of(case)[0].targets, index)
        plan = case.plan(choice=choice, num_read=20, num_compared=20)
        (score,) = score_labels(case.model, [prompt], case.view, plan)
        (seen,) = score_labels(case.model, [replace(prompt, left_out=None)], case.view, plan)
        for found in (score.read, score.nearest["idf"].index, score.nearest["target"].index):
            assert sorted(found.tolist()) == np.flatnonzero(home != home[index]).tolist()
        # it would find itself: its own words are the nearest
        assert seen.nearest["idf"].index[0] == index
        assert choice != "idf" or seen.read[-1] == index


def question_of(case: Case, tokens: np.ndarray) -> DemonstrationQuery:
    output = case.model.run_backbone(torch.tensor(tokens.astype(np.int64))[None])
    heads = 2 * len(upper_layers(4))
    return DemonstrationQuery(tokens, output.keys[0, :, -heads:], output.values[0, :, -heads:])


def test_shared_words_are_weighed_by_their_rarity(tmp_path: Path) -> None:
    case = case_of(tmp_path)
    tokens = np.array([25, 25, 31, 40, 59, 199], dtype=np.int32)
    index = DemonstrationIndex(case.view, case.plan(), 24, 4)
    words = [Counter(example[:-2].tolist()) for example in case.examples]

    def weights(counts: Counter[int]) -> dict[int, float]:
        given = {
            word: (1 + math.log(count)) * math.log(21 / (1 + sum(word in each for each in words)))
            for word, count in counts.items()
            if any(word in each for each in words)
        }
        return {word: weight / math.hypot(*given.values()) for word, weight in given.items()}

    asked = weights(Counter(tokens.tolist()))
    expected = [sum(asked.get(word, 0.0) * weight for word, weight in weights(each).items()) for each in words]
    np.testing.assert_allclose(index.similarity("idf", question_of(case, tokens)), expected, atol=1e-6)


@pytest.mark.parametrize("by", ["keys", "values", "target"])
def test_states_are_compared_by_cosines_of_the_upper_layers(tmp_path: Path, by: Similarity) -> None:
    case = case_of(tmp_path)
    question = question_of(case, np.array([25, 31, 40, 59], dtype=np.int32))
    index = DemonstrationIndex(case.view, case.plan(), 24, 4)
    layers = case.view.layer_keys if by == "keys" else case.view.layer_values
    assert layers is not None
    stored = layers.gather(torch.arange(len(layers)))
    means = []
    for start, prompt in zip(case.units.starts, case.units.prompts, strict=True):
        place = int((case.view.starts == int(start)).nonzero())
        part = slice(place + prompt - 1, place + prompt) if by == "target" else slice(place, place + prompt)
        means.append(stored[part].double().mean(dim=0).numpy().reshape(4, -1)[2:])
    own = question.keys if by == "keys" else question.values
    asked = (own[-1:] if by == "target" else own).double().mean(dim=0).numpy().reshape(2, -1)
    centre = np.mean(means, axis=0)
    expected = [
        np.mean(
            [
                (first - middle) @ (second - middle) / np.linalg.norm(first - middle) / np.linalg.norm(second - middle)
                for first, second, middle in zip(asked, mean, centre, strict=True)
            ]
        )
        for mean in means
    ]
    np.testing.assert_allclose(index.similarity(by, question), expected, atol=1e-5)


def test_the_nearest_demonstrations_that_fit_are_read_the_nearest_last(tmp_path: Path) -> None:
    case = case_of(tmp_path)
    question = question_of(case, case.examples[3][:-2])
    index = DemonstrationIndex(case.view, case.plan(num_read=5), 24, 4)
    best = np.argsort(-index.similarity("idf", question), kind="stable")
    assert index.choose(question, None).index.tolist() == best[:5][::-1].tolist()
    room = int(case.units.lengths[best[:3]].sum())
    chosen = index.choose(question, room)
    assert chosen.index.tolist() == best[:3][::-1].tolist()
    tokens = case.view.text[chosen.places].tolist()
    assert tokens == np.concatenate([case.examples[each] for each in best[:3][::-1]]).tolist()
    assert index.choose(question, room - 1).index.tolist() == best[:2][::-1].tolist()
    assert len(index.choose(question, 0).places) == 0


def test_what_cannot_be_scored_is_refused(tmp_path: Path) -> None:
    case = case_of(tmp_path)
    prompt = prompts_of(case)[0]
    with pytest.raises(DocumentError, match="item item 0: 25 tokens are read"):
        score_labels(case.model, [replace(prompt, own=np.arange(16, dtype=np.int32))])
    with pytest.raises(DocumentError, match="expected a token to read"):
        score_labels(case.model, [replace(prompt, own=np.zeros(0, dtype=np.int32))])
    one = LongMem.from_backbone(tmp_path / "llama", segment_tokens=24)
    with pytest.raises(ConfigError, match="memory_layers=all"):
        score_labels(one, [prompt], case.view, case.plan())
