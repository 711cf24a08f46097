# SPDX-License-Identifier: Apache-2.0
"""Realistic inputs: mixed folders, colliding names, special tokens spelled in a text."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner, Result

from pipelines.cli import app

TEXT = "The whale was as large as it was old, said the captain. " * 4
START = "<|endoftext|>"


def invoke(*args: object) -> Result:
    result = CliRunner(env={"COLUMNS": "200"}).invoke(app, [str(each) for each in args], prog_name="longmem")
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


@pytest.fixture
def score(small_backbone: Callable[[str], Path]) -> Callable[..., Result]:
    """Run `longmem perplexity` with a small backbone."""

    def run(out: Path, *args: object) -> Result:
        small = ("--model", small_backbone("gpt2"), "--segment-tokens", 64, "--address", "none", "--threads", 1)
        return invoke("perplexity", *args, *small, "--out", out)

    return run


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def summary_of(out: Path) -> dict[str, Any]:
    summary = json.loads((out / "summary.json").read_text())
    assert isinstance(summary, dict)
    return summary


def test_perplexity_of_a_mixed_folder_reads_or_names_everything(score: Callable[..., Result], tmp_path: Path) -> None:
    books = tmp_path / "books"
    write(books / "a::b.txt", TEXT)
    write(books / "c.jsonl.gz", gzip.compress(json.dumps({"text": TEXT, "id": "[red]c[/red]"}).encode()))
    for name in ("notes.pdf", "more/[bold]x.pdf", ".git/config.txt", "README.txt"):
        write(books / name, "text")
    result = score(tmp_path / "out", books)
    assert result.exit_code == 0, result.output
    assert "not read: 2 .pdf (notes.pdf, more/[bold]x.pdf), 1 hidden (.git), 1 note (README.txt)" in result.stderr
    summary = summary_of(tmp_path / "out")
    assert summary["left_out"] == {
        ".pdf": {"count": 2, "examples": ["notes.pdf", "more/[bold]x.pdf"]},
        "hidden": {"count": 1, "examples": [".git"]},
        "note": {"count": 1, "examples": ["README.txt"]},
    }
    documents = pq.read_table(tmp_path / "out" / "documents.parquet").to_pylist()
    assert [each["document"] for each in documents] == ["a::b", "[red]c[/red]"]
    before = (tmp_path / "out" / "documents.parquet").read_bytes()
    assert score(tmp_path / "out", books, "--resume").exit_code == 0
    assert (tmp_path / "out" / "documents.parquet").read_bytes() == before


def test_perplexity_of_a_spelled_start_token_predicts_every_other_token_once(
    score: Callable[..., Result], tmp_path: Path
) -> None:
    plain, spelled = write(tmp_path / "plain.txt", TEXT), write(tmp_path / "spelled.txt", START + TEXT)
    assert score(tmp_path / "out", plain, spelled).exit_code == 0
    rows = pq.read_table(tmp_path / "out" / "segments.parquet").to_pylist()
    of = {name: [row for row in rows if row["document"] == name] for name in ("plain", "spelled")}
    for own in of.values():
        assert sum(row["num_tokens"] for row in own) == len(TEXT)
    assert [row["nll_longmem"] for row in of["plain"]] == [row["nll_longmem"] for row in of["spelled"]]
    as_text = score(tmp_path / "text", spelled, "--special-tokens", "text")
    assert as_text.exit_code == 0
    summary = summary_of(tmp_path / "text")
    assert summary["counts"]["tokens"] == len(START + TEXT)
    assert summary["settings"]["special_tokens"] == "text"
    refused = score(tmp_path / "text", spelled, "--resume", "--special-tokens", "parse")
    assert refused.exit_code == 2
    assert "special_tokens" in refused.stderr


def test_perplexity_of_another_text_under_a_kept_name_names_both(score: Callable[..., Result], tmp_path: Path) -> None:
    kept = ("--keep-memory", "--store", tmp_path / "kept.lance")
    texts = {"a": TEXT, "b": "Another text. " + TEXT, "c": TEXT + "It goes on, and on."}
    paths = {name: write(tmp_path / name / "chapter.txt", text) for name, text in texts.items()}
    assert score(tmp_path / "out-a", paths["a"], *kept).exit_code == 0
    for name in ("b", "c"):
        result = score(tmp_path / f"out-{name}", paths[name], *kept)
        assert result.exit_code == 1
        assert f"{paths[name]}: the store already holds another text as default/chapter" in result.stdout
    assert score(tmp_path / "both", paths["a"], paths["b"], *kept).exit_code == 0
    result = invoke("memory", "ls", "--store", tmp_path / "kept.lance")
    assert [line.split()[1] for line in result.stdout.splitlines()[1:4]] == ["a/chapter", "b/chapter", "chapter"]


def test_doctor_of_a_folder_names_what_it_does_not_read(small_backbone: Callable[[str], Path], tmp_path: Path) -> None:
    write(tmp_path / "a.txt", START + TEXT * 2)
    write(tmp_path / "b.pdf", "text")
    result = invoke("doctor", "--model", small_backbone("gpt2"), "--text", tmp_path, "--special-tokens", "text")
    assert result.exit_code == 0, result.output
    assert "not read: 1 .pdf (b.pdf)" in result.stderr


@pytest.mark.parametrize("link", [True, False])
def test_probe_of_a_filler_that_is_no_file_is_refused(
    small_backbone: Callable[[str], Path], tmp_path: Path, link: bool
) -> None:
    filler = tmp_path / "filler"
    if link:
        filler.symlink_to("/dev/zero")
    else:
        filler.mkdir()
    result = invoke("probe", "passkey", "--filler", filler, "--model", small_backbone("gpt2"), "--out", tmp_path / "o")
    assert result.exit_code == 2
    assert "expected a regular file" in result.stderr


def test_perplexity_of_a_dataset_equals_that_of_the_same_texts_in_a_file(
    score: Callable[..., Result], tmp_path: Path
) -> None:
    rows = [{"name": name, "body": TEXT + name} for name in ("first", "second", "third")]
    lines = "".join(json.dumps({"id": row["name"], "text": row["body"]}) + "\n" for row in rows)
    write(tmp_path / "books.jsonl", lines)
    write(tmp_path / "library" / "data" / "test.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    dataset = ("--dataset", tmp_path / "library", "--text-column", "body", "--id-column", "name", "--limit", 2)
    assert score(tmp_path / "files", tmp_path / "books.jsonl", "--limit", 2).exit_code == 0
    result = score(tmp_path / "rows", *dataset)
    assert result.exit_code == 0, result.output
    one, other = (pq.read_table(tmp_path / out / "documents.parquet") for out in ("files", "rows"))
    assert other["document"].to_pylist() == ["first", "second"]
    sources = [name for name in one.column_names if name != "source"]
    assert other.select(sources) == one.select(sources)
    finished = score(tmp_path / "rows", *dataset, "--resume")
    assert "has finished before" in finished.output
    # another column is another job
    changed = score(tmp_path / "rows", "--dataset", tmp_path / "library", "--text-column", "name", "--resume")
    assert changed.exit_code == 2


def test_perplexity_of_a_dataset_and_files_at_once_is_refused(score: Callable[..., Result], tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", '{"text": "some text"}\n')
    result = score(tmp_path / "out", path, "--dataset", path)
    assert result.exit_code == 2
    assert "--dataset and inputs" in result.stderr
    alone = score(tmp_path / "out", path, "--split", "test")
    assert "--split: only with --dataset" in alone.stderr
