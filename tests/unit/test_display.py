# SPDX-License-Identifier: Apache-2.0
"""Objects in a notebook or terminal: short texts with the numbers that matter, and HTML without foreign markup."""

from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from longmem.display import bars_html, facts_html, rows_html
from longmem.errors import StoreError
from longmem.model.longmem import LongMem
from longmem.store.config import MemoryStore
from longmem.types import Document
from tests.inputs import ALL_LAYERS

TEXT = "The mill stood by the river, and the river by the mill. " * 4
NAME = "<script>alert(1)</script>"
VOID = {"line", "rect", "br"}


class Parsed(HTMLParser):
    """Texts and tags of a page whose tags are all closed in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.texts: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tags.append(tag)
        self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: object) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def shown(html: str) -> str:
    return " | ".join(Parsed(html).texts)


def test_repr_of_a_model_names_backbone_and_what_reads_its_memory(small_model: Callable[..., LongMem]) -> None:
    sidenet, every_layer = small_model("llama", trained_steps=7), small_model("llama", **ALL_LAYERS)
    assert repr(sidenet) == (
        "LongMem(llama-0, SideNet at layer 3, 7 steps, segments of 32 and memory of 96 tokens, float32 on cpu)"
    )
    assert "untrained" in repr(small_model("llama", unsettled=False))
    assert "every layer" in repr(every_layer)
    html = shown(every_layer._repr_html_())
    parameters = sum(each.numel() for each in every_layer.backbone.model.parameters())
    assert f"llama-0 (llama, {parameters:,} parameters)" in html
    assert "every layer" in html
    # every layer stores keys and values as float16
    shape = every_layer.backbone.shape
    assert f"{every_layer.backbone.num_layers * shape.kv_heads * shape.head_dim * 2 * 2:,} bytes each" in html


def test_scores_show_both_perplexities_and_the_gain_of_each_segment(small_model: Callable[..., LongMem]) -> None:
    scores = small_model("llama").score(TEXT)
    total = len(scores.logprobs)
    assert repr(scores) == (
        f"TextScores({total} tokens, perplexity {scores.perplexity:,.3f} with memory, "
        f"{scores.backbone_perplexity:,.3f} without)"
    )
    parsed = Parsed(scores._repr_html_())
    # the last segment may hold one token, which predicts nothing
    assert parsed.tags.count("rect") == sum(len(segment.logprobs) > 0 for segment in scores.segments) > 1
    # by definition, from the first segment alone
    first = len(scores.segments[0].logprobs)
    gain = np.mean(scores.logprobs[:first].astype(np.float64) - scores.backbone_logprobs[:first])
    assert f"0: {gain:+.4f} nats per token" in parsed.texts
    assert f"{scores.perplexity / scores.backbone_perplexity - 1:+.3%}" in parsed.texts


def test_scores_without_a_baseline_show_memory_alone(small_model: Callable[..., LongMem]) -> None:
    scores = replace(small_model("llama").score(TEXT), backbone_logprobs=None)
    assert (scores.backbone_perplexity, scores.change) == (None, None)
    assert repr(scores) == f"TextScores({len(scores.logprobs)} tokens, perplexity {scores.perplexity:,.3f} with memory)"
    parsed = Parsed(scores._repr_html_())
    assert "rect" not in parsed.tags
    assert parsed.texts[:3] == ["Perplexity per token", "with memory", f"{scores.perplexity:,.3f}"]
    assert not {"without memory", "change"} & set(parsed.texts)


def test_window_scores_show_their_perplexity(small_model: Callable[..., LongMem]) -> None:
    scores = small_model("llama").score_windows(TEXT, 32, 16)
    assert repr(scores) == (
        f"WindowScores({len(scores.logprobs)} tokens in {scores.num_windows} windows, "
        f"perplexity {scores.perplexity:,.3f})"
    )


@pytest.mark.parametrize("uri", ["memory://", "memory.lance"])
def test_a_store_lists_its_documents_and_a_document_its_segments(
    uri: str, small_model: Callable[..., LongMem], tmp_path: Path
) -> None:
    model = small_model("llama")
    location = uri if "://" in uri else str(tmp_path / uri)
    with MemoryStore.open(location) as store:
        assert "| 0 |" in shown(store._repr_html_())
        memory = store.document(NAME)
        model.score(TEXT, memory=memory)
        tokens = sum(info.num_tokens for info in store.segments(memory.key))
        assert repr(store).endswith(f"Store({location!r})")
        assert repr(memory) == f"WritableDocument({str(memory.key)!r} in {store!r})"
        assert repr(memory.as_read_only()).endswith(", read-only)")
        assert f"default | {NAME} | {len(memory.segments)} | {tokens}" in shown(store._repr_html_())
        html = shown(memory._repr_html_())
        assert f"{len(memory.segments)} segments, {tokens} tokens" in html
        assert f"0 to {tokens}" in html
    # a message may name the document of a closed store
    assert repr(memory) == f"WritableDocument({str(memory.key)!r} in {store!r})"
    with pytest.raises(StoreError):
        store._repr_html_()


def test_names_and_secrets_do_not_reach_the_page() -> None:
    uri = "s3://user:hunter2@bucket/memory"
    for html in (facts_html(NAME, {NAME: uri}), rows_html((NAME,), [(uri,)]), bars_html([1.0, -2.0], NAME, uri)):
        parsed = Parsed(html)
        assert "script" not in parsed.tags
        assert "hunter2" not in html


def test_bars_of_no_values_and_of_zeros_are_drawn() -> None:
    assert Parsed(bars_html([], "none", "nats")).tags.count("rect") == 0
    assert Parsed(bars_html([0.0, 0.0], "zeros", "nats")).tags.count("rect") == 2


def test_repr_of_a_document_does_not_hold_its_text() -> None:
    assert repr(Document("moby", "Call me Ishmael. " * 1000, "moby.txt")) == (
        "Document('moby', 17,000 characters of moby.txt)"
    )
