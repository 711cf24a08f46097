# SPDX-License-Identifier: Apache-2.0
"""Demonstrations and items of a grid point, as tokens."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from longmem.backbone.tokenizer import Tokenizer
from longmem.errors import ConfigError, DocumentError
from longmem.model.longmem import LongMem
from pipelines.icl import packs
from pipelines.icl.packs import memories_of, pack_demonstrations
from pipelines.icl.task import IclTask
from pipelines.icl.task_data import GridPoint, PreparedTask

SEGMENT = 64


@pytest.fixture(scope="module")
def tokenizer(small_model: Callable[..., LongMem]) -> Tokenizer:
    return small_model().tokenizer


def task_of(folder: Path, train: list[tuple[str, str]], test: list[tuple[str, str]], words: dict[str, str]) -> IclTask:
    for name, rows in (("train", train), ("test", test)):
        lines = [json.dumps({"text": text, "label": label}) + "\n" for text, label in rows]
        (folder / f"{name}.jsonl").write_text("".join(lines))
    return IclTask(
        name="toy",
        train=folder / "train.jsonl",
        test=folder / "test.jsonl",
        template="Q {text} A {label}. ",
        target="label",
        words=words,
    )


TRAIN = [(f"t{number:02}", "yes" if number % 3 else "no") for number in range(30)]
TEST = [(f"i{number}", "no" if number < 4 else "yes") for number in range(8)]
WORDS = {"no": "no", "yes": "yes"}


@pytest.fixture
def prepared(tmp_path: Path, tokenizer: Tokenizer) -> PreparedTask:
    return PreparedTask(task_of(tmp_path, TRAIN, TEST, WORDS), tokenizer, SEGMENT, None, 4)


def text_of(tokenizer: Tokenizer, tokens: np.ndarray) -> str:
    return tokenizer.decode(tokens.tolist())


def test_a_prompt_is_demonstrations_and_then_the_item(prepared: PreparedTask, tokenizer: Tokenizer) -> None:
    for prompt in prepared.prompts(GridPoint("toy", 3, 2, 0)):
        text = text_of(tokenizer, prompt.tokens)
        item = prepared.items[prompt.index].example
        assert prompt.shots == 2
        assert text.count(" Q t") == 2
        assert text.endswith(item.prompt)
        ends = {label: text_of(tokenizer, np.concatenate([prompt.tokens, t])) for label, t in prompt.targets.items()}
        assert ends == {label: f"{text} {word}" for label, word in WORDS.items()}
        assert prompt.tokens[0] == tokenizer.start_token


def test_no_demonstration_is_in_context_and_in_memory(prepared: PreparedTask, tokenizer: Tokenizer) -> None:
    memory = prepared.memory(0, 20)
    assert memory is not None
    stored = "".join(text_of(tokenizer, segment.tokens) for segment in memory.segments)
    prompt = text_of(tokenizer, prepared.prompts(GridPoint("toy", 0, 4, 20))[0].tokens)
    shown = [text for text, _ in TRAIN if f"Q {text} " in prompt]
    held = [text for text, _ in TRAIN if f"Q {text} " in stored]
    assert (len(shown), len(held)) == (len(prompt.split(" Q t")) - 1, 20)
    assert not {*shown} & {*held}


def test_a_seed_is_another_draw_in_another_order_and_the_same_each_time(prepared: PreparedTask) -> None:
    names = [prepared.memory(seed, 20).key.document for seed in (0, 1, 0)]  # type: ignore[union-attr]
    assert names[0] == names[2] != names[1]
    assert prepared.memory(0, 0) is None


def test_a_memory_does_not_depend_on_other_columns_of_the_grid(tmp_path: Path, tokenizer: Tokenizer) -> None:
    task = task_of(tmp_path, TRAIN, TEST, WORDS)
    one, other = (PreparedTask(task, tokenizer, SEGMENT, limit, 4) for limit in (None, 3))
    assert one.memory(0, 20).key == other.memory(0, 20).key  # type: ignore[union-attr]
    few, many = one.memory(0, 10), one.memory(0, 20)
    assert few is not None
    assert many is not None
    for part, same in zip(few.segments[:-1], many.segments, strict=False):
        assert part.tokens_checksum() == same.tokens_checksum()


def test_items_are_mixed_before_they_are_limited(tmp_path: Path, tokenizer: Tokenizer) -> None:
    task = task_of(tmp_path, TRAIN, TEST, WORDS)
    names = [[each.example.name for each in PreparedTask(task, tokenizer, SEGMENT, n, 4).items] for n in (5, None)]
    assert names[0] == names[1][:5] != sorted(names[0])


def test_what_does_not_fit_in_context_is_left_out_from_the_far_end(tmp_path: Path, tokenizer: Tokenizer) -> None:
    prepared = PreparedTask(task_of(tmp_path, TRAIN, TEST, WORDS), tokenizer, SEGMENT, None, 9)
    four, nine = (prepared.prompts(GridPoint("toy", 0, shots, 0)) for shots in (4, 9))
    assert {prompt.shots for prompt in nine} < {2, 3, 4}
    for prompt in nine:
        longest = max(len(target) for target in prompt.targets.values())
        assert len(prompt.tokens) + longest - 1 <= SEGMENT
        text = text_of(tokenizer, prompt.tokens)
        assert text.count(" Q t") == prompt.shots
    order = [prepared.demonstrations[number].example.prompt for number in prepared.order(0)]
    kept = text_of(tokenizer, nine[0].tokens)
    assert [each in kept for each in order[:9]] == [False] * (9 - nine[0].shots) + [True] * nine[0].shots
    assert len(four) == len(nine)


def test_items_and_demonstrations_longer_than_a_segment_are_counted(tmp_path: Path, tokenizer: Tokenizer) -> None:
    long = "x" * SEGMENT
    task = task_of(tmp_path, [*TRAIN, (long, "no")], [*TEST, (long, "no")], WORDS)
    prepared = PreparedTask(task, tokenizer, SEGMENT, None, 4)
    assert (len(prepared.items), prepared.num_long_items) == (len(TEST), 1)
    assert (len(prepared.demonstrations), prepared.num_long_demonstrations) == (len(TRAIN), 1)
    # a segment holds one token more than the longest item reads
    fits = "x" * (SEGMENT - len(tokenizer.sequence(" Q  A yes")) + 1)
    edge = PreparedTask(
        task_of(tmp_path, TRAIN, [(fits, "no"), (fits + "x", "no")], WORDS), tokenizer, SEGMENT, None, 0
    )
    assert (len(edge.items), edge.num_long_items) == (1, 1)
    with pytest.raises(DocumentError, match="no item fits a segment of 64 tokens"):
        PreparedTask(task_of(tmp_path, TRAIN, [(long, "no")], WORDS), tokenizer, SEGMENT, None, 4)


def test_labels_without_words_are_those_of_the_demonstrations(tmp_path: Path, tokenizer: Tokenizer) -> None:
    prepared = PreparedTask(task_of(tmp_path, TRAIN, TEST, {}), tokenizer, SEGMENT, None, 4)
    assert prepared.task.words == WORDS
    with pytest.raises(DocumentError, match=r"test.jsonl:1: unknown label 'maybe'"):
        PreparedTask(task_of(tmp_path, TRAIN, [("x", "maybe")], {}), tokenizer, SEGMENT, None, 4)


def test_a_class_without_demonstrations_is_an_error(tmp_path: Path, tokenizer: Tokenizer) -> None:
    task = task_of(tmp_path, TRAIN, TEST, {**WORDS, "maybe": "maybe"})
    with pytest.raises(DocumentError, match=r"no demonstration in .* has the label maybe"):
        PreparedTask(task, tokenizer, SEGMENT, None, 4)
    with pytest.raises(DocumentError, match="at least two classes"):
        PreparedTask(task_of(tmp_path, TRAIN[:1], TEST[:1], {}), tokenizer, SEGMENT, None, 0)


def test_files_without_rows_are_named(tmp_path: Path, tokenizer: Tokenizer) -> None:
    with pytest.raises(DocumentError, match=r"train.jsonl has no rows"):
        PreparedTask(task_of(tmp_path, [], TEST, {}), tokenizer, SEGMENT, None, 0)
    with pytest.raises(DocumentError, match=r"test.jsonl has no rows"):
        PreparedTask(task_of(tmp_path, TRAIN, [], {}), tokenizer, SEGMENT, None, 0)


def test_labels_that_differ_in_spaces_alone_are_an_error(tmp_path: Path, tokenizer: Tokenizer) -> None:
    label = TRAIN[0][1]
    with pytest.raises(ConfigError, match="two labels have the same word"):
        PreparedTask(task_of(tmp_path, [*TRAIN, ("x", f"{label} ")], TEST, {}), tokenizer, SEGMENT, None, 0)


def test_more_demonstrations_than_there_are_is_an_error(prepared: PreparedTask) -> None:
    prepared.check(26)
    with pytest.raises(ConfigError, match=r"4 demonstrations in context and 27 in memory are 31, but .* has 30"):
        prepared.check(27)


def test_packs_become_longer_only_where_a_fixed_memory_needs_it(
    prepared: PreparedTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packs, "PACK_TOKENS", 16)
    length = len(prepared.demonstrations[0].demonstration)
    assert SEGMENT // 4 < 2 * length <= SEGMENT // 2, "one fits a pack of 16, two do not"

    def packed(asked: int | None, memory_tokens: int | None) -> tuple[int, int]:
        size = pack_demonstrations({"toy": prepared}, 2, 20, asked, SEGMENT, memory_tokens)
        return size, max(len(memory.segments) for _, _, memory in memories_of({"toy": prepared}, 2, 20))

    alone, shortest = packed(None, None)
    assert (alone, shortest) == (16, 20)
    assert packed(None, 20 * SEGMENT) == (16, 20)
    longer, fewer = packed(None, 12 * SEGMENT)
    assert longer == 32
    assert fewer <= 12
    # even full segments do not fit: the caller tells how many positions they take
    assert packed(None, SEGMENT)[0] == SEGMENT
    assert packed(24, SEGMENT)[0] == 24
    assert packed(10_000, None)[0] == SEGMENT
