# SPDX-License-Identifier: Apache-2.0
"""`longmem suffix` from a user's point of view: a small real model, a file of examples; valid and invalid input."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner, Result

from longmem.model.longmem import LongMem
from pipelines.cli import app
from tests.folders import snapshot
from tests.inputs import ALL_LAYERS
from tests.texts import prose

OPTIONS = ("--threads", "1", "--context-tokens", "16,64,128", "--suffix-tokens", "8")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, small_model: Callable[..., LongMem]) -> Path:
    folder = tmp_path_factory.mktemp("suffix") / "model"
    small_model().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def model_of_all_layers(tmp_path_factory: pytest.TempPathFactory, small_model: Callable[..., LongMem]) -> Path:
    folder = tmp_path_factory.mktemp("suffix") / "all-layers"
    small_model(**ALL_LAYERS).save_pretrained(folder)
    return folder


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "examples.jsonl"
    texts = [prose(seed, 40) for seed in range(6)]
    candidates = [f"{i}: {text[:20]}" for i, text in enumerate(texts)]
    rows = [{"prefix": text, "candidates": candidates, "label": i} for i, text in enumerate(texts)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def invoke(*args: object) -> Result:
    result = CliRunner(env={"COLUMNS": "140"}).invoke(app, ["suffix", *map(str, args)], prog_name="longmem")
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def summary_of(out: Path) -> dict[str, Any]:
    summary: dict[str, Any] = json.loads((out / "summary.json").read_text())
    return summary


@pytest.mark.parametrize("fixture", ["model", "model_of_all_layers"])
def test_a_job_and_its_folder(fixture: str, file: Path, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    out = tmp_path / "out"
    result = invoke(file, "--model", request.getfixturevalue(fixture), "--out", out, *OPTIONS)
    assert result.exit_code == 0, result.stderr
    assert "6 examples" in result.stdout
    rows = pq.read_table(out / "items.parquet").to_pylist()
    assert [(row["example"], row["context_tokens"]) for row in rows[:4]] == [
        *(("examples:1", length) for length in (16, 64, 128)),
        ("examples:2", 16),
    ]
    summary = summary_of(out)
    assert summary["counts"]["examples"] == 6
    assert summary["chance"] == pytest.approx(1 / 6)
    for figures in summary["lengths"]:
        own = [row for row in rows if row["context_tokens"] == figures["context_tokens"]]
        for way in ("memory", "no_memory", "backbone"):
            correct = sum(min(row[f"nll_{way}"]) == row[f"nll_{way}"][row["label"]] for row in own)
            assert figures[way]["accuracy"]["value"] == pytest.approx(correct / 6)
            assert [row[f"correct_{way}"] for row in own].count(True) == correct
            gains = [[a - b for a, b in zip(row["nll_alone"], row[f"nll_{way}"], strict=True)] for row in own]
            right = sum(max(gain) == gain[row["label"]] for gain, row in zip(gains, own, strict=True))
            assert figures[way]["accuracy_information"]["value"] == pytest.approx(right / 6)
            assert [row[f"correct_information_{way}"] for row in own].count(True) == right
    assert summary["lengths"][0]["nll_gain"]["value"] == 0, "sixteen tokens are all local"
    assert summary["lengths"][2]["nll_gain"]["value"] != 0
    html = (out / "report.html").read_text()
    assert "<svg" in html
    assert "src=" not in html
    assert "http" not in html.replace("http://www.w3.org", "")


def test_a_killed_job_goes_on_where_it_was(model: Path, file: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = (file, "--model", model, "--out", out, *OPTIONS)
    assert invoke(*arguments).exit_code == 0
    expected = (out / "items.parquet").read_bytes()
    journal = out / "journal.jsonl"
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join(lines[:2]) + lines[2][:30])
    (out / "summary.json").unlink()
    assert "holds another job" in invoke(*arguments).stderr
    assert invoke(*arguments, "--resume").exit_code == 0
    assert (out / "items.parquet").read_bytes() == expected
    assert summary_of(out)["counts"]["resumed_examples"] == 2
    slices = json.loads((out / "slices.json").read_text())["slices"]
    assert summary_of(out)["wall_s"] > sum(each["wall_s"] for each in slices) > slices[1]["wall_s"]
    before = snapshot(out)
    assert "finished before" in invoke(*arguments, "--resume").stdout
    assert snapshot(out) == before
    changed = invoke(*arguments, "--resume", "--limit-examples", 5)
    assert changed.exit_code == 2
    assert "examples:" in changed.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--context-tokens", "many"], "--context-tokens must be numbers with commas between them, got 'many'"),
        (["--context-tokens", "64,16"], "--context-tokens must ascend"),
        (["--suffix-tokens", "33"], "leaves no room for context"),
        (["--limit-examples", "0"], "--limit-examples must be at least 1"),
        (["--threads", "0"], "--threads must be at least 1"),
        (["--resume"], "--resume needs --out"),
        (["--split", "pg19"], "--split names a part"),
        (["--model", "/nowhere/model"], "not found"),
    ],
)
def test_bad_options(
    model: Path, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    result = invoke(file, "--model", model, *options)
    assert result.exit_code == 2
    assert message in result.stderr
    assert "Traceback" not in result.stderr


def test_bad_file(model: Path, tmp_path: Path) -> None:
    result = invoke(tmp_path / "none.jsonl", "--model", model, "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert "cannot read" in result.stderr
    assert not (tmp_path / "out").exists(), "a refused command leaves nothing behind"


def test_a_text_cannot_be_markup(model: Path, file: Path, tmp_path: Path) -> None:
    named = tmp_path / "<b>examples.jsonl"
    file.rename(named)
    assert invoke(named, "--model", model, "--out", tmp_path / "out", *OPTIONS).exit_code == 0
    html = (tmp_path / "out" / "report.html").read_text()
    assert "<b>examples" not in html
    assert "&lt;b&gt;examples" in html
