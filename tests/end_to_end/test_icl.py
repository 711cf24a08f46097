# SPDX-License-Identifier: Apache-2.0
"""`longmem icl` from a user's point of view: a small real model, a real store, a user-defined task."""

import json
import random
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from longmem.testing import small_longmem
from pipelines.cli import app
from tests.folders import snapshot
from tests.inputs import DEFAULT_FORM
from tests.jobs import TASK

pytestmark = pytest.mark.thorough

pytest_plugins = ["tests.ray_cluster"]

TABLES = ("items.parquet", "grid.parquet", "demonstrations.parquet", "examples.parquet")
QUESTIONS = """
name = "answers"
train = "train.jsonl"
test = "test.jsonl"
template = "Thing: {thing}\\nColour: {colour}\\n"
target = "colour"
max_new_tokens = 4
until = "\\n"
"""


@dataclass(frozen=True)
class Outcome:
    code: int
    stdout: str
    stderr: str


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    settings = {**DEFAULT_FORM, "segment_tokens": 96, "memory_tokens": 384}
    small_longmem(folder, **settings).save_pretrained(folder / "checkpoint")
    return folder / "checkpoint"


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("task")
    chance = random.Random(0)
    for name, rows in (("train", 60), ("test", 10)):
        chosen = [(f"{name[:2]}{index}", chance.choice(["red", "blue"])) for index in range(rows)]
        lines = [json.dumps({"thing": thing, "colour": colour}) + "\n" for thing, colour in chosen]
        (folder / f"{name}.jsonl").write_text("".join(lines))
    (folder / "colours.toml").write_text(TASK)
    (folder / "answers.toml").write_text(QUESTIONS)
    return folder / "colours.toml"


@pytest.fixture
def icl(model: Path, task: Path) -> Callable[..., Outcome]:
    """Return a runner `icl(out, *options, task=…)` of the command in this process, with a small grid."""

    def run(out: Path, *options: object, task: Path = task) -> Outcome:
        grid = ("--shots", "0,2", "--memory-shots", "0,20", "--seeds", 2)
        where = () if "--address" in options else ("--address", "none")
        parts = ["icl", task, "--model", model, "--out", out, "--threads", 1, *where, *grid, *options]
        result = CliRunner().invoke(app, [str(part) for part in parts])
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        return Outcome(result.exit_code, result.stdout, result.stderr)

    return run


def summary_of(out: Path) -> dict[str, Any]:
    summary: dict[str, Any] = json.loads((out / "summary.json").read_text())
    return summary


def test_a_job_writes_every_cell_of_the_grid(icl: Callable[..., Outcome], tmp_path: Path) -> None:
    outcome = icl(tmp_path / "a")
    assert outcome.code == 0, outcome.stderr
    assert "colours: accuracy of 10 items" in outcome.stdout
    told = [line for line in outcome.stderr.splitlines() if "in memory" in line]
    assert [re.sub(r"\d+ tokens", "N tokens", line) for line in told] == [
        f"colours, seed {seed}: 20 demonstrations, N tokens in memory" for seed in (0, 1)
    ]
    items = pq.read_table(tmp_path / "a" / "items.parquet").to_pylist()
    cells = {(row["seed"], row["shots"], row["memory_shots"]) for row in items}
    assert cells == {(seed, shots, memory) for seed in (0, 1) for shots in (0, 2) for memory in (0, 20)}
    assert len(items) == 8 * 10
    grid = pq.read_table(tmp_path / "a" / "grid.parquet").to_pylist()
    of_cell = [row for row in items if (row["shots"], row["memory_shots"]) == (2, 20)]
    by_seed = [[row["longmem"] == row["gold"] for row in of_cell if row["seed"] == seed] for seed in (0, 1)]
    (row,) = (
        row
        for row in grid
        if (row["shots"], row["memory_shots"], row["model"], row["scoring"], row["metric"])
        == (2, 20, "longmem", "normalised", "accuracy")
    )
    assert row["mean"] == pytest.approx(sum(sum(each) / 10 for each in by_seed) / 2)
    page = (tmp_path / "a" / "report.html").read_text()
    assert "<script" not in page
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert "Memory, context and both" in page
    # the memory changes the scores; otherwise the checks below would hold for any memory
    with_memory, without = (
        [row["longmem_logprobs"] for row in items if (row["shots"], row["memory_shots"]) == (0, memory)]
        for memory in (20, 0)
    )
    assert max(abs(a[0] - b[0]) for a, b in zip(with_memory, without, strict=True)) > 0.01
    assert not (tmp_path / "a" / "memory.lance").exists()


def test_a_second_job_encodes_no_demonstration(icl: Callable[..., Outcome], tmp_path: Path) -> None:
    store = ("--store", tmp_path / "memory.lance")
    for out, options in (("first", ()), ("second", ()), ("other grid", ("--shots", "2", "--batch-items", 3))):
        assert icl(tmp_path / out, *store, *options).code == 0
    first, second, other = (summary_of(tmp_path / out)["demonstrations"] for out in ("first", "second", "other grid"))
    assert first["tokens_encoded"] > 40 * 20
    assert first["tokens_found"] == 0
    for again in (second, other):
        assert (again["tokens_encoded"], again["segments_encoded"]) == (0, 0)
        assert again["tokens_found"] == first["tokens_encoded"]
    for name in TABLES:
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()


def test_a_job_that_was_cut_off_ends_with_the_same_bytes(icl: Callable[..., Outcome], tmp_path: Path) -> None:
    assert icl(tmp_path / "whole", "--batch-items", 4).code == 0
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    journal = tmp_path / "cut" / "journal.jsonl"
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join(lines[: len(lines) // 2]) + lines[-1][:50])
    for name in (*TABLES, "summary.json"):
        (tmp_path / "cut" / name).unlink()
    assert icl(tmp_path / "cut", "--batch-items", 4, "--resume").code == 0
    summary = summary_of(tmp_path / "cut")
    assert summary["resumed"]
    asked = [each["asked"]["items"] for each in json.loads((tmp_path / "cut" / "slices.json").read_text())["slices"]]
    assert 0 < asked[1] < asked[0] == 80
    assert summary["asked"]["items"] == sum(asked)
    for name in TABLES:
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "cut" / name).read_bytes()
    before = snapshot(tmp_path / "cut")
    assert "finished before" in icl(tmp_path / "cut", "--batch-items", 4, "--resume").stdout
    assert snapshot(tmp_path / "cut") == before
    other = icl(tmp_path / "cut", "--resume", "--limit-items", 3)
    assert other.code == 2
    assert "holds another job" in other.stderr


def test_foreign_text_stays_text(icl: Callable[..., Outcome], task: Path, tmp_path: Path) -> None:
    for name in ("train.jsonl", "test.jsonl"):
        (tmp_path / name).write_text(task.with_name(name).read_text().replace("red", "<i>red</i>"))
    nasty = TASK.replace("colours", "<b>[red]x</b>").replace("Thing", "<u>Thing")
    (tmp_path / "task.toml").write_text(nasty)
    outcome = icl(tmp_path / "out", task=tmp_path / "task.toml")
    assert outcome.code == 0, outcome.stderr
    assert "<b>[red]x</b>: accuracy" in outcome.stdout
    page = (tmp_path / "out" / "report.html").read_text()
    assert "&lt;b&gt;[red]x" in page
    assert not any(tag in page for tag in ("<b>", "<i>", "<u>"))


def test_answers_can_be_generated(icl: Callable[..., Outcome], task: Path, tmp_path: Path) -> None:
    outcome = icl(tmp_path / "a", "--seeds", 1, task=task.with_name("answers.toml"))
    assert outcome.code == 0, outcome.stderr
    rows = pq.read_table(tmp_path / "a" / "items.parquet").to_pylist()
    assert len(rows) == 4 * 10
    assert all(row["answer"] is not None and "\n" not in row["answer"] for row in rows)
    assert {row["exact_match"] for row in rows} <= {0.0, 1.0}
    assert "exact match of 10 items" in outcome.stdout


@pytest.mark.ray
def test_workers_on_ray_give_the_same_scores(icl: Callable[..., Outcome], tmp_path: Path, ray_cluster: None) -> None:
    """Compare two workers; `test_icl_whole.py` compares bytes."""
    options = ("--address", "local", "--workers", 2, "--stores", 2, "--batch-items", 3)
    assert icl(tmp_path / "here").code == 0
    outcome = icl(tmp_path / "ray", *options)
    assert outcome.code == 0, outcome.stderr
    here, there = (pq.read_table(tmp_path / out / "items.parquet").to_pylist() for out in ("here", "ray"))
    for ours, theirs in zip(here, there, strict=True):
        for side in ("longmem_logprobs", "backbone_logprobs"):
            assert ours.pop(side) == pytest.approx(theirs.pop(side), abs=1e-5)
        assert ours == theirs
    here, there = (pq.read_table(tmp_path / out / "demonstrations.parquet").to_pylist() for out in ("here", "ray"))
    for ours, theirs in zip(here, there, strict=True):
        heaviest = [max((each["places"] or 0 for each in row["demonstrations"]), default=0) for row in (ours, theirs)]
        assert heaviest[0] == pytest.approx(heaviest[1], abs=1e-4)
        assert (ours["label_votes"] or []) == pytest.approx(theirs["label_votes"] or [], abs=1e-4)
        assert (ours["copy_share"] or 0) == pytest.approx(theirs["copy_share"] or 0, abs=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--memory-tokens", 96), r"task colours, seed 0: 20 demonstrations: packed whole they take"),
        (("--memory-shots", "0,90"), "2 demonstrations in context and 90 in memory are 92"),
        (("--shots", "0,x"), "--shots needs numbers with commas between them"),
        (("--shots", "1,1"), "--shots needs different numbers of at least 0"),
        (("--seeds", 0), "--seeds must be at least 1"),
        (("--workers", 0), "--workers must be at least 1"),
        (("--resume", "--limit-items", 0), "--limit-items must be at least 1"),
        (("--segment-tokens", 16), "none of 10 items fits a segment of 16 tokens"),
    ],
)
def test_bad_input_is_a_sentence_and_leaves_no_folder(
    icl: Callable[..., Outcome], tmp_path: Path, options: tuple[object, ...], message: str
) -> None:
    outcome = icl(tmp_path / "out", *options)
    assert outcome.code == 2
    assert message in " ".join(outcome.stderr.split())
    assert not (tmp_path / "out").exists()


def test_a_memory_that_demonstrations_need_is_made_as_large(icl: Callable[..., Outcome], tmp_path: Path) -> None:
    assert icl(tmp_path / "out", "--memory-shots", "50").code == 0
    assert summary_of(tmp_path / "out")["settings"]["memory_tokens"] > 384


def test_the_task_of_the_documentation_runs(icl: Callable[..., Outcome], tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "icl.md").read_text("utf-8")
    [task] = re.findall(r"```toml\n(.*?)```", page, re.DOTALL)
    train, test = re.findall(r"```json\n(.*?)```", page, re.DOTALL)
    for name, text in (("tickets.toml", task), ("train.jsonl", train), ("test.jsonl", test)):
        (tmp_path / name).write_text(text)
    options = ("--memory-shots", "0,4", "--seeds", 1)
    outcome = icl(tmp_path / "out", *options, task=tmp_path / "tickets.toml")
    assert outcome.code == 0, outcome.stderr
    assert "tickets: accuracy of 2 items" in outcome.stdout
    assert "chance: 50.0%" in outcome.stdout


def test_unknown_labels_are_named(icl: Callable[..., Outcome], task: Path, tmp_path: Path) -> None:
    for name in ("train.jsonl", "test.jsonl", "colours.toml"):
        (tmp_path / name).write_text(task.with_name(name).read_text())
    with (tmp_path / "test.jsonl").open("a") as file:
        file.write('{"thing": "x", "colour": "green"}\n')
    outcome = icl(tmp_path / "out", task=tmp_path / "colours.toml")
    assert outcome.code == 2
    assert "test.jsonl:11: unknown label 'green': task colours has blue, red" in " ".join(outcome.stderr.split())
