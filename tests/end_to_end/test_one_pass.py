# SPDX-License-Identifier: Apache-2.0
"""`longmem perplexity --one-pass` from a user's point of view: results, resume, and what is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner, Result

from longmem.model.longmem import LongMem
from pipelines.cli import app
from tests.inputs import ALL_LAYERS
from tests.texts import prose


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, small_model: Callable[..., LongMem]) -> Path:
    folder = tmp_path_factory.mktemp("one-pass") / "model"
    small_model(**ALL_LAYERS).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def book(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("one-pass") / "book.txt"
    path.write_text(prose(1, 60))
    return path


def invoke(*args: object) -> Result:
    options = ("--address", "none", "--threads", "1", "--dtype", "float32")
    runner = CliRunner(env={"COLUMNS": "140"})
    result = runner.invoke(app, ["perplexity", *map(str, args), *options], prog_name="longmem")
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def summary_of(out: Path) -> dict[str, Any]:
    summary: dict[str, Any] = json.loads((out / "summary.json").read_text())
    return summary


@pytest.mark.parametrize("retention", ["document", "window"])
def test_a_job_says_what_python_says(model: Path, book: Path, tmp_path: Path, retention: str) -> None:
    out = tmp_path / "out"
    result = invoke(book, "--model", model, "--one-pass", "--retention", retention, "--out", out)
    assert result.exit_code == 0, result.stderr
    assert "The backbone alone did not run in one pass" in result.stdout
    assert "without memory  " not in result.stdout
    scores = LongMem.from_pretrained(model, one_pass=True).score(book.read_text())
    summary = summary_of(out)
    assert summary["settings"]["one_pass"] is True
    assert summary["perplexity"]["token"]["longmem"]["value"] == pytest.approx(scores.perplexity, rel=1e-6)
    assert pq.read_table(out / "segments.parquet")["nll_backbone"].null_count == len(scores.segments)
    two_passes = LongMem.from_pretrained(model).score(book.read_text())
    assert abs(two_passes.perplexity / scores.perplexity - 1) > 1e-4


def test_evaluation_windows_are_a_baseline(model: Path, book: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = invoke(book, "--model", model, "--one-pass", "--window", "32", "--stride", "16", "--out", out)
    assert result.exit_code == 0, result.stderr
    alone = invoke(book, "--model", model, "--window", "32", "--stride", "16", "--out", tmp_path / "two")
    assert alone.exit_code == 0, alone.stderr
    windows = [
        [document["nll_window"] for document in pq.read_table(folder / "documents.parquet").to_pylist()]
        for folder in (out, tmp_path / "two")
    ]
    assert windows[0] == windows[1]


def test_a_job_of_one_pass_is_another_job(model: Path, book: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert invoke(book, "--model", model, "--one-pass", "--out", out).exit_code == 0
    result = invoke(book, "--model", model, "--out", out, "--resume")
    assert result.exit_code == 2
    assert "one_pass" in result.stderr


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--no-memory"], "--one-pass and --no-memory contradict each other"),
        (["--memory-tokens", "0"], "--one-pass and --memory-tokens 0 contradict each other"),
        (["--keep-memory"], "--one-pass and --keep-memory contradict each other"),
        (["--retention", "forever"], "--one-pass and --keep-memory contradict each other"),
        (["--service", "any"], "--one-pass: service 'any' decides that"),
    ],
)
def test_what_contradicts_one_pass_is_refused(
    model: Path, book: Path, tmp_path: Path, options: list[str], said: str
) -> None:
    result = invoke(book, "--model", model, "--one-pass", *options, "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert said in " ".join(result.stderr.split())
    assert not (tmp_path / "out").exists()


def test_a_model_of_one_layer_is_refused(book: Path, tmp_path: Path, small_model: Callable[..., LongMem]) -> None:
    small_model().save_pretrained(tmp_path / "model")
    result = invoke(book, "--model", tmp_path / "model", "--one-pass", "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert "one_pass=True needs memory_layers=all, got memory_layers=one" in " ".join(result.stderr.split())
