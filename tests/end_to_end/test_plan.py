# SPDX-License-Identifier: Apache-2.0
"""`longmem plan` on a small real model: it measures, plans, saves and checks its prediction against a run."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from longmem.model.longmem import LongMem
from longmem.model.source import ModelSource, describe
from pipelines.cli import app
from pipelines.plan.costs import UnitCosts, load_costs, save_costs
from pipelines.plan.measure import identity_of, measure_costs
from pipelines.plan.processes import folder_bytes

pytestmark = pytest.mark.thorough

SEGMENT_TOKENS, MEMORY_TOKENS = 32, 96
TEXT = "It was the best of times, it was the worst of times, it was the age of wisdom. " * 12


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, small_model: Callable[..., LongMem]) -> Path:
    folder = tmp_path_factory.mktemp("plan") / "model"
    small_model("llama").save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def costs(model: Path) -> UnitCosts:
    return measure_costs(ModelSource(str(model)), 1, 0.3)


@pytest.fixture(scope="module")
def saved(costs: UnitCosts, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("costs") / "costs.json"
    save_costs(costs, path)
    return path


@pytest.fixture
def book(tmp_path: Path) -> Path:
    (tmp_path / "cities.txt").write_text(TEXT)
    return tmp_path / "cities.txt"


def plan(*args: object) -> Result:
    given = ["plan", "--address", "none", "--threads", "1", *(str(each) for each in args)]
    result = CliRunner(env={"COLUMNS": "140"}).invoke(app, given, prog_name="longmem")
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def test_what_is_measured(costs: UnitCosts, model: Path) -> None:
    opened = ModelSource(str(model)).open()
    assert costs.segment_bytes == describe(opened).segment_bytes
    assert [tokens for tokens, _ in costs.score.levels] == [32, 64, 96]
    assert (costs.segment_tokens, costs.memory_tokens) == (SEGMENT_TOKENS, MEMORY_TOKENS)
    for cost in (costs.encode, costs.put, costs.read, costs.read_more, costs.record, costs.forget, costs.score.empty):
        assert 0 < cost.wall_s < 1
        assert cost.repetitions > 0
    # all stored bytes are on disk, and tables of small blocks have a large share of metadata
    assert costs.store_overhead > 1
    # a full window holds each key twice: as a chunk key and for attention
    assert costs.window_bytes > MEMORY_TOKENS / SEGMENT_TOKENS * costs.block_bytes
    assert costs.process_bytes > 10 * 2**20


def test_saved_costs_plan_in_a_moment(saved: Path, model: Path, book: Path) -> None:
    result = plan(book, "--model", model, "--costs", saved)
    assert result.exit_code == 0, result.output
    assert "Limited by" in result.stdout
    assert "tokens/s" in result.stdout
    # one token per byte, and one start token
    assert f"{len(TEXT) + 1:,} tokens of 1 document" in result.stdout


def test_plan_of_a_folder_names_what_it_does_not_read(saved: Path, model: Path, book: Path) -> None:
    (book.parent / "notes.pdf").touch()
    result = plan(book.parent, "--model", model, "--costs", saved, "--json")
    assert "not read: 1 .pdf (notes.pdf)" in result.stderr
    assert json.loads(result.stdout)["left_out"] == {".pdf": {"count": 1, "examples": ["notes.pdf"]}}


def test_json_for_imagined_documents(saved: Path, model: Path) -> None:
    result = plan("--tokens", 3200, "--documents", 5, "--model", model, "--costs", saved, "--json")
    values = json.loads(result.stdout)
    assert values["plan"]["documents"] == 5
    assert values["plan"]["tokens"] == 16_000
    assert values["plan"]["num_segments"] == 500
    assert values["plan"]["tokens_per_s"] == pytest.approx(16_000 / values["plan"]["wall_s"])
    assert values["costs"]["identity"]["threads"] == 1
    assert values["check"] is None


def test_costs_of_other_settings_are_refused(saved: Path, model: Path) -> None:
    result = plan("--tokens", 3200, "--model", model, "--costs", saved, "--memory-tokens", 64)
    assert result.exit_code == 2
    assert "settings.memory_tokens: 96 != 64" in result.stderr


def test_costs_without_ray_are_refused_for_a_cluster(saved: Path, model: Path) -> None:
    result = plan("--tokens", 3200, "--model", model, "--costs", saved, "--address", "local", "--nodes", 3)
    assert result.exit_code == 2
    assert "holds no costs of Ray" in result.stderr


def test_measuring_and_checking_in_one_command(
    model: Path, book: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # costs before the job are measured in a process of their own, which takes seconds to start; those after it, here
    monkeypatch.setattr("pipelines.plan.check.measure_apart", measure_costs)
    out = tmp_path / "costs.json"
    result = plan(book, "--model", model, "--seconds", 0.3, "--save-costs", out, "--check", "--json")
    # a run this short may deviate; the test checks that both sides are reported
    assert result.exit_code in (0, 1), result.output
    check = json.loads(result.stdout)["check"]
    assert (result.exit_code == 0) == check["passed"]
    figures = {figure["name"]: figure for figure in check["figures"]}
    assert figures["throughput"]["measured"] > 0
    assert figures["throughput"]["error"] == pytest.approx(
        figures["throughput"]["predicted"] / figures["throughput"]["measured"] - 1
    )
    assert {"encode, busy", "put, busy", "score, busy"} <= figures.keys()
    source = ModelSource(str(model))
    assert load_costs(out, identity_of(describe(source.open()), source, 1), with_ray=False)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "give INPUT, or --tokens"),
        (["--tokens", 10, "book.txt"], "and not both"),
        (["--tokens", 10, "--check"], "it needs INPUT"),
        (["--tokens", 10, "--nodes", 2], "cannot use 2 nodes"),
        (["--tokens", 10, "--address", "ray://x:1"], "must be local or none"),
        (["--tokens", -1], "--tokens must be at least 1, got -1"),
        (["--tokens", 10, "--documents", 0], "--documents must be at least 1"),
        (["--tokens", 10, "--no-memory", "--memory-tokens", 5], "contradict"),
        (["missing.txt"], "missing.txt"),
    ],
)
def test_bad_input_is_told(args: list[object], message: str) -> None:
    result = plan(*args)
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.split())


def test_disk_of_a_memory_at_every_layer(
    small_backbone: Callable[[str], Path], book: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compare the predicted bytes on disk with a store that keeps the document."""
    monkeypatch.setattr("pipelines.plan.measure.measure_apart", measure_costs)
    sizes = ("--segment-tokens", 32, "--memory-tokens", 96, "--top-k", 8, "--near-tokens", 12, "--read-blocks", 2)
    options = ("--model", small_backbone("llama"), "--memory-layers", "all", *sizes, "--block-tokens", 4)
    result = plan(book, *options, "--retention", "forever", "--seconds", 0.3, "--json")
    assert result.exit_code == 0, result.output
    values = json.loads(result.stdout)
    # keys and values of four layers with two heads of 8 float16 numbers, and the token's id
    assert values["costs"]["block_bytes"] == 32 * (2 * 4 * 2 * 8 * 2 + 4)
    job = ("perplexity", book, *options, "--address", "none", "--threads", 1, "--out", tmp_path / "out")
    store = ("--store", tmp_path / "memory.lance", "--retention", "forever")
    ran = CliRunner().invoke(app, [str(each) for each in (*job, *store)], prog_name="longmem")
    assert ran.exit_code == 0, ran.output
    assert values["plan"]["disk_bytes"] == pytest.approx(folder_bytes(tmp_path / "memory.lance"), rel=0.5)
