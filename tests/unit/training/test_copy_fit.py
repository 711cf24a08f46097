# SPDX-License-Identifier: Apache-2.0
"""Fit of the copy head on cached readings: the numbers of fresh readings, and a fit that learns."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from longmem.errors import ConfigError, DocumentError, NumericError
from longmem.model.longmem import LongMem
from longmem.training.copy_head_fit import CopyFitConfig, fit_copy_head, mean_nats, read_documents_once
from longmem.training.validation import validate

FORM = {
    "query": "key_space",
    "keys": "unit",
    "values": "next",
    "retrieval": "joint",
    "copy_head": True,
    "chunk_tokens": 1,
    "segment_tokens": 32,
    "memory_tokens": 96,
    "top_k": 8,
}
Sequences = list[np.ndarray]


def repetitive(count: int, length: int = 32 * 5 + 1) -> Sequences:
    """Return texts in which whole runs of tokens recur."""
    random = np.random.default_rng(0)
    phrases = [random.integers(5, 90, size=12) for _ in range(6)]
    texts = [np.concatenate([phrases[i] for i in random.integers(6, size=length)]) for _ in range(count)]
    return [text[:length].astype(np.int32) for text in texts]


@pytest.fixture
def model_of(small_model: Callable[..., LongMem]) -> Callable[..., LongMem]:
    return lambda **settings: small_model("llama", unsettled=False, **{**FORM, **settings})


@pytest.mark.parametrize("copy_repeats", [0, 4])
@pytest.mark.parametrize("retrieval", ["joint", "per_head"])
def test_readings_give_what_reading_anew_gives(
    model_of: Callable[..., LongMem], copy_repeats: int, retrieval: str
) -> None:
    model, sequences = model_of(copy_repeats=copy_repeats, retrieval=retrieval), repetitive(2)
    readings = read_documents_once(model, sequences)
    assert (readings.num_tokens, readings.unread_tokens) == (2 * 32 * 4, 2 * 32)
    # sums of a few hundred float32 numbers, in another order
    assert mean_nats(model, readings) == pytest.approx(validate(model, sequences).with_memory, abs=1e-6)


def test_a_fit_lowers_what_validation_measures_and_moves_the_copy_head_alone(
    model_of: Callable[..., LongMem],
) -> None:
    model, sequences = model_of(copy_repeats=4), repetitive(4)
    before = {name: weight.clone() for name, weight in model.sidenet.state_dict().items()}
    start = validate(model, sequences).with_memory
    losses: list[tuple[int, float]] = []
    config = CopyFitConfig(epochs=4, batch_tokens=64, warmup_steps=2)
    readings = read_documents_once(model, sequences)
    steps = fit_copy_head(model, readings, config, lambda *loss: losses.append(loss))
    assert steps == 4 * math.ceil(readings.num_tokens / 64)
    assert [epoch for epoch, _ in losses] == [1, 2, 3, 4]
    assert losses[-1][1] < losses[0][1]
    assert validate(model, sequences).with_memory < start - 0.2
    moved = {name for name, weight in model.sidenet.state_dict().items() if not torch.equal(weight, before[name])}
    assert moved
    assert all(name.startswith("copy_head.") for name in moved)
    assert any(name.startswith("copy_head.repeats.") for name in moved)


def test_the_same_seed_gives_the_same_head(model_of: Callable[..., LongMem]) -> None:
    def fitted(seed: int) -> dict[str, Any]:
        model = model_of(copy_repeats=2)
        config = CopyFitConfig(epochs=1, batch_tokens=50, seed=seed)
        fit_copy_head(model, read_documents_once(model, repetitive(1)), config, lambda *_: None)
        assert model.sidenet.copy_head is not None
        return {name: weight.clone() for name, weight in model.sidenet.copy_head.state_dict().items()}

    first, again, other = fitted(1), fitted(1), fitted(2)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_what_cannot_be_fitted_is_said(model_of: Callable[..., LongMem]) -> None:
    with pytest.raises(ConfigError, match="copy_head=false"):
        read_documents_once(model_of(copy_head=False), repetitive(1))
    with pytest.raises(DocumentError, match="longer than a segment of 32 tokens"):
        read_documents_once(model_of(), repetitive(2, length=33))
    with pytest.raises(DocumentError, match="reads a memory"):
        read_documents_once(model_of(memory_tokens=0), repetitive(1))


def test_a_loss_that_is_not_finite_ends_it(model_of: Callable[..., LongMem]) -> None:
    model = model_of()
    readings = read_documents_once(model, repetitive(1))
    readings.logprobs[3] = math.nan
    with pytest.raises(NumericError, match="epoch 1"):
        fit_copy_head(model, readings, CopyFitConfig(), lambda *_: None)


@pytest.mark.parametrize(
    ("name", "value"),
    [("epochs", 0), ("batch_tokens", -1), ("learning_rate", math.nan), ("warmup_steps", -1), ("seed", -1)],
)
def test_settings_that_cannot_work_are_named(name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=name):
        CopyFitConfig(**{name: value})
