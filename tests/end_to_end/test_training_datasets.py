# SPDX-License-Identifier: Apache-2.0
"""`longmem train`, `fit` and `pretrain` with `--dataset`: a local dataset gives what the same texts in files give."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.end_to_end.test_pretrain import curve, tiny
from tests.end_to_end.test_train import invoke
from tests.texts import prose

pytestmark = pytest.mark.thorough

__all__ = ["tiny"]

SIZES = ("--set=segment_tokens=32", "--set=memory_tokens=128", "--set=top_k=8")
TRAIN = ("train", *SIZES, "--steps", 4, "--rows", 2, "--warmup-steps", 1, "--dtype", "float32", "--validate-every", 2)
FIT = ("fit", *SIZES, "--batch-tokens", 128, "--epochs", 1)
PRETRAIN = ("pretrain", "--size", "tiny", "--steps", 6, "--dtype", "float32", "--validate-every", 3)
COMMANDS = [pytest.param(each, id=each[0]) for each in (TRAIN, FIT, PRETRAIN)]


@pytest.fixture
def run(tmp_path: Path, small_backbone: Callable[[str], Path]) -> Callable[..., tuple[int, str]]:
    """Run a command into a folder of this name, on a small backbone where it takes one."""

    def run(command: tuple[object, ...], out: str, *options: object) -> tuple[int, str]:
        model = () if command is PRETRAIN else ("--model", small_backbone("llama"))
        return invoke(*command, *model, "--threads", 1, "--out", tmp_path / out, *options)

    return run


@pytest.fixture
def library(tmp_path: Path) -> Path:
    """Write two splits as a dataset folder, and the same texts as files of documents beside it."""
    for split, seeds in (("train", (0, 1, 2)), ("validation", (3,))):
        texts = [prose(seed, 300) for seed in seeds]
        write_lines(tmp_path / "library" / "data" / f"{split}.jsonl", [{"body": text, "page": 1} for text in texts])
        write_lines(tmp_path / f"{split}.jsonl", [{"text": text} for text in texts])
    return tmp_path / "library"


def write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def results(out: Path) -> dict[str, Any]:
    """Return what a job has learned, by file."""
    if (out / "fit.json").exists():
        return {"perplexity": json.loads((out / "fit.json").read_text())["perplexity"]}
    return {name: curve(out, name) for name in ("curve.csv", "validation.csv")}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_dataset_teaches_what_the_same_texts_in_files_do(
    command: tuple[object, ...], run: Callable[..., tuple[int, str]], library: Path, tmp_path: Path
) -> None:
    texts = ("--data", tmp_path / "train.jsonl", "--valid", tmp_path / "validation.jsonl")
    code, text = run(command, "files", *texts)
    assert code == 0, text
    rows = ("--dataset", library, "--text-column", "body", "--split", "train")
    code, text = run(command, "rows", *rows, "--valid-split", "validation")
    assert code == 0, text
    assert results(tmp_path / "rows") == results(tmp_path / "files")
    identity = json.loads((tmp_path / "rows" / "job.json").read_text())["identity"]
    assert identity["data"] == [f"dataset {library}, split train, texts body"]
    assert identity["validation"] == [f"dataset {library}, split validation, texts body"]
    code, text = run(command, "rows", *rows, "--valid-split", "validation", "--resume")
    assert (code, text.count("finished before")) == (0, 1), text
    # another split is another job
    code, text = run(command, "rows", *rows, "--valid-split", "train", "--resume")
    assert code == 2
    assert "another job" in text


@pytest.mark.parametrize("command", COMMANDS)
def test_what_names_no_documents_is_told_before_anything_is_written(
    command: tuple[object, ...], run: Callable[..., tuple[int, str]], library: Path, tmp_path: Path
) -> None:
    rows, file = ("--dataset", library, "--text-column", "body"), tmp_path / "train.jsonl"
    for options, message in {
        (): "by --data or by --dataset; give one of them",
        (*rows, "--split", "train", "--data", file): "by --data or by --dataset; give one of them",
        ("--data", file, "--valid-split", "validation"): "--valid-split: only with --dataset",
        (*rows, "--split", "train", "--valid", file, "--valid-split", "train"): "--valid and --valid-split",
        rows: "choose one of its splits with --split: train, validation",
        (*rows, "--split", "test"): "Available splits: ['train', 'validation']",
        (*rows, "--split", "train", "--text-column", "title"): "has no column 'title' (--text-column)",
    }.items():
        code, text = run(command, "out", *options)
        assert code == 2, (options, text)
        assert message in " ".join(text.split()), options
        assert not (tmp_path / "out" / "model").exists()
