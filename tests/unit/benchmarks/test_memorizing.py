# SPDX-License-Identifier: Apache-2.0
"""Trained memory: exact reading, gradients, the staleness caused by training, and files."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.baselines.frozen import FrozenBackbone
from benchmarks.baselines.memorizing_training import TrainingSettings, save, train
from benchmarks.baselines.memorizing_transformer import MemorizingBaseline, MemorizingTransformer, open_memorizing
from benchmarks.baselines.token_memory import TokenMemory
from longmem.backbone.backbone import Backbone
from longmem.errors import CheckpointError, DocumentError

SEGMENT = 16
SETTINGS = TrainingSettings(
    steps=12, rows=2, segment_tokens=SEGMENT, book_tokens=80, learning_rate=3e-3, warmup_steps=2
)


@pytest.fixture
def own_backbone(few_tokens_folder: Path) -> Backbone:
    """Return a backbone that a test may train."""
    return Backbone.load(few_tokens_folder)


def test_reading_equals_its_formula() -> None:
    random = torch.Generator().manual_seed(0)
    memory = TokenMemory(25)
    keys, values = (torch.randn((40, 2, 8), generator=random) for _ in range(2))
    memory.append(keys[:30], values[:30])
    memory.append(keys[30:], values[30:])
    assert memory.num_tokens == 25
    queries = torch.randn((5, 4, 8), generator=random)
    temperature = torch.tensor([1.0, 5.0, 10.0, 20.0])
    found = memory.read(queries, temperature, top_k=6)
    for token in range(5):
        for head in range(4):
            kept = slice(15, 40)
            cosines = torch.cosine_similarity(queries[token, head].double(), keys[kept, head // 2].double(), dim=1)
            best = cosines.argsort(descending=True)[:6]
            weights = (cosines[best] * temperature[head]).softmax(dim=0)
            expected = weights @ values[kept, head // 2][best].double()
            torch.testing.assert_close(found[token, head].double(), expected, atol=1e-5, rtol=0)


def test_a_memory_of_no_tokens_stays_empty() -> None:
    memory = TokenMemory(0)
    memory.append(torch.ones((3, 2, 8)), torch.ones((3, 2, 8)))
    assert memory.num_tokens == 0


def test_gradients_reach_the_reader_and_never_what_is_stored() -> None:
    keys, values = (torch.randn((20, 2, 8), requires_grad=True) for _ in range(2))
    memory = TokenMemory(20)
    memory.append(keys, values)
    queries = torch.randn((5, 4, 8), requires_grad=True)
    temperature = torch.ones(4, requires_grad=True)
    memory.read(queries, temperature, top_k=6).sum().backward()
    assert queries.grad is not None
    assert temperature.grad is not None
    assert keys.grad is None
    assert values.grad is None


def test_without_memory_and_training_it_is_the_frozen_backbone(few_tokens: Backbone, random_sequence: Callable) -> None:
    sequence = random_sequence(90)
    frozen = FrozenBackbone(few_tokens, SEGMENT).logprobs(sequence)
    model = MemorizingTransformer(few_tokens, 1, top_k=4)
    off = MemorizingBaseline(model, SEGMENT, 0).logprobs(sequence)
    on = MemorizingBaseline(model, SEGMENT, 64).logprobs(sequence)
    np.testing.assert_allclose(off, frozen, atol=1e-5)
    np.testing.assert_allclose(on[:SEGMENT], frozen[:SEGMENT], atol=1e-5)
    assert not np.allclose(on[SEGMENT:], frozen[SEGMENT:], atol=1e-3)


def test_training_learns_and_stored_keys_go_stale(own_backbone: Backbone, random_sequence: Callable) -> None:
    sequence = random_sequence(80, seed=3)
    model = MemorizingTransformer(own_backbone, 1, top_k=4)
    before = TokenMemory(80)
    tokens = torch.from_numpy(sequence[:SEGMENT]).long()[None]
    with torch.no_grad():
        model(tokens, [before])
    losses: list[float] = []
    train(model, [lambda: sequence], SETTINGS, lambda _step, loss: losses.append(loss))
    assert len(losses) == SETTINGS.steps
    assert np.mean(losses[-3:]) < np.mean(losses[:3]) - 0.1
    after = TokenMemory(80)
    with torch.no_grad():
        model(tokens, [after])
    identity = torch.eye(8).repeat(4, 1, 1).transpose(0, 1)
    ones = torch.ones(4)
    assert not torch.allclose(before.read(identity, ones, 16), after.read(identity, ones, 16), atol=1e-3)
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert (model.gate != -2.0).any()


def test_training_is_repeatable(few_tokens_folder: Path, random_sequence: Callable) -> None:
    found = []
    for _ in range(2):
        model = MemorizingTransformer(Backbone.load(few_tokens_folder), 1, top_k=4)
        train(model, [lambda: random_sequence(100, seed=1), lambda: random_sequence(100, seed=2)], SETTINGS)
        found.append(model.gate.detach().clone())
    assert torch.equal(*found)


def test_short_books_are_refused(own_backbone: Backbone, random_sequence: Callable) -> None:
    with pytest.raises(DocumentError, match="longer than a segment"):
        train(MemorizingTransformer(own_backbone, 1), [lambda: random_sequence(SEGMENT)], SETTINGS)


def test_saved_and_opened_is_the_same(
    own_backbone: Backbone, few_tokens_folder: Path, random_sequence: Callable, tmp_path: Path
) -> None:
    sequence = random_sequence(90)
    model = MemorizingTransformer(own_backbone, 1, top_k=4)
    train(model, [lambda: sequence], SETTINGS)
    save(model, tmp_path / "weights.safetensors", SETTINGS)
    opened = open_memorizing(Backbone.load(few_tokens_folder), tmp_path / "weights.safetensors")
    assert (opened.layer, opened.top_k) == (1, 4)
    ours, theirs = (MemorizingBaseline(each, SEGMENT, 64).logprobs(sequence) for each in (model, opened))
    np.testing.assert_array_equal(ours, theirs)


def test_files_of_other_models_are_refused(
    own_backbone: Backbone, small_backbone: Callable[[str], Path], tmp_path: Path
) -> None:
    path = tmp_path / "weights.safetensors"
    save(MemorizingTransformer(own_backbone, 1), path, SETTINGS)
    with pytest.raises(CheckpointError, match=r"weights\.safetensors"):
        open_memorizing(Backbone.load(small_backbone("qwen3")), path)
    path.write_bytes(b"not weights")
    with pytest.raises(CheckpointError, match=r"weights\.safetensors"):
        open_memorizing(own_backbone, path)
    with pytest.raises(CheckpointError, match="missing"):
        open_memorizing(own_backbone, tmp_path / "missing.safetensors")
