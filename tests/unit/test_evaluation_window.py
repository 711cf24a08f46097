# SPDX-License-Identifier: Apache-2.0
"""Evaluation windows against the loop of transformers' guide on a plain model, and their borders for any lengths."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from longmem.errors import ConfigError, DocumentError, NumericError
from longmem.memory.context import windows_of
from longmem.model.longmem import LongMem
from longmem.runtime.requests import WindowRequest
from longmem.scoring.evaluation_window import check_window, cut_windows, num_windows
from longmem.scoring.window_scores import score_window
from longmem.store.in_memory import InMemoryStore
from tests.texts import prose

TOLERANCE = 1e-5
"""Tolerance of float32 sums of equal numbers in another order; log-probabilities here are below 20."""

shapes = st.integers(1, 12).flatmap(lambda window: st.tuples(st.just(window), st.integers(1, window)))


@given(st.integers(1, 60), shapes)
def test_windows_score_every_token_once(length: int, shape: tuple[int, int]) -> None:
    window, stride = shape
    sequence = np.arange(length, dtype=np.int32)
    windows = list(cut_windows(sequence, window, stride))
    assert len(windows) == num_windows(length - 1, window, stride)
    assert [position for each in windows for position in each.targets] == list(range(1, length))
    for index, each in enumerate(windows):
        assert each.index == index
        assert each.start_token == index * stride
        assert each.tokens.tolist() == list(range(each.start_token, each.targets[-1]))
        assert each.first_target == each.targets[0]
        assert len(each.tokens) <= window
        if index:
            assert len(each.targets) <= stride
            assert len(each.tokens) - len(each.targets) == window - stride
        if index + 1 < len(windows):
            assert len(each.tokens) == window


def guide_logprobs(model: torch.nn.Module, sequence: np.ndarray, max_length: int, stride: int) -> np.ndarray:
    """Return log-probabilities by the loop of the guide "Perplexity of fixed-length models"."""
    ids = torch.from_numpy(sequence.astype(np.int64))[None]
    found, previous_end = [], 0
    for begin in range(0, ids.shape[1], stride):
        end = min(begin + max_length, ids.shape[1])
        num_targets = end - previous_end
        with torch.no_grad():
            logprobs = model(ids[:, begin:end]).logits[0, :-1].float().log_softmax(-1)
        of_next = logprobs.gather(1, ids[0, begin + 1 : end, None])[:, 0]
        found.append(of_next[-num_targets:].numpy())
        previous_end = end
        if end == ids.shape[1]:
            break
    return np.concatenate(found)


@pytest.mark.parametrize("family", ["llama", "gpt2", "bloom"])
@pytest.mark.parametrize(("window", "stride"), [(16, 16), (16, 5), (24, 1), (200, 64)])
def test_windows_equal_the_guide_on_plain_transformers(
    family: str,
    window: int,
    stride: int,
    small_model: Callable[..., LongMem],
    small_backbone: Callable[[str], Path],
) -> None:
    model = small_model(family)
    text = prose(0, 20)[:83]
    plain = AutoModelForCausalLM.from_pretrained(small_backbone(family), dtype=torch.float32).eval()
    if model.backbone.max_tokens is not None:
        window = min(window, model.backbone.max_tokens)
    found = model.score_windows(text, window, stride)
    expected = guide_logprobs(plain, model.tokenizer.sequence(text), window + 1, stride)
    np.testing.assert_allclose(found.logprobs, expected, atol=TOLERANCE)
    assert found.perplexity == pytest.approx(np.exp(-np.mean(expected)), rel=2 * TOLERANCE)
    assert found.num_windows == num_windows(len(expected), window, stride)
    assert found.num_unscored_tokens == int(model.tokenizer.start_token is None)


def test_windows_of_one_segment_without_overlap_are_the_backbone_of_a_text(small_model: Callable[..., LongMem]) -> None:
    model, text = small_model(), prose(1, 40)
    size = model.config.segment_tokens
    found, expected = model.score_windows(text, size, size).logprobs, model.score(text).backbone_logprobs
    whole = len(expected) // size * size
    np.testing.assert_array_equal(found[:whole], expected[:whole])
    # the last segment also reads the last token, which no window needs: other shapes, other rounding
    np.testing.assert_allclose(found[whole:], expected[whole:], atol=TOLERANCE)


def test_windows_read_more_context_than_segments(small_model: Callable[..., LongMem]) -> None:
    model, text = small_model(), prose(1, 40)
    size = model.config.segment_tokens
    plain, overlapping = (model.score_windows(text, size, stride).logprobs for stride in (size, 8))
    np.testing.assert_array_equal(plain[:size], overlapping[:size])
    assert np.abs(plain[size:] - overlapping[size:]).max() > 100 * TOLERANCE


def test_window_request_is_the_plain_function(small_model: Callable[..., LongMem]) -> None:
    model = small_model()
    _, second, *_ = cut_windows(model.tokenizer.sequence(prose(2, 30)), 16, 8)
    request = WindowRequest("a book", second)
    with InMemoryStore() as store:
        answer = request.answer(model, windows_of(model, store))
    np.testing.assert_array_equal(answer, score_window(model, second, "a book"))
    assert len(answer) == 8
    assert str(request) == "score of a book evaluation window 1"


def test_window_of_a_broken_backbone_is_told(small_model: Callable[..., LongMem]) -> None:
    model = small_model()
    sequence = model.tokenizer.sequence("a few letters")
    with torch.no_grad():
        model.backbone.model.get_input_embeddings().weight[int(sequence[3])] = torch.nan
    with pytest.raises(NumericError, match="text evaluation window 0: the backbone's log-probabilities: expected"):
        model.score_windows("a few letters", 8, 4)


@pytest.mark.parametrize(
    ("window", "stride", "message"),
    [
        (0, 1, "at least 1 token, got 0"),
        (8, 0, "from 1 to .* 8 tokens, got 0"),
        (8, 9, "leave tokens out; give 4, or 8"),
    ],
)
def test_window_that_cannot_be_is_refused(window: int, stride: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_window(window, stride)


def test_window_beyond_the_positions_is_refused(small_model: Callable[..., LongMem]) -> None:
    model = small_model("gpt2")
    most = model.backbone.max_tokens
    assert most is not None
    assert model.score_windows(prose(0, 20), most, most).num_windows > 0
    with pytest.raises(ConfigError, match=f"at most {most:,} tokens for backbone gpt2-0"):
        model.score_windows(prose(0, 20), most + 1, 8)


def test_a_text_without_tokens_is_refused(small_model: Callable[..., LongMem]) -> None:
    with pytest.raises(DocumentError):
        small_model().score_windows("", 8, 4)
