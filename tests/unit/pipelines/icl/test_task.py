# SPDX-License-Identifier: Apache-2.0
"""Task files and their data: the rendered examples, and the errors of invalid files."""

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from longmem.errors import ConfigError, DocumentError, LongMemError
from pipelines.icl.task import NAMES, SHIPPED, load_task

ROWS = [{"text": "good film", "label": "pos"}, {"text": "bad film", "label": "neg"}]
TASK = """
name = "mine"
train = "train.jsonl"
test = "test.jsonl"
template = "Review: {text} It was {label}. "
target = "label"
"""
WORDS = '[words]\npos = "great"\nneg = "poor"\n'


def write(folder: Path, rows: list[Any], toml: str = TASK + WORDS) -> Path:
    for name in ("train.jsonl", "test.jsonl"):
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "mine.toml").write_text(toml)
    return folder / "mine.toml"


def test_an_example_is_cut_at_its_target(tmp_path: Path) -> None:
    task = load_task(str(write(tmp_path, ROWS)), None)
    first, second = task.examples(task.train)
    assert (first.prompt, first.after, task.target_text(first)) == (" Review: good film It was", ".", "great")
    assert (second.name, second.answers, task.target_text(second)) == ("train.jsonl:2", ("neg",), "poor")


def test_examples_of_numbers_and_booleans_are_spelled_as_in_the_file(tmp_path: Path) -> None:
    toml = 'name = "m"\ntrain = "train.jsonl"\ntest = "test.jsonl"\ntarget = "sum"\n'
    toml += 'template = "{a}{{sum}} {b}: {sum}\\n"\n'
    task = load_task(str(write(tmp_path, [], toml)), None)
    task.test.write_text('{"a": 1.50, "b": true, "sum": 1e3}\n{"a": 12345678901234567890, "b": false, "sum": -0}\n')
    first, second = task.examples(task.test)
    assert (first.prompt, first.after, first.answers) == ("1.50{sum} true:", "\n", ("1e3",))
    assert (second.prompt, second.answers) == ("12345678901234567890{sum} false:", ("-0",))


def test_examples_of_a_bad_answer_among_several_names_it(tmp_path: Path) -> None:
    toml = TASK + 'max_new_tokens = 3\nuntil = "x"\n'
    task = load_task(str(write(tmp_path, [{"text": "a", "label": ["b", None]}], toml)), None)
    with pytest.raises(DocumentError, match=r"train.jsonl:1: field label is null"):
        task.examples(task.train)


@pytest.mark.parametrize("compression", ["", ".gz", ".zst"])
def test_examples_of_a_file_with_marks_and_odd_line_ends_are_read(tmp_path: Path, compression: str) -> None:
    mark, (first, second) = b"\xef\xbb\xbf", (json.dumps(row).encode() for row in ROWS)
    data = mark + first + b"\r\n\n" + mark + second + b"\r" + first
    toml = (TASK + WORDS).replace("train.jsonl", f"marked.jsonl{compression}")
    packed = {"": data, ".gz": gzip.compress(data), ".zst": pa.compress(data, codec="zstd", asbytes=True)}
    (tmp_path / f"marked.jsonl{compression}").write_bytes(packed[compression])
    task = load_task(str(write(tmp_path, ROWS, toml)), None)
    assert [each.name for each in task.examples(task.train)] == [f"marked.jsonl{compression}:{n}" for n in (1, 3, 4)]


def test_templates_with_braces_of_their_own_show_them(tmp_path: Path) -> None:
    toml = (TASK + WORDS).replace("{text} It was", "{{label}} {text} {{}} It was")
    task = load_task(str(write(tmp_path, [{"text": "{label} {0} {{x}}", "label": "pos"}], toml)), None)
    assert task.examples(task.train)[0].prompt == " Review: {label} {label} {0} {{x}} {} It was"


def test_any_field_may_be_a_number(tmp_path: Path) -> None:
    rows = [{"a": 3, "b": "x", "sum": 7}]
    toml = (
        'name = "m"\ntrain = "train.jsonl"\ntest = "test.jsonl"\ntarget = "sum"\ntemplate = "{a}{{}} {b}: {sum}\\n"\n'
    )
    task = load_task(str(write(tmp_path, rows, toml)), None)
    (example,) = task.examples(task.test)
    assert (example.prompt, example.after, example.answers) == ("3{} x:", "\n", ("7",))


def test_braces_in_the_data_stay_as_they_are(tmp_path: Path) -> None:
    task = load_task(str(write(tmp_path, [{"text": "{label} {}", "label": "pos"}])), None)
    assert task.examples(task.train)[0].prompt == " Review: {label} {} It was"


def test_squad_files_give_questions_with_all_their_answers(tmp_path: Path) -> None:
    answers = [{"text": "308", "answer_start": 3}, {"text": "308 points", "answer_start": 3}]
    question = {"id": "q1", "question": "How many?", "answers": answers}
    data = {"data": [{"title": "T", "paragraphs": [{"context": "They gave 308 points.", "qas": [question]}]}]}
    (tmp_path / "squad").mkdir()
    for name in ("train", "dev"):
        (tmp_path / "squad" / f"{name}.json").write_text(json.dumps(data))
    task = load_task("squad", tmp_path)
    (example,) = task.examples(task.test)
    assert example.prompt == "Context: They gave 308 points.\nQuestion: How many?\nAnswer:"
    assert (example.name, example.answers, task.target_text(example), example.after) == (
        "q1",
        ("308", "308 points"),
        "308",
        "\n",
    )


@pytest.mark.data
@pytest.mark.parametrize("name", NAMES)
def test_shipped_tasks_read_the_shared_data(name: str, data_folder: Path) -> None:
    task = load_task(name, data_folder / "icl")
    for path in (task.train, task.test):
        examples = task.examples(path)
        assert len(examples) >= 500
        assert {each.answers[0] for each in examples} == set(task.words) or task.generates


def test_there_are_the_papers_tasks_and_two_more() -> None:
    assert set(NAMES) == {"sst2", "mr", "subj", "sst5", "mpqa", "trec", "squad"}
    assert SHIPPED.is_dir()


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"text": "x", "label": "odd"}], r"train.jsonl:1: unknown label 'odd': task mine has pos, neg"),
        ([*ROWS, {"label": "pos"}], r"train.jsonl:3: no field text for the template of task mine; it has label"),
        ([{"text": "x", "label": " "}], r"train.jsonl:1: label, the target of task mine, is empty"),
        ([{"text": "x", "label": []}], r"train.jsonl:1: field label is a list"),
        (
            [{"text": "x", "label": ["pos"]}],
            r"train.jsonl:1: field label is a list: \['pos'\]: expected a text, a number",
        ),
        ([{"text": "x", "label": None}], r"train.jsonl:1: field label is null"),
        ([*ROWS, {"text": None, "label": "pos"}], r"train.jsonl:3: field text is null"),
        ([{"text": float("nan"), "label": "pos"}], r"train.jsonl:1: field text is not a finite number: nan"),
        ([{"text": float("-inf"), "label": "pos"}], r"train.jsonl:1: field text is not a finite number: -inf"),
        ([{"text": {"a": 1}, "label": "pos"}], r"train.jsonl:1: field text is an object: \{'a': '1'\}"),
        ([{"text": "\ud800", "label": "pos"}], r"train.jsonl:1: field text is not valid Unicode"),
        ([["x"]], r"train.jsonl line 1 must be a JSON object, got list"),
    ],
)
def test_rows_that_cannot_be_used(tmp_path: Path, rows: list[Any], message: str) -> None:
    task = load_task(str(write(tmp_path, rows)), None)
    with pytest.raises(DocumentError, match=message):
        task.examples(task.train)


@pytest.mark.parametrize("content", [b"{\n", b"\xff\xfe{}\n"])
def test_files_that_are_no_json_lines(tmp_path: Path, content: bytes) -> None:
    task = load_task(str(write(tmp_path, ROWS)), None)
    (tmp_path / "train.jsonl").write_bytes(content)
    with pytest.raises(DocumentError, match=r"train.jsonl"):
        task.examples(task.train)


@pytest.mark.parametrize("content", ["{}", '{"data": [{"paragraphs": [{"qas": [{}]}]}]}', "[]"])
def test_json_that_is_not_laid_out_like_squad(tmp_path: Path, content: str) -> None:
    (tmp_path / "squad").mkdir()
    for name in ("train", "dev"):
        (tmp_path / "squad" / f"{name}.json").write_text(content)
    task = load_task("squad", tmp_path)
    with pytest.raises(DocumentError, match=r"layout of SQuAD 1.1"):
        task.examples(task.train)


@pytest.mark.parametrize(
    ("toml", "message"),
    [
        (TASK.replace("{label}", "it"), r"must have \{label\}, the target, exactly once"),
        (TASK.replace("{text}", "{label}"), "exactly once"),
        (TASK.replace("{text}", "{text"), "is malformed"),
        (TASK.replace("train =", "# "), "lacks train"),
        (TASK + "shots = 3", "does not know shots"),
        (TASK + "max_new_tokens = 3", "generated answers need max_new_tokens of at least 1 and until"),
        (TASK + 'until = "x"', "generated answers need max_new_tokens of at least 1 and until"),
        (TASK + 'max_new_tokens = 3\nuntil = "x"\n' + WORDS, "either chosen among words or generated"),
        (TASK + WORDS.replace("poor", "great"), "two labels have the same word"),
        (TASK.replace("train.jsonl", "nowhere.jsonl"), "no file .*nowhere.jsonl"),
        ("name = ", "cannot read task"),
        (TASK.replace('"Review: {text} It was {label}. "', "5"), "template must be a text, got 5"),
        (TASK.replace('"train.jsonl"', '["a"]'), r"train must be a text, got \['a'\]"),
        (TASK.replace('"mine"', '""'), "name must be a text, got ''"),
        (TASK + 'max_new_tokens = true\nuntil = "x"', "max_new_tokens must be a whole number, got True"),
        (TASK + 'max_new_tokens = "3"\nuntil = "x"', "max_new_tokens must be a whole number, got '3'"),
        (TASK + "words = 5", "words must be a table with a text for each label, got 5"),
        (TASK + WORDS.replace('"poor"', '["poor"]'), "words must be a table with a text for each label"),
        (TASK + WORDS.replace("poor", "great "), "two labels have the same word"),
        (TASK.replace("{text}", "{text!x}"), "without a format or conversion; take 'x' out"),
        (TASK.replace("{text}", "{text:d}"), "without a format or conversion; take 'd' out"),
        (TASK.replace("Review: {text} It was {label}", "{label}: {text}"), r"something before \{label\}"),
    ],
)
def test_task_files_that_cannot_be_used(tmp_path: Path, toml: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_task(str(write(tmp_path, ROWS, toml)), None)


@pytest.mark.parametrize(
    ("name", "message"),
    [("sst3", "no task 'sst3': expected one of mpqa, mr"), ("gone.toml", "no task"), ("sst2", "needs --data")],
)
def test_tasks_that_are_not_there(name: str, message: str) -> None:
    with pytest.raises(LongMemError, match=message):
        load_task(name, None)
