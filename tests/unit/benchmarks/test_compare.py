# SPDX-License-Identifier: Apache-2.0
"""The table and the command: equal tokens for all, paired intervals, missing rows with a reason."""

import json
import math
from collections.abc import Callable
from dataclasses import astuple
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from benchmarks import compare
from benchmarks.__main__ import app
from benchmarks.baselines.base import AbstractBaseline, LogProbs, Sequence
from benchmarks.lineup import CONTROL, assemble, without_longmem
from benchmarks.memory_scoring import LongMemBaseline
from benchmarks.paired import compare_scores, nats_difference
from longmem.errors import ConfigError
from longmem.model.longmem import LongMem
from longmem.scoring.metrics import Interval

TEXT = "The cat sat on the mat, and the dog sat on the cat. " * 8


class Constant(AbstractBaseline):
    """Baseline with a constant log-probability for every token."""

    def __init__(self, name: str, logprob: float) -> None:
        self.name = name
        self._logprob = logprob

    @property
    def description(self) -> str:
        return f"always {self._logprob:g}"

    def logprobs(self, sequence: Sequence) -> LogProbs:
        return np.full(len(sequence) - 1, self._logprob, np.float32)


@pytest.fixture(scope="session")
def model_folder(small_model: Callable[..., LongMem], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "trained"
    small_model().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def books(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("books")
    for name in ("one", "two"):
        (folder / f"{name}.txt").write_text(f"Book {name}. {TEXT}", encoding="utf-8")
    return [str(folder / f"{name}.txt") for name in ("one", "two")]


def test_rows_by_hand() -> None:
    documents = {"a": np.zeros(11, np.int32), "b": np.zeros(31, np.int32)}
    rows = list(compare.run([Constant("frozen", -2.0), Constant("other", -1.9)], ["frozen"], documents, 5))
    assert astuple(rows[0].perplexity) == pytest.approx([math.exp(2.0)] * 3)
    assert rows[0].changes == {"frozen": Interval(0.0, 0.0, 0.0)}
    assert rows[1].changes["frozen"].value == pytest.approx(math.exp(-0.1) - 1, abs=1e-6)
    assert rows[1].documents == {"a": pytest.approx(math.exp(1.9)), "b": pytest.approx(math.exp(1.9))}
    table = compare.markdown(rows, ["frozen"], compare.NOT_RUN)
    assert "| other | 6.69 (6.69 to 6.69) | -9.5% (-9.5 to -9.5) |" in table
    assert "Linformer" in table
    assert "not causal" in table
    assert len({line.count("|") for line in table.splitlines()}) == 1
    json.dumps(compare.figures(rows, compare.NOT_RUN), allow_nan=False)


@pytest.mark.parametrize("wrong", [np.zeros(9, np.float32), np.full(10, np.nan, np.float32)])
def test_a_baseline_that_breaks_its_promise_is_caught(wrong: np.ndarray) -> None:
    baseline = Constant("broken", 0.0)
    baseline.logprobs = lambda _sequence: wrong  # type: ignore[method-assign]
    with pytest.raises(AssertionError, match="broken"):
        list(compare.run([baseline], [], {"a": np.zeros(11, np.int32)}, 5))


def test_chosen_targets_are_the_only_ones_counted() -> None:
    ours, theirs = ([np.array(each, np.float32)] for each in ([-1.0, -9.0, -2.0, -9.0], [-2.0, -1.0, -2.0, -1.0]))
    chosen = [np.array([True, False, True, False])]
    change = nats_difference(compare_scores(ours, theirs, 2, chosen).change)
    assert change.value == pytest.approx(-0.5)
    assert change.low == pytest.approx(-1.0)
    assert change.high == pytest.approx(0.0)
    nothing = nats_difference(compare_scores(ours, theirs, 2, [np.zeros(4, np.bool_)]).change)
    assert nothing == Interval(None, None, None)


def test_longmem_row_is_score_text(small_model: Callable[..., LongMem]) -> None:
    model = small_model()
    found = LongMemBaseline(model, "LongMem").logprobs(model.tokenizer.sequence(TEXT))
    np.testing.assert_array_equal(found, model.score(TEXT).logprobs)


def test_the_control_is_read_without_memory(model_folder: Path) -> None:
    lineup = assemble([model_folder], model_folder, None, "float32", ["LongMem"])
    assert [row.name for row in lineup.baselines] == ["frozen backbone", CONTROL, "LongMem"]
    assert lineup.references == ["frozen backbone", CONTROL]
    assert "no memory" in lineup.baselines[1].description
    sequence = np.random.default_rng(0).integers(257, size=200).astype(np.int32)
    control, longmem = (row.logprobs(sequence) for row in lineup.baselines[1:])
    np.testing.assert_array_equal(control[:32], longmem[:32])
    assert not np.allclose(control[32:], longmem[32:], atol=1e-3)


def test_another_backbone_is_refused(model_folder: Path, small_model: Callable[..., LongMem], tmp_path: Path) -> None:
    small_model("qwen3").save_pretrained(tmp_path / "qwen")
    with pytest.raises(ConfigError, match="another backbone"):
        assemble([model_folder], tmp_path / "qwen", None, "float32")
    small_model(segment_tokens=16).save_pretrained(tmp_path / "short")
    with pytest.raises(ConfigError, match="other segments"):
        assemble([model_folder, tmp_path / "short"], None, None, "float32")


def test_commands_from_training_to_table(model_folder: Path, books: list[str], tmp_path: Path) -> None:
    weights, out = tmp_path / "weights.safetensors", tmp_path / "results" / "compare.json"
    common = ["--model", str(model_folder)]
    invoke(["train-memorizing", *books, *common, "--steps", "2", "--out", str(weights)])
    invoke(["compare", *books, *common, "--memorizing", str(weights), "--limit-tokens", "200", "--out", str(out)])
    figures = json.loads(out.read_text())
    assert [row["name"] for row in figures["rows"]] == [
        "frozen backbone",
        "sliding window",
        "recurrence",
        "sparse attention",
        "full attention",
        "n-gram cache",
        "neural cache",
        "Memorizing Transformer, memory off",
        "Memorizing Transformer",
        "LongMem",
    ]
    assert figures["num_tokens"] == 400
    assert figures["dtype"] == "bfloat16"
    assert figures["environment"]["torch_threads"] == 1
    assert set(figures["not_run"]) == {"Linformer"}
    for row in figures["rows"]:
        assert set(row["documents"]) == {"one", "two"}
        assert row["tokens_per_s"] > 0
        assert row["perplexity"]["low"] <= row["perplexity"]["value"] <= row["perplexity"]["high"]
    assert "LongMem" in out.with_suffix(".md").read_text()


def test_fit_command_names_the_weights(model_folder: Path, books: list[str]) -> None:
    printed = invoke(["fit-caches", *books, "--model", str(model_folder), "--limit-tokens", "200"])
    assert "CacheWeights(" in printed
    assert "PointerWeights(" in printed


def test_wrong_dtype_is_refused(books: list[str]) -> None:
    result = CliRunner().invoke(app, ["compare", *books, "--dtype", "float16"])
    assert result.exit_code == 2


def invoke(arguments: list[str]) -> str:
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_a_backbone_without_rotary_positions_has_all_other_rows(small_model: Callable[..., LongMem]) -> None:
    rows, not_run = without_longmem(small_model("gpt2", segment_tokens=16))
    assert "needs rotary positions" in not_run["recurrence"]
    assert {row.name for row in rows} >= {"frozen backbone", "sliding window", "n-gram cache", "neural cache"}
