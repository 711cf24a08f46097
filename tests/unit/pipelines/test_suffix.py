# SPDX-License-Identifier: Apache-2.0
"""Suffix identification: files, figures by hand, and scores against plain transformers and the naive view."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from longmem.errors import ConfigError
from longmem.model.longmem import LongMem
from longmem.types import DocumentKey, Segment
from pipelines.suffix.data import SuffixExample, read_examples
from pipelines.suffix.figures import chance, figures_by_length, is_correct, mean_interval
from pipelines.suffix.job import SuffixJournal
from pipelines.suffix.report import accuracy_chart
from pipelines.suffix.scoring import SuffixLengths, SuffixScore, score_example

OURS = {"id": "a", "book": "b", "prefix": "It was", "candidates": ["one", "two", "three"], "label": 2}
OFFICIAL = {"ctx": "It was", "pos": "one", "negs": ["two", "three"]}


def write(path: Path, *lines: object) -> Path:
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


# --- files -----------------------------------------------------------------------------------------------------------


def test_layouts(tmp_path: Path) -> None:
    first, second = read_examples(write(tmp_path / "x.jsonl", OURS, "", OFFICIAL))
    assert first == SuffixExample("a", "b", "It was", ("one", "two", "three"), 2)
    assert second == SuffixExample("x:3", "", "It was", ("one", "two", "three"), 0)
    works = {"pg19": {"17": [OFFICIAL, OFFICIAL]}, "ao3": {"18": [OFFICIAL]}}
    examples = read_examples(write(tmp_path / "x.json", works), "pg19")
    assert [(each.id, each.work, each.label) for each in examples] == [("17:0", "17", 0), ("17:1", "17", 0)]


def test_read_examples_of_ids_that_are_not_given_numbers_them(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl.gz"
    rows = [{**OURS, "id": None, "book": None}, {**OURS, "id": 7}, {**OURS, "id": " "}]
    path.write_bytes(gzip.compress("\r".join("\ufeff" + json.dumps(row) for row in rows).encode()))
    assert [(each.id, each.work) for each in read_examples(path)] == [("x:1", ""), ("7", "b"), ("x:3", "b")]


@pytest.mark.parametrize(
    ("name", "lines", "split", "message"),
    [
        ("x.jsonl", [{**OURS, "id": ["a"]}], None, r"line 1: `id` must be a text or a number, got list"),
        ("x.jsonl", [{**OURS, "book": True}], None, r"line 1: `book` must be a text or a number, got bool"),
        ("x.jsonl", [OURS, "{"], None, "x.jsonl line 2 is not valid JSON"),
        ("x.jsonl", [[1]], None, "line 1 must be a JSON object, got list"),
        ("x.jsonl", [{**OURS, "prefix": " "}], None, "context must be a text that is not empty"),
        ("x.jsonl", [{**OURS, "prefix": "\ud800"}], None, "context must be a text"),
        ("x.jsonl", [{**OURS, "candidates": ["one"]}], None, "at least two candidates"),
        ("x.jsonl", [{**OURS, "candidates": ["one", 2]}], None, "candidate 1 must be a text that is not empty, got 2"),
        ("x.jsonl", [{**OURS, "label": 3}], None, "label must be a whole number from 0 to 2, got 3"),
        ("x.jsonl", [{**OURS, "label": True}], None, "label must be a whole number from 0 to 2, got True"),
        ("x.jsonl", [{**OFFICIAL, "negs": "two"}], None, "candidate 1 must be a text that is not empty, got None"),
        ("x.jsonl", [OURS, OURS], None, "the id 'a' occurs twice"),
        ("x.jsonl", [""], None, "holds no examples"),
        ("x.jsonl", [OURS], "pg19", "--split names a part of a ChapterBreak .json file"),
        ("x.json", [[1]], "pg19", "must be an object of splits and works, got list"),
        ("x.json", [{"pg19": {"1": [OFFICIAL]}}], "ao3", r"has the splits \['pg19'\], choose one with --split"),
        ("x.json", [{"pg19": {"1": [OFFICIAL]}}], None, "choose one with --split"),
        ("x.json", [{"pg19": [OFFICIAL]}], "pg19", "an object of works with a list of examples each"),
        ("x.json", [{"pg19": {"1": [{"ctx": "a"}]}}], "pg19", "work 1 example 0: candidate 0 must be a text"),
        ("x.txt", [OURS], None, "unknown format: expected .jsonl or .json"),
    ],
)
def test_files_that_are_no_examples(
    tmp_path: Path, name: str, lines: list[object], split: str | None, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        read_examples(write(tmp_path / name, *lines), split)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read .*none.jsonl"):
        read_examples(tmp_path / "none.jsonl")
    (tmp_path / "x.jsonl").write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(ConfigError, match="not valid UTF-8"):
        read_examples(tmp_path / "x.jsonl")


# --- figures ---------------------------------------------------------------------------------------------------------


def scored(
    memory: list[float],
    none: list[float],
    label: int = 0,
    context_tokens: int = 512,
    alone: tuple[float, ...] = (0.0, 0.0),
) -> SuffixScore:
    return SuffixScore(
        example="e",
        work="w",
        label=label,
        context_tokens=context_tokens,
        local_tokens=8,
        memory_tokens=4,
        suffix_tokens=[2] * len(memory),
        nll_memory=memory,
        nll_no_memory=none,
        nll_backbone=none,
        nll_alone=list(alone),
    )


def test_a_tie_is_no_answer() -> None:
    assert is_correct(scored([1.0, 2.0], [1.0, 1.0]), "memory")
    assert not is_correct(scored([1.0, 2.0], [1.0, 1.0]), "no_memory")
    assert not is_correct(scored([1.0, 2.0], [1.0, 1.0], label=1), "memory")


def test_information_is_what_the_context_adds() -> None:
    """Check a candidate that is probable anywhere: the context makes the other one more probable than it was."""
    score = scored([4.0, 3.0], [6.0, 3.0], alone=(6.0, 3.5))
    assert [is_correct(score, "memory", by) for by in ("probability", "information")] == [False, True]
    assert not is_correct(score, "no_memory", "information")
    tie = scored([4.0, 3.0], [6.0, 3.0], alone=(5.0, 4.0))
    assert not is_correct(tie, "memory", "information")
    (row,) = figures_by_length([score])
    assert (row.memory.accuracy_information.value, row.no_memory.accuracy_information.value) == (1.0, 0.0)
    assert (row.accuracy_gain.value, row.accuracy_information_gain.value) == (0.0, 1.0)


def test_figures_by_hand() -> None:
    scores = [scored([1, 2], [2, 1]), scored([3, 2], [3, 2]), scored([1, 5], [2, 5]), scored([1, 9], [9, 1])]
    (row,) = figures_by_length(scores)
    assert (row.memory.accuracy.value, row.no_memory.accuracy.value) == (0.75, 0.25)
    assert row.accuracy_gain.value == 0.5
    assert row.memory.nll_per_token.value == pytest.approx((1 + 3 + 1 + 1) / 4 / 2)
    assert row.nll_gain.value == pytest.approx((6 - 16) / 4 / 2)
    assert chance(scores) == 0.5
    longer = figures_by_length([*scores, scored([1, 2], [1, 2], context_tokens=128)])
    assert [each.context_tokens for each in longer] == [128, 512]


def test_the_chart_repeats_no_finding() -> None:
    def figures(context_tokens: int, with_memory: float, without: float) -> dict[str, Any]:
        none = {"low": None, "high": None}
        ways = {"memory": with_memory, "no_memory": without, "backbone": without}
        return {"context_tokens": context_tokens} | {
            way: {"accuracy": {"value": value, **none}} for way, value in ways.items()
        }

    one, two = figures(512, 0.25, 0.5), figures(1024, 0.75, 0.5)
    assert accuracy_chart([one], 0.2, "probability") is None
    chart = accuracy_chart([one, two], 0.2, "probability")
    assert chart is not None
    assert (
        chart.description
        == "Accuracy by probability and context length: at 512 tokens 25.0% with memory, 50.0% without."
    )


def test_intervals_cover_the_mean_as_often_as_they_say() -> None:
    random = np.random.default_rng(1)
    covered = 0
    for _ in range(100):
        interval = mean_interval(random.normal(2.0, 1.0, size=60))
        assert interval.low is not None
        assert interval.high is not None
        covered += interval.low <= 2.0 <= interval.high
    assert 88 <= covered <= 99
    assert mean_interval(np.array([1.0])).low is None


# --- scores ----------------------------------------------------------------------------------------------------------

TEXT = "Call me Ishmael. Some years ago, never mind how long precisely, having little or no money in my purse"
EXAMPLE = SuffixExample("e", "w", TEXT, ("I thought I would sail", "whale", "the watery part of the world"), 1)
LENGTHS = SuffixLengths(context_tokens=(8, 40, 90, 4096), suffix_tokens=10)


@pytest.fixture
def model(small_model: Callable[..., LongMem]) -> LongMem:
    return small_model(segment_tokens=32, memory_tokens=96)


def test_a_score_is_that_of_a_segment_after_its_memory(model: LongMem, naive_view: Callable[..., Any]) -> None:
    context = model.tokenizer.sequence(TEXT)
    for score in score_example(model, EXAMPLE, LENGTHS):
        num_read = min(score.context_tokens, len(context))
        local = min(num_read, 32 + 1 - 10)
        end = len(context) - local
        assert (score.local_tokens, score.memory_tokens) == (local, min(num_read - local, 96))
        blocks, at = [], end
        while at > end - score.memory_tokens:
            first = max(end - score.memory_tokens, at - 32)
            blocks.insert(0, model.encode(Segment(DocumentKey("", ""), 0, first, context[first:at], context[:0])).block)
            at = first
        view = naive_view(blocks, end - score.memory_tokens, end, model.key_space) if blocks else None
        for index, text in enumerate(EXAMPLE.candidates):
            targets = model.tokenizer.sequence(text)[1:][:10]
            tokens = np.concatenate([context[end:], targets])
            segment = Segment(DocumentKey("", ""), 0, end, tokens[:-1], tokens[1:])
            encoded = model.encode(segment)
            for seen, nats in ((view, score.nll_memory), (None, score.nll_no_memory)):
                read = model.score_segment(segment, encoded.block.keys, encoded.state, seen)
                assert nats[index] == pytest.approx(-read.logprobs[local - 1 :].sum(), abs=1e-4)
            assert score.nll_backbone[index] == pytest.approx(-encoded.backbone_logprobs[local - 1 :].sum(), abs=1e-4)
            assert score.suffix_tokens[index] == len(targets)


def test_the_backbone_is_plain_transformers(model: LongMem, small_backbone: Callable[[str], Path]) -> None:
    plain = AutoModelForCausalLM.from_pretrained(small_backbone("llama")).eval()
    score = score_example(model, EXAMPLE, LENGTHS)[1]
    context = model.tokenizer.sequence(TEXT)[-score.local_tokens :].astype(np.int64)
    for text, nats in zip(EXAMPLE.candidates, score.nll_backbone, strict=True):
        targets = model.tokenizer.sequence(text)[1:][:10].astype(np.int64)
        with torch.no_grad():
            logits = plain(torch.from_numpy(np.concatenate([context, targets]))[None]).logits[0].log_softmax(dim=1)
        expected = sum(-float(logits[len(context) - 1 + i, token]) for i, token in enumerate(targets))
        assert nats == pytest.approx(expected, abs=1e-4)


def test_a_journal_of_an_earlier_version_is_told(tmp_path: Path) -> None:
    values = {name: value for name, value in vars(scored([1.0, 2.0], [1.0, 1.0])).items() if name != "nll_alone"}
    earlier = pytest.raises(ConfigError, match=r"of an earlier version of longmem.*another --out")
    with SuffixJournal(tmp_path / "journal.jsonl") as journal, earlier:
        journal._decode({"scores": [values]})


@pytest.mark.parametrize("start", [True, False])
def test_a_candidate_alone_is_plain_transformers(
    model: LongMem, small_backbone: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, start: bool
) -> None:
    """Check that without a start token the first token, which has nothing in front of it, is not scored."""
    plain = AutoModelForCausalLM.from_pretrained(small_backbone("llama")).eval()
    example = SuffixExample("e", "w", TEXT, ("I thought I would sail", "w"), 1)
    texts = [model.tokenizer.sequence(text)[(not start) : 11].astype(np.int64) for text in example.candidates]
    if not start:
        monkeypatch.setattr(type(model.tokenizer), "start_token", None)
    found = {tuple(score.nll_alone) for score in score_example(model, example, LENGTHS)}
    assert len(found) == 1, "it depends on no context"
    for text, nats in zip(texts, found.pop(), strict=True):
        tokens = torch.from_numpy(text)
        if len(tokens) == 1:
            assert nats == 0.0
            continue
        with torch.no_grad():
            logprobs = plain(tokens[None, :-1]).logits[0].log_softmax(dim=1)
        assert nats == pytest.approx(-float(logprobs.gather(1, tokens[1:, None]).sum()), abs=1e-4)


def test_a_short_length_knows_nothing_of_what_lies_before_it(model: LongMem) -> None:
    other = SuffixExample("e", "w", "ZZZ " + TEXT[4:], EXAMPLE.candidates, 1)
    ours, theirs = (score_example(model, each, LENGTHS) for each in (EXAMPLE, other))
    assert ours[:3] == theirs[:3]
    assert ours[3] != theirs[3], "the whole context is another one"


@pytest.mark.parametrize(
    ("lengths", "suffix_tokens", "message"),
    [
        ((), 8, "--context-tokens must be numbers of at least 1"),
        ((0, 5), 8, "--context-tokens must be numbers of at least 1"),
        ((5, 5), 8, "--context-tokens must ascend"),
        ((5,), 0, "--suffix-tokens must be at least 1"),
    ],
)
def test_lengths_that_cannot_be(lengths: tuple[int, ...], suffix_tokens: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SuffixLengths(context_tokens=lengths, suffix_tokens=suffix_tokens)


def test_candidates_that_leave_no_room(model: LongMem) -> None:
    with pytest.raises(ConfigError, match="--suffix-tokens 33 leaves no room for context in a segment of 32 tokens"):
        score_example(model, EXAMPLE, SuffixLengths(context_tokens=(64,), suffix_tokens=33))
