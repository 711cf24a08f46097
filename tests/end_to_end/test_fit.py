# SPDX-License-Identifier: Apache-2.0
"""`longmem fit` from a user's point of view: output lines, a model that loads and scores, invalid input."""

import json
from collections.abc import Callable
from pathlib import Path

from longmem import LongMem
from tests.end_to_end.test_train import books, invoke
from tests.folders import snapshot

__all__ = ["books"]


SMALL = [f"--set={name}" for name in ("segment_tokens=32", "memory_tokens=128", "top_k=8")]


def test_gives_a_model_that_scores_better(tmp_path: Path, books: Path, small_backbone: Callable[[str], Path]) -> None:
    backbone, out = small_backbone("llama"), tmp_path / "out"
    (books / "notes.pdf").touch()
    options = (
        "--data",
        books,
        "--valid",
        books / "road.txt",
        "--special-tokens",
        "text",
        "--batch-tokens",
        128,
        "--epochs",
        2,
        "--threads",
        1,
    )
    code, text = invoke("fit", "--model", backbone, "--out", out, *options, *SMALL)
    assert code == 0, text
    assert "epoch 0: perplexity training" in text
    assert "not read: 1 .pdf (notes.pdf)" in text
    assert f"fitted model: {out / 'model'}" in text
    before = snapshot(out)
    code, text = invoke("fit", "--model", backbone, "--out", out, *options, *SMALL, "--resume")
    assert (code, text.count("finished before")) == (0, 1), text
    assert snapshot(out) == before
    summary = json.loads((out / "fit.json").read_text())
    assert summary["left_out"][".pdf"] == {"count": 1, "examples": ["notes.pdf"]}
    assert summary["settings"]["special_tokens"] == "text"
    first, *_, last = summary["perplexity"]
    assert last["validation"] < first["validation"]
    road = (books / "road.txt").read_text()
    settings = {"segment_tokens": 32, "memory_tokens": 128, "top_k": 8}
    untouched, fitted = LongMem.from_backbone(backbone, **settings), LongMem.from_pretrained(out / "model")
    assert fitted.config.trained_steps == summary["steps"]
    assert fitted.score(road).perplexity < untouched.score(road).perplexity


def test_fits_the_copies_of_a_model_that_reads_every_layer(
    tmp_path: Path, books: Path, small_backbone: Callable[[str], Path]
) -> None:
    out = tmp_path / "out"
    layers = ("--memory-layers", "all", "--near-tokens", 32, "--read-blocks", 2, "--block-tokens", 8)
    given = ("--model", small_backbone("llama"), "--out", out, "--data", books, "--batch-tokens", 128, "--threads", 1)
    code, text = invoke("fit", *given, *layers, *SMALL)
    assert code == 0, text
    first, *_, last = json.loads((out / "fit.json").read_text())["perplexity"]
    assert last["training"] < first["training"]
    fitted = LongMem.from_pretrained(out / "model")
    assert (fitted.config.memory_layers, fitted.config.near_tokens, fitted.config.block_tokens) == ("all", 32, 8)
    scores = fitted.score((books / "road.txt").read_text())
    assert scores.perplexity < scores.backbone_perplexity


def test_bad_input_is_a_sentence(tmp_path: Path, books: Path, small_backbone: Callable[[str], Path]) -> None:
    given = ("--model", small_backbone("llama"), "--out", tmp_path / "out")
    for options, expected in [
        (("--data", tmp_path / "none"), "none"),
        (("--data", books, "--document-tokens", 0), "--document-tokens"),
        (("--data", books, "--epochs", 0), "epochs"),
        (("--data", books, "--set", "copy_head=false"), "copy_head=false"),
        (("--data", books, "--set", "segment_tokens=4096"), "segment"),
    ]:
        code, text = invoke("fit", *given, *SMALL, *options)
        assert code == 2, text
        assert expected in text
