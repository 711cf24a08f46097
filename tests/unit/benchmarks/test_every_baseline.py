# SPDX-License-Identifier: Apache-2.0
"""Contract of `AbstractBaseline` for each of them: every target once, probabilities that sum to one, causality."""

from collections.abc import Callable

import numpy as np
import pytest

from benchmarks.baselines.base import AbstractBaseline
from benchmarks.baselines.bigbird import BigBird
from benchmarks.baselines.frozen import FrozenBackbone
from benchmarks.baselines.full_attention import FullAttention
from benchmarks.baselines.infllm import InfLLM, InfLLMSizes
from benchmarks.baselines.memorizing_transformer import MemorizingBaseline, MemorizingTransformer
from benchmarks.baselines.neural_cache import NeuralCache
from benchmarks.baselines.ngram_cache import NgramCache
from benchmarks.baselines.sliding import SlidingWindow
from benchmarks.baselines.transformer_xl import TransformerXL
from longmem.backbone.backbone import Backbone

SEGMENT = 16

BASELINES: dict[str, Callable[[Backbone], AbstractBaseline]] = {
    "frozen": lambda backbone: FrozenBackbone(backbone, SEGMENT),
    "sliding": lambda backbone: SlidingWindow(backbone, SEGMENT),
    "transformer_xl": lambda backbone: TransformerXL(backbone, SEGMENT),
    "transformer_xl_far": lambda backbone: TransformerXL(backbone, SEGMENT, same_length=False),
    "bigbird": lambda backbone: BigBird(backbone, 4 * SEGMENT, block_tokens=4, local_blocks=2, random_blocks=1),
    "infllm": lambda backbone: InfLLM(backbone, InfLLMSizes(4, 2 * SEGMENT, 4, 2, 2, SEGMENT)),
    "full_attention": lambda backbone: FullAttention(backbone, 4 * SEGMENT, SEGMENT),
    "ngram_cache": lambda backbone: NgramCache(FrozenBackbone(backbone, SEGMENT)),
    "neural_cache": lambda backbone: NeuralCache(backbone, SEGMENT, 1, memory_tokens=40, top_k=8),
    "memorizing": lambda backbone: MemorizingBaseline(MemorizingTransformer(backbone, 1, top_k=4), SEGMENT, 40),
}


@pytest.fixture(params=BASELINES)
def baseline(request: pytest.FixtureRequest, few_tokens: Backbone) -> AbstractBaseline:
    return BASELINES[request.param](few_tokens)


@pytest.mark.parametrize("num_tokens", [1, 2, SEGMENT + 1, SEGMENT + 2, 4 * SEGMENT + 1, 100, 300])
def test_every_target_once(baseline: AbstractBaseline, random_sequence: Callable, num_tokens: int) -> None:
    scores = baseline.logprobs(random_sequence(num_tokens))
    assert scores.shape == (num_tokens - 1,)
    assert scores.dtype == np.float32
    assert np.isfinite(scores).all()
    assert (scores <= 1e-6).all()


@pytest.mark.parametrize("num_tokens", [2, SEGMENT + 2, 70])
def test_probabilities_sum_to_one(baseline: AbstractBaseline, random_sequence: Callable, num_tokens: int) -> None:
    """Sum over all possible last tokens. Rounding of 24 float32 log-probabilities: 24 · 4 · 2⁻²⁴."""
    sequence = random_sequence(num_tokens)
    total = 0.0
    for token in range(24):
        sequence[-1] = token
        total += float(np.exp(baseline.logprobs(sequence)[-1].astype(np.float64)))
    assert total == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize("first_changed", [1, SEGMENT, SEGMENT + 1, 60, 99])
def test_the_future_changes_nothing(baseline: AbstractBaseline, random_sequence: Callable, first_changed: int) -> None:
    sequence = random_sequence(100)
    changed = sequence.copy()
    changed[first_changed:] = (changed[first_changed:] + 7) % 24
    before, after = baseline.logprobs(sequence), baseline.logprobs(changed)
    # target i is token i + 1, so those before token `first_changed` are the first `first_changed - 1`
    np.testing.assert_array_equal(before[: first_changed - 1], after[: first_changed - 1])
    assert before[first_changed - 1] != after[first_changed - 1]


def test_documents_leave_nothing_behind(baseline: AbstractBaseline, random_sequence: Callable) -> None:
    first = baseline.logprobs(random_sequence(90, seed=1))
    baseline.logprobs(random_sequence(120, seed=2))
    np.testing.assert_array_equal(first, baseline.logprobs(random_sequence(90, seed=1)))


def test_says_what_it_is(baseline: AbstractBaseline) -> None:
    assert baseline.name
    assert "\n" not in baseline.description
    assert "|" not in baseline.name + baseline.description
