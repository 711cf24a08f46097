# SPDX-License-Identifier: Apache-2.0
"""`longmem icl` with whole demonstrations: a small real model with memory at every layer, a user-defined task."""

import json
import random
import shutil
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner, Result

from longmem.testing import small_longmem
from pipelines.cli import app
from pipelines.icl.task import load_task
from pipelines.icl.task_data import GridPoint, PreparedTask
from tests.inputs import DEFAULT_FORM
from tests.jobs import TASK

pytestmark = pytest.mark.thorough

pytest_plugins = ["tests.ray_cluster"]

TABLES = ("items.parquet", "grid.parquet", "demonstrations.parquet", "examples.parquet")
MODELS = ("longmem", "reading", "votes", "regression", "idf_votes", "backbone")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    settings = {
        **DEFAULT_FORM,
        "memory_layers": "all",
        "segment_tokens": 96,
        "memory_tokens": 384,
        "near_tokens": 16,
        "read_blocks": 0,
    }
    small_longmem(folder, **settings).save_pretrained(folder / "checkpoint")
    small_longmem(folder, **DEFAULT_FORM, segment_tokens=96).save_pretrained(folder / "one")
    return folder / "checkpoint"


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a task in which one letter, which is a token, decides the label."""
    folder = tmp_path_factory.mktemp("task")
    chance = random.Random(0)
    for name, rows in (("train", 40), ("test", 8)):
        lines = []
        for _ in range(rows):
            colour = chance.choice(["red", "blue"])
            thing = {"red": "x", "blue": "w"}[colour] * chance.randrange(2, 6)
            lines.append(json.dumps({"thing": thing, "colour": colour}) + "\n")
        (folder / f"{name}.jsonl").write_text("".join(lines))
    (folder / "colours.toml").write_text(TASK)
    return folder / "colours.toml"


@pytest.fixture(scope="module")
def icl(model: Path, task: Path) -> Callable[..., Result]:
    """Return a runner `icl(out, *options)` of the command in this process, with a small grid."""

    def run(out: Path, *options: object, model: Path = model) -> Result:
        grid: tuple[object, ...] = ("--shots", "0,1", "--memory-shots", "0,20", "--seeds", 2)
        if "tokens" not in options:
            grid += ("--read-demonstrations", 2, "--left-out", 8)
        where = () if "--address" in options else ("--address", "none")
        parts = ["icl", task, "--model", model, "--out", out, "--threads", 1, *where, *grid, *options]
        result = CliRunner().invoke(app, [str(part) for part in parts])
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        return result

    return run


@pytest.fixture(scope="module")
def finished(icl: Callable[..., Result], tmp_path_factory: pytest.TempPathFactory) -> tuple[Result, Path]:
    """Return the outcome and folder of a finished job in batches of three items. Read-only."""
    out = tmp_path_factory.mktemp("finished") / "out"
    return icl(out, "--batch-items", 3), out


def summary_of(out: Path) -> dict[str, Any]:
    summary: dict[str, Any] = json.loads((out / "summary.json").read_text())
    return summary


def test_every_part_is_reported_and_words_decide(finished: tuple[Result, Path]) -> None:
    outcome, out = finished
    assert outcome.exit_code == 0, outcome.stderr
    assert "votes of shared words alone, 0 in context, 20 in memory" in outcome.stdout
    summary = summary_of(out)
    assert summary["grid"]["whole"] == {"num_read": 2, "choice": "idf", "num_left_out": 8, "pack_tokens": 96}
    colours = summary["tasks"]["colours"]
    accuracy = {
        (row["model"], row["scoring"]): row["mean"]
        for row in colours["grid"]
        if (row["shots"], row["memory_shots"], row["metric"]) == (0, 20, "accuracy")
    }
    assert set(accuracy) == {(model, "calibrated") for model in MODELS} | {
        (model, scoring) for model in ("longmem", "backbone") for scoring in ("normalised", "greedy")
    }
    # the label is a function of a word
    assert accuracy["idf_votes", "calibrated"] == accuracy["longmem", "calibrated"] == 1
    assert {(fit["seed"], fit["shots"], fit["memory_shots"]) for fit in colours["calibration"]} == {
        (seed, shots, 20) for seed in (0, 1) for shots in (0, 1)
    }
    for fit in colours["calibration"]:
        assert list(fit["models"]) == list(MODELS)
        assert fit["models"]["votes"]["examples"] == 8
    compared = {(each["ours"], each["theirs"]) for each in colours["comparisons"] if each["metric"] == "calibrated"}
    assert {("20 in memory", "0 in context"), ("20 in memory", "idf votes alone")} <= compared
    items = pq.read_table(out / "items.parquet").to_pylist()
    assert {len(row["demonstrations_read"] or ()) for row in items if row["memory_shots"]} == {2}
    assert all(row["longmem_calibrated"] is None for row in items if not row["memory_shots"])
    page = (out / "report.html").read_text()
    assert "what is trusted" in page
    assert "idf votes" in page


def test_a_task_of_77_labels(model: Path, tmp_path: Path) -> None:
    labels = [f"{first}{second}" for first, second in combinations("abcdefghijklm", 2)][:77]
    chance = random.Random(0)
    for name, rows in (("train", 2 * 77), ("test", 6)):
        drawn = [*range(77)] * 2 if name == "train" else chance.sample(range(77), rows)
        lines = [{"text": f"n{labels[each] * chance.randrange(1, 4)}u", "intent": labels[each]} for each in drawn]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "intents.toml").write_text(
        'name = "intents"\ntrain = "train.jsonl"\ntest = "test.jsonl"\ntemplate = "{text} Intent: {intent}. "\n'
        'target = "intent"\n'
    )
    options = ("--shots", "0", "--memory-shots", "154", "--seeds", "1", "--read-demonstrations", "2")
    parts = [
        "icl",
        tmp_path / "intents.toml",
        "--model",
        model,
        "--out",
        tmp_path / "out",
        "--address",
        "none",
        *options,
    ]
    outcome = CliRunner().invoke(app, [*map(str, parts), "--threads", "1", "--left-out", "40"])
    assert outcome.exit_code == 0, outcome.stderr
    intents = summary_of(tmp_path / "out")["tasks"]["intents"]
    fitted = intents["calibration"][0]["models"]["longmem"]
    assert set(fitted["biases"]) == set(labels)
    accuracy = {
        row["model"]: row["mean"]
        for row in intents["grid"]
        if row["metric"] == "accuracy" and row["scoring"] == "calibrated"
    }
    # both letters of a text, and no others, are those of its label
    assert accuracy["idf_votes"] == accuracy["longmem"] == 1
    assert accuracy["backbone"] <= 0.25


def test_an_item_reads_the_demonstrations_that_share_its_words(
    finished: tuple[Result, Path], task: Path, model: Path
) -> None:
    from longmem.model.source import ModelSource

    prepared = PreparedTask(load_task(str(task), None), ModelSource(str(model)).open_tokenizer(), 96, None, 1)
    memory = prepared.memory(0, 20)
    assert memory is not None
    for row in pq.read_table(finished[1] / "items.parquet").to_pylist():
        if (row["seed"], row["memory_shots"]) == (0, 20):
            assert {memory.labels[index] for index in row["demonstrations_read"]} == {row["gold"]}


def test_a_job_that_was_cut_off_ends_with_the_same_bytes(
    icl: Callable[..., Result], finished: tuple[Result, Path], tmp_path: Path
) -> None:
    whole = finished[1]
    lines = (whole / "journal.jsonl").read_bytes().splitlines(keepends=True)
    left_out = [number for number, line in enumerate(lines) if b'"left_out"' in line]
    # once while demonstrations are left out, once while items are answered
    for cut in (left_out[1], len(lines) - 2):
        shutil.copytree(whole, tmp_path / f"cut {cut}")
        (tmp_path / f"cut {cut}" / "journal.jsonl").write_bytes(b"".join(lines[:cut]) + lines[-1][:50])
        for name in (*TABLES, "summary.json"):
            (tmp_path / f"cut {cut}" / name).unlink()
        assert icl(tmp_path / f"cut {cut}", "--batch-items", 3, "--resume").exit_code == 0
        for name in TABLES:
            assert (whole / name).read_bytes() == (tmp_path / f"cut {cut}" / name).read_bytes()
    other = icl(whole, "--resume", "--choose", "random")
    assert other.exit_code == 2
    assert "holds another job" in other.stderr


def test_batches_change_no_byte_and_choices_do(icl: Callable[..., Result], tmp_path: Path) -> None:
    store = ("--store", tmp_path / "memory.lance")
    for name, options in (("a", ()), ("b", ("--batch-items", 1)), ("random", ("--choose", "random"))):
        assert icl(tmp_path / name, *store, "--seeds", 1, *options).exit_code == 0
    assert summary_of(tmp_path / "b")["demonstrations"]["tokens_encoded"] == 0
    first, second, control = (pq.read_table(tmp_path / name / "items.parquet") for name in ("a", "b", "random"))
    assert first == second
    assert first["demonstrations_read"] != control["demonstrations_read"]


def test_tokens_can_be_read_instead(icl: Callable[..., Result], tmp_path: Path) -> None:
    assert icl(tmp_path / "a", "--seeds", 1, "--demonstrations", "tokens").exit_code == 0
    assert "whole" not in summary_of(tmp_path / "a")["grid"]
    assert "votes" not in pq.read_table(tmp_path / "a" / "items.parquet").column_names


def test_without_left_out_demonstrations_nothing_is_calibrated(icl: Callable[..., Result], tmp_path: Path) -> None:
    assert icl(tmp_path / "a", "--seeds", 1, "--left-out", 0).exit_code == 0
    colours = summary_of(tmp_path / "a")["tasks"]["colours"]
    assert {row["scoring"] for row in colours["grid"]} == {"normalised", "greedy"}
    assert "calibration" not in colours


def test_left_out_demonstrations_are_items_of_the_memory(task: Path, model: Path) -> None:
    from longmem.model.source import ModelSource

    prepared = PreparedTask(load_task(str(task), None), ModelSource(str(model)).open_tokenizer(), 96, None, 1)
    point = GridPoint("colours", 0, 1, 20)
    memory = prepared.memory(0, 20)
    assert memory is not None
    prompts = prepared.left_out(point, 5)
    assert [prompt.index for prompt in prompts] == [0, 5, 10, 14, 19]
    text = memory.segments[0].tokens
    for prompt in prompts[:1]:
        start, length = int(memory.units.starts[prompt.index]), int(memory.units.prompts[prompt.index])
        assert prompt.tokens[-prompt.num_own :].tolist() == text[start : start + length].tolist()
        assert prompt.gold == memory.labels[prompt.index]


def test_a_memory_of_one_layer_is_refused(icl: Callable[..., Result], model: Path, tmp_path: Path) -> None:
    outcome = icl(tmp_path / "out", "--demonstrations", "whole", model=model.parent / "one")
    assert outcome.exit_code == 2
    assert "reads keys and values of all layers, but the memory holds one" in " ".join(outcome.stderr.split())
    assert not (tmp_path / "out").exists()


def test_options_of_whole_demonstrations_are_refused_where_tokens_are_read(
    icl: Callable[..., Result], model: Path, tmp_path: Path
) -> None:
    outcome = icl(tmp_path / "out", "--choose", "random", "--left-out", 4, model=model.parent / "one")
    assert outcome.exit_code == 2
    said = " ".join(outcome.stderr.split())
    assert "--choose" in said
    assert "only for whole demonstrations, and this job reads tokens" in said
    assert not (tmp_path / "out").exists()


@pytest.mark.ray
def test_workers_on_ray_give_the_same_bytes(icl: Callable[..., Result], tmp_path: Path, ray_cluster: None) -> None:
    options = ("--address", "local", "--workers", 2, "--batch-items", 3)
    assert icl(tmp_path / "here", "--seeds", 1).exit_code == 0
    outcome = icl(tmp_path / "ray", "--seeds", 1, *options)
    assert outcome.exit_code == 0, outcome.stderr
    assert not (tmp_path / "ray" / "memory.lance").exists()
    for name in TABLES:
        assert (tmp_path / "here" / name).read_bytes() == (tmp_path / "ray" / name).read_bytes()


def test_a_memory_of_one_segment_is_not_calibrated_and_says_so(icl: Callable[..., Result], tmp_path: Path) -> None:
    outcome = icl(tmp_path / "a", "--memory-shots", "0,2")
    assert outcome.exit_code == 0, outcome.stderr
    assert "all in one pack, so none can be left out" in " ".join((outcome.stdout + outcome.stderr).split())
    assert "calibration" not in summary_of(tmp_path / "a")["tasks"]["colours"]
    items = pq.read_table(tmp_path / "a" / "items.parquet").to_pylist()
    assert {row["longmem_calibrated"] for row in items} == {None}
