# SPDX-License-Identifier: Apache-2.0
"""Rows of Hugging Face datasets as documents: local folders and files in every form that `datasets` reads."""

import builtins
import gc
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pytest
from datasets import Dataset, DatasetDict, IterableDataset

from longmem.errors import ConfigError, DocumentError
from longmem.text.dataset_rows import DatasetSource, read_dataset, read_rows
from longmem.text.documents import UnreadableDocument, read_documents
from longmem.types import Document

pytestmark = [
    pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning"),
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning"),
]


@pytest.fixture(autouse=True)
def files_that_datasets_leaves_open() -> Iterator[None]:
    """Collect them here: datasets 5.2.0 closes no file of a .csv that is streamed, and a later test would be warned."""
    yield
    gc.collect()


ROWS = [{"title": f"book {n}", "body": f"text of book {n}"} for n in range(5)]


def write_lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a dataset folder with two splits, as one clones it from the hub."""
    write_lines(tmp_path / "library" / "data" / "train.jsonl", ROWS)
    write_lines(tmp_path / "library" / "data" / "test.jsonl", ROWS[:2])
    return tmp_path / "library"


def source(name: object, **selected: str) -> DatasetSource:
    return DatasetSource(str(name), **{"text_column": "body", **selected})


def texts(given: DatasetSource) -> dict[str, str]:
    """Return texts by id of a dataset without defects."""
    read = list(read_documents([given]))
    assert all(isinstance(each, Document) for each in read), read
    return {each.id: each.text for each in read if isinstance(each, Document)}


def test_a_folder_streams_the_chosen_split_and_names_its_rows(folder: Path) -> None:
    given = source(folder, split="test")
    assert isinstance(given.open(), IterableDataset), "a stream, which loads no file whole"
    assert texts(given) == {"library:0": "text of book 0", "library:1": "text of book 1"}


def test_splits_are_joined_with_a_plus(folder: Path) -> None:
    assert len(texts(source(folder, split="train+test"))) == 7


def test_a_column_names_the_documents(folder: Path) -> None:
    named = texts(source(folder, split="train", id_column="title"))
    assert named == {row["title"]: row["body"] for row in ROWS}


# datasets 5.2 closes no .csv file that it streams
@pytest.mark.filterwarnings("ignore:Exception ignored in.*books.csv:pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("suffix", ["parquet", "csv", "jsonl"])
def test_a_file_of_each_format_is_read(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"books.{suffix}"
    getattr(Dataset.from_list(ROWS), {"jsonl": "to_json"}.get(suffix, f"to_{suffix}"))(str(path))
    assert texts(source(path)) == {f"books:{n}": row["body"] for n, row in enumerate(ROWS)}


def test_a_text_file_is_refused_because_it_would_be_one_row_per_line(tmp_path: Path) -> None:
    (tmp_path / "book.txt").write_text("one\ntwo\n")
    with pytest.raises(ConfigError, match="give a text file as an INPUT"):
        source(tmp_path / "book.txt").check()


def test_saved_datasets_are_memory_mapped(tmp_path: Path) -> None:
    rows = Dataset.from_list(ROWS)
    rows.save_to_disk(str(tmp_path / "one"))
    DatasetDict({"a": rows, "b": rows.select([0])}).save_to_disk(str(tmp_path / "two"))
    opened = source(tmp_path / "one").open()
    assert isinstance(opened, Dataset)
    assert opened.cache_files, "mapped from its file"
    assert len(texts(source(tmp_path / "one"))) == 5
    assert texts(source(tmp_path / "two", split="b")) == {"two:0": "text of book 0"}


@pytest.mark.parametrize(
    ("selected", "message"),
    [
        ({}, "choose one of its splits with --split: train, test"),
        ({"split": "valid"}, "Bad split: valid"),
        ({"split": "test", "subset": "small"}, "BuilderConfig 'small' not found"),
        (
            {"split": "test", "text_column": "text"},
            ", split test has no column 'text' (--text-column); it has title, body",
        ),
        ({"split": "test", "id_column": "isbn"}, ", split test has no column 'isbn' (--id-column); it has title, body"),
    ],
)
def test_a_selection_that_is_not_there_says_what_there_is(selected: dict[str, str], message: str, folder: Path) -> None:
    with pytest.raises(ConfigError) as error:
        source(folder, **selected).check()
    assert message in str(error.value)
    assert str(folder) in str(error.value)


def test_a_dataset_that_the_hub_does_not_give_is_an_error_of_ours() -> None:
    # tests are offline
    with pytest.raises(ConfigError, match="cannot read dataset nobody/nothing"):
        source("nobody/nothing").check()


def test_a_damaged_row_fails_and_the_rows_before_it_are_read(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "books.jsonl", [{"text": f"text {n} " + "x" * 1000} for n in range(60_000)])
    with path.open("a") as file:
        file.write('{"text": "cut o')
    read = list(read_documents([DatasetSource(str(path))]))
    assert isinstance(read[0], Document)
    assert isinstance(read[-1], UnreadableDocument)
    assert "the rows after it are not read" in str(read[-1].error)
    assert 1 < len(read) < 60_001


def test_rows_that_are_no_documents_fail_alone(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    Dataset.from_dict({"id": ["a", "b", "a", None], "body": ["one", None, "again", "four"]}).to_parquet(str(path))
    read = list(read_documents([source(path)]))
    messages = [str(each.error) if isinstance(each, UnreadableDocument) else each.text for each in read]
    assert [each.id for each in read][:2] == ["a", "b"]
    assert messages[0] == "one"
    assert "row 1 needs a string in `body`, got NoneType" in messages[1]
    assert "the id 'a' was already used" in messages[2]
    assert (read[3].id, messages[3]) == ("rows:3", "four")


def test_an_empty_dataset_is_one_unreadable_document(tmp_path: Path) -> None:
    # datasets 5.2 cannot load what it saves of a dataset without rows
    [document] = read_rows(Dataset.from_dict({"text": []}), "text", None, "none", "none")
    assert isinstance(document, UnreadableDocument)
    assert "expected at least one row" in str(document.error)


# --- objects of the Python API ----------------------------------------------------------------------------------


@pytest.mark.parametrize("form", [None, "numpy", "torch", "pandas"])
def test_a_dataset_object_is_read_in_any_format(form: str | None) -> None:
    rows = Dataset.from_dict({"id": [7, 8], "text": ["one", "two"], "other": [[1], [2]]}).with_format(form)
    assert [(each.id, each.text) for each in read_dataset(rows)] == [("7", "one"), ("8", "two")]


def test_a_stream_is_read_as_far_as_it_is_asked_for() -> None:
    read: list[int] = []

    def rows() -> Iterator[dict[str, str]]:
        for number in range(1000):
            read.append(number)
            yield {"content": f"text {number}"}

    stream = IterableDataset.from_generator(rows)
    documents = read_dataset(stream, text_column="content", name="numbers")
    assert [next(documents).id, next(documents).text] == ["numbers:0", "text 1"]
    assert len(set(read)) < 5


def test_a_bad_row_of_an_object_is_raised() -> None:
    documents = read_dataset(Dataset.from_dict({"text": ["one", " "]}))
    assert next(documents).text == "one"
    with pytest.raises(DocumentError, match="row 1 is empty"):
        next(documents)


@pytest.mark.parametrize("given", [["a text"], DatasetDict({"train": Dataset.from_dict({"text": ["a"]})})])
def test_anything_else_is_refused(given: Any, as_users_run: None) -> None:
    with pytest.raises(ConfigError, match="expected a datasets"):
        read_dataset(given)


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "datasets":
            raise ImportError("No module named 'datasets'")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ConfigError, match=r"pip install 'longmem\[datasets\]'"):
        source(folder, split="test").check()


def test_the_library_does_not_run_code_of_a_dataset(tmp_path: Path) -> None:
    (tmp_path / "scripted").mkdir()
    (tmp_path / "scripted" / "scripted.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    with pytest.raises(ConfigError, match="cannot read dataset"):
        source(tmp_path / "scripted").check()
    assert not (tmp_path / "ran").exists()
    assert int(datasets.__version__.split(".")[0]) >= 4


def test_a_file_that_is_not_there_is_not_asked_of_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: pytest.fail("the hub was asked"))
    with pytest.raises(ConfigError, match=r"there is no file nope\.jsonl"):
        DatasetSource("nope.jsonl").open()
