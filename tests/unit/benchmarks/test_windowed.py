# SPDX-License-Identifier: Apache-2.0
"""Windowed baselines against one plain forward of transformers under the defining mask."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from benchmarks.baselines.bigbird import BigBird, sparse_mask
from benchmarks.baselines.frozen import FrozenBackbone
from benchmarks.baselines.full_attention import FullAttention
from benchmarks.baselines.sliding import SlidingWindow
from benchmarks.baselines.transformer_xl import TransformerXL
from longmem.backbone.backbone import Backbone
from longmem.errors import ConfigError
from longmem.model.longmem import LongMem
from longmem.text.segments import cut_segments
from longmem.types import DocumentKey

SEGMENT = 16
TOLERANCE = 1e-5
"""Tolerance of float32 sums of equal numbers in another order; log-probabilities here are below 20."""


def causal(queries: int) -> torch.Tensor:
    return torch.ones((queries, queries), dtype=torch.bool).tril()


def test_frozen_equals_plain_transformers(
    few_tokens: Backbone, random_sequence: Callable, masked_forward: Callable
) -> None:
    sequence = random_sequence(100)
    parts = [masked_forward(few_tokens, sequence[start : start + SEGMENT + 1]) for start in range(0, 99, SEGMENT)]
    found = FrozenBackbone(few_tokens, SEGMENT).logprobs(sequence)
    np.testing.assert_allclose(found, np.concatenate(parts), atol=TOLERANCE)


def test_frozen_is_longmems_own_backbone(small_model: Callable[..., LongMem]) -> None:
    model = small_model()
    sequence = np.random.default_rng(0).integers(257, size=150).astype(np.int32)
    segments = cut_segments(DocumentKey("", ""), sequence, model.config.segment_tokens)
    own = np.concatenate([model.encode(segment).backbone_logprobs for segment in segments])
    found = FrozenBackbone(model.backbone, model.config.segment_tokens).logprobs(sequence)
    np.testing.assert_allclose(found, own, atol=TOLERANCE)


@pytest.mark.parametrize("num_tokens", [10, SEGMENT + 1, 40, 41, 101])
def test_sliding_equals_one_window_per_target(
    few_tokens: Backbone, random_sequence: Callable, masked_forward: Callable, num_tokens: int
) -> None:
    sequence = random_sequence(num_tokens)
    found = SlidingWindow(few_tokens, SEGMENT).logprobs(sequence)
    last_start = max(0, num_tokens - 1 - SEGMENT)
    for position, score in enumerate(found):
        # the first window that reaches the position: the start is the next multiple of the stride
        start = min(last_start, -(-max(0, position - SEGMENT + 1) // (SEGMENT // 2)) * (SEGMENT // 2))
        window = masked_forward(few_tokens, sequence[start : start + SEGMENT + 1])
        assert score == pytest.approx(window[position - start], abs=TOLERANCE)


def test_sliding_gives_every_target_half_a_window(few_tokens: Backbone, random_sequence: Callable) -> None:
    sequence = random_sequence(101)
    baseline = SlidingWindow(few_tokens, SEGMENT)
    scores = baseline.logprobs(sequence)
    for changed in range(0, 92, 7):
        other = sequence.copy()
        other[changed] = (other[changed] + 5) % 24
        moved = scores != baseline.logprobs(other)
        assert moved[changed : changed + SEGMENT // 2].all()


@pytest.mark.parametrize("same_length", [True, False])
def test_recurrence_equals_one_masked_forward(
    few_tokens: Backbone, random_sequence: Callable, masked_forward: Callable, same_length: bool
) -> None:
    """Compare cached keys and values with one long forward in which each segment reads the previous one."""
    sequence = random_sequence(101)
    positions = torch.arange(100)
    distance = positions[:, None] - positions
    segments = positions // SEGMENT
    near = distance < SEGMENT if same_length else segments[:, None] - segments <= 1
    naive = masked_forward(few_tokens, sequence, (distance >= 0) & near)
    found = TransformerXL(few_tokens, SEGMENT, same_length=same_length).logprobs(sequence)
    np.testing.assert_allclose(found, naive, atol=TOLERANCE)


def test_recurrence_starts_as_the_frozen_backbone(few_tokens: Backbone, random_sequence: Callable) -> None:
    sequence = random_sequence(80)
    frozen = FrozenBackbone(few_tokens, SEGMENT).logprobs(sequence)
    found = TransformerXL(few_tokens, SEGMENT).logprobs(sequence)
    np.testing.assert_allclose(found[:SEGMENT], frozen[:SEGMENT], atol=TOLERANCE)
    assert not np.allclose(found[SEGMENT:], frozen[SEGMENT:], atol=0.01)


def test_recurrence_does_not_depend_on_where_the_document_begins(
    few_tokens: Backbone, random_sequence: Callable
) -> None:
    """Check relative positions: far beyond the backbone's 128, two equal segments give equal numbers."""
    repeated = np.tile(random_sequence(SEGMENT), 40)
    found = TransformerXL(few_tokens, SEGMENT).logprobs(repeated)[: 39 * SEGMENT].reshape(39, SEGMENT)
    # after as many segments as layers the document's beginning has no effect
    np.testing.assert_allclose(found[-1], found[6], atol=1e-4)


def test_recurrence_refuses_absolute_positions(small_backbone: Callable) -> None:
    with pytest.raises(ConfigError, match="rotary"):
        TransformerXL(Backbone.load(small_backbone("gpt2")), SEGMENT)


def test_full_attention_equals_plain_transformers(
    few_tokens: Backbone, random_sequence: Callable, masked_forward: Callable
) -> None:
    sequence = random_sequence(151)
    parts = [masked_forward(few_tokens, sequence[start : start + 65]) for start in (0, 64, 128)]
    found = FullAttention(few_tokens, 64, SEGMENT).logprobs(sequence)
    np.testing.assert_allclose(found, np.concatenate(parts), atol=TOLERANCE)


def test_windows_beyond_the_positions_are_refused(few_tokens: Backbone) -> None:
    for create in (FrozenBackbone, SlidingWindow, TransformerXL, BigBird):
        with pytest.raises(ConfigError, match="128"):
            create(few_tokens, 256)


def test_bigbird_with_all_blocks_local_is_full_attention(few_tokens: Backbone, random_sequence: Callable) -> None:
    sequence = random_sequence(151)
    sparse = BigBird(few_tokens, 64, block_tokens=8, local_blocks=8).logprobs(sequence)
    np.testing.assert_allclose(sparse, FullAttention(few_tokens, 64, SEGMENT).logprobs(sequence), atol=TOLERANCE)


def test_bigbird_equals_plain_transformers_under_its_mask(
    few_tokens: Backbone, random_sequence: Callable, masked_forward: Callable
) -> None:
    sequence = random_sequence(101)
    mask = sparse_mask(100, 8, 2, 1)
    found = BigBird(few_tokens, 100, block_tokens=8, local_blocks=2, random_blocks=1).logprobs(sequence)
    np.testing.assert_allclose(found, masked_forward(few_tokens, sequence, mask), atol=TOLERANCE)


def test_bigbird_reads_local_global_and_random_blocks() -> None:
    mask = sparse_mask(64, 4, 3, 2)
    assert not (mask & ~causal(64)).any()
    blocks = mask.view(16, 4, 16, 4)[:, 3].any(dim=2)
    assert blocks[:, 0].all()
    for block in range(16):
        assert blocks[block, max(0, block - 2) : block + 1].all()
        # itself and two before, the global one, and two random ones where enough blocks exist
        assert blocks[block].sum() == min(block + 1, 3 + 1 + 2)
    assert torch.equal(mask, sparse_mask(64, 4, 3, 2))
    assert torch.equal(sparse_mask(62, 4, 3, 2), mask[:62, :62])
