# SPDX-License-Identifier: Apache-2.0
"""`longmem compare` on real runs of small models: its figures against sums by hand, and runs that it refuses."""

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from rich.console import Console
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from typer.testing import CliRunner

from longmem.backbone.small import save_small_backbone
from longmem.model.source import ModelSource
from longmem.runtime.scheduler import Limits
from pipelines.cli import app
from pipelines.compare.runs import FinishedRun, differences
from pipelines.icl.job import run_icl
from pipelines.perplexity.job import PerplexityJob, run_job
from tests.folders import snapshot
from tests.jobs import SPECS, Inputs, write_inputs
from tests.texts import prose

pytestmark = pytest.mark.thorough

QUIET = Console(file=StringIO())


@dataclass(frozen=True)
class Outcome:
    code: int
    stdout: str
    stderr: str


def invoke(*args: object, columns: int = 80) -> Outcome:
    result = CliRunner(env={"COLUMNS": str(columns)}).invoke(app, [str(arg) for arg in args], prog_name="longmem")
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return Outcome(result.exit_code, result.stdout, result.stderr)


def compared(*runs: Path) -> dict[str, Any]:
    outcome = invoke("compare", *runs, "--json")
    assert outcome.code == 0, outcome.stderr
    values: dict[str, Any] = json.loads(outcome.stdout)
    return values


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    folder = tmp_path_factory.mktemp("inputs")
    made = write_inputs(folder)
    for number in (2, 3):
        (made.books / f"{number}.txt").write_text(prose(number, 150), encoding="utf-8")
    return made


Score = Callable[..., Path]


@pytest.fixture(scope="module")
def score(inputs: Inputs, tmp_path_factory: pytest.TempPathFactory) -> Score:
    """Return a function that runs a perplexity job with settings of the model, and returns its folder."""

    def run(name: str, *, model: str = "", books: Path | None = None, **settings: Any) -> Path:
        tokens, limit = settings.pop("tokens", True), settings.pop("limit_tokens", None)
        out = tmp_path_factory.mktemp(name) / name
        job = PerplexityJob(
            inputs=(str(books or inputs.books),),
            out=out,
            model=ModelSource(model or inputs.small.source, settings=settings),
            cluster=None,
            threads=1,
            limits=Limits(4, 2**30),
            keep_tokens=tokens,
            limit_tokens=limit,
            command=f"longmem perplexity {name}",
        )
        run_job(job, QUIET)
        return out

    return run


@pytest.fixture(scope="module")
def large(score: Score) -> Path:
    return score("large")


@pytest.fixture(scope="module")
def small(score: Score) -> Path:
    return score("small", memory_tokens=32)


def tokens_of(out: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(out / "tokens.parquet").to_pylist()
    return rows


def nats_per_token(rows: list[dict[str, Any]]) -> float:
    return -math.fsum(row["logprob_longmem"] for row in rows) / len(rows)


def test_figures_equal_sums_over_the_tokens_of_both_runs(large: Path, small: Path) -> None:
    found = compared(large, small)
    ours, theirs = tokens_of(large), tokens_of(small)
    assert found["differences"] == [{"name": "memory_tokens", "values": [96, 32]}]
    assert (found["paired"], found["count"]) == ("segments", len(ours))

    def check(runs: list[dict[str, Any]], kept: Callable[[dict[str, Any]], bool]) -> None:
        base, other = (nats_per_token([row for row in rows if kept(row)]) for rows in (ours, theirs))
        assert runs[0]["figure"]["value"] == pytest.approx(math.exp(base), rel=1e-6)
        assert runs[1]["figure"]["value"] == pytest.approx(math.exp(other), rel=1e-6)
        assert runs[1]["change"]["value"] == pytest.approx(math.expm1(other - base), abs=1e-6)
        assert runs[0]["change"] is None

    check(found["whole"], lambda _: True)
    summary = json.loads((large / "summary.json").read_text())
    assert found["whole"][0]["figure"] == summary["perplexity"]["token"]["longmem"], "the same resamples as the job"
    assert found["whole"][1]["change"]["low"] < found["whole"][1]["change"]["value"]
    for row in found["documents"]:
        check(row["runs"], lambda each, row=row: each["document"] == row["document"])
    assert len(found["documents"]) == 4
    for row in found["positions"]:
        check(row["runs"], lambda each, row=row: row["first"] <= each["position"] <= row["last"])
    assert [row["first"] for row in found["positions"][:4]] == [1, 33, 65, 129]
    occurrences = np.bincount([row["token"] for row in ours])
    for row in found["frequencies"]:
        most = row["most"] or 10**9
        check(row["runs"], lambda each, row=row, most=most: row["least"] <= occurrences[each["token"]] <= most)
    for name in ("positions", "frequencies"):
        assert sum(row["count"] for row in found[name]) == len(ours), name


def test_median_is_over_documents(large: Path, small: Path) -> None:
    found = compared(large, small)
    values = sorted(row["runs"][1]["figure"]["value"] for row in found["documents"])
    assert found["whole"][1]["median"] == pytest.approx(math.sqrt(values[1] * values[2]))
    changes = sorted(row["runs"][1]["change"]["value"] for row in found["documents"])
    assert changes[1] <= found["whole"][1]["median_change"] <= changes[2]
    assert found["whole"][1]["lower_documents"] == sum(change < 0 for change in changes)


def test_other_segments_are_paired_at_common_borders(large: Path, score: Score) -> None:
    """Segments of 32 and 48 tokens share a border every 96 tokens."""
    other = score("other", segment_tokens=48)
    found = compared(large, other)
    assert found["paired"] == "pieces"
    assert any("Segments differ in length" in note for note in found["notes"])
    ends: dict[str, list[int]] = {}
    for out in (large, other):
        for row in pq.read_table(out / "segments.parquet").to_pylist():
            if row["num_tokens"]:
                ends.setdefault(row["document"], []).append(row["start_token"] + row["num_tokens"])
    assert found["pieces"] == sum(len([end for end in set(each) if each.count(end) == 2]) for each in ends.values())
    assert found["positions"][0]["last"] == 96
    ours, theirs = (nats_per_token(tokens_of(out)) for out in (large, other))
    assert found["whole"][1]["change"]["value"] == pytest.approx(math.expm1(theirs - ours), abs=1e-6)
    first = [row for row in tokens_of(other) if row["position"] <= 96]
    assert found["positions"][0]["runs"][1]["figure"]["value"] == pytest.approx(math.exp(nats_per_token(first)))


def save_other_tokenizer(folder: Path) -> None:
    """Save a small backbone whose tokenizer has tokens of two bytes."""
    save_small_backbone(folder, "llama", seed=1, vocab_size=300)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("t", "h"), ("a", "n"), ("e", "r")]
    vocabulary = {token: id_ for id_, token in enumerate([*alphabet, *("".join(pair) for pair in merges)])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<|endoftext|>", eos_token="<|endoftext|>"
    ).save_pretrained(str(folder))


def test_other_tokenizers_are_compared_in_bits_per_byte(large: Path, score: Score, tmp_path: Path) -> None:
    save_other_tokenizer(tmp_path / "other")
    other = score("pairs", model=str(tmp_path / "other"), segment_tokens=32, memory_tokens=96)
    found = compared(large, other)
    assert (found["unit"], found["counted"], found["paired"]) == ("bits per byte", "bytes", "documents")
    assert (found["positions"], found["frequencies"]) == ([], [])
    summaries = [json.loads((out / "summary.json").read_text()) for out in (large, other)]
    assert summaries[0]["counts"]["tokens"] > summaries[1]["counts"]["tokens"], "the tokenizers are the same"
    for row, summary in zip(found["whole"], summaries, strict=True):
        assert row["figure"]["value"] == pytest.approx(summary["bits_per_byte"]["longmem"])
    change = found["whole"][1]["change"]
    assert change["value"] == pytest.approx(
        summaries[1]["bits_per_byte"]["longmem"] - summaries[0]["bits_per_byte"]["longmem"]
    )
    assert change["low"] < change["value"] < change["high"]
    shown = invoke("compare", large, other)
    assert "bits per byte" in shown.stdout
    assert "Tokenizers differ" in shown.stdout


def test_terminal_fits_80_columns_and_names_what_differs_first(large: Path, small: Path) -> None:
    wide, narrow = invoke("compare", large, small, columns=200), invoke("compare", large, small)
    assert max(map(len, narrow.stdout.splitlines()[:-1])) <= 80, "all but the sentence at the end"
    assert [line.strip() for line in narrow.stdout.splitlines()] == [line.strip() for line in wide.stdout.splitlines()]
    words = ("what differs", "perplexity of", "by document", "by position", "by occurrences of the token")
    places = [narrow.stdout.index(each) for each in words]
    assert places == sorted(places)
    assert narrow.stdout.splitlines()[-1].startswith("  small: no measurable difference in perplexity to large (")


def test_a_run_without_tokens_is_told_and_the_others_are_compared(large: Path, small: Path, score: Score) -> None:
    bare = score("bare", tokens=False)
    found = compared(large, small, bare)
    assert found["no_frequencies"] == "--tokens was not given in bare"
    assert all(row["runs"][2] is None and row["runs"][1] is not None for row in found["frequencies"])
    assert found["whole"][2]["equal"]
    assert "bare and large predict every piece of the texts equally well" in invoke("compare", large, bare).stdout
    assert compared(bare, large)["frequencies"] == []
    # of three runs, each table says which two it compares
    titles = [
        line.strip() for line in invoke("compare", large, small, bare).stdout.splitlines() if line.startswith("by ")
    ]
    assert titles[0] == "by document: small compared with large"
    assert titles.count("by position: bare compared with large") == 1
    assert len(set(titles)) == len(titles)


def test_page_is_self_contained_and_escapes(large: Path, small: Path, tmp_path: Path) -> None:
    page = tmp_path / "compared.html"
    before = snapshot(large), snapshot(small)
    outcome = invoke("compare", large, small, "--out", page)
    assert (outcome.code, str(page) in outcome.stderr) == (0, True)
    html = page.read_text("utf-8")
    for foreign in ("http://", "https://", "<script", "url("):
        assert foreign not in html.replace("http://www.w3.org", "").replace("url(#", ""), foreign
    assert html.count("<svg") == 4, "two charts, wide and narrow"
    assert (snapshot(large), snapshot(small)) == before, "runs are only read"
    assert "<h1>small compared with large</h1>" in html
    wrong = invoke("compare", large, small, "--out", tmp_path / "compared.txt")
    assert (wrong.code, "--out must be the name of a page" in wrong.stderr) == (2, True)


def changed_run(run: Path, target: Path) -> Path:
    return Path(shutil.copytree(run, target))


def test_runs_that_cannot_be_compared_are_refused(
    large: Path, small: Path, score: Score, inputs: Inputs, tmp_path: Path
) -> None:
    def refusal(*runs: Path) -> str:
        outcome = invoke("compare", *runs)
        assert (outcome.code, outcome.stdout) == (2, ""), outcome
        assert outcome.stderr.count("\n") == 1, "one sentence"
        return outcome.stderr

    assert "at least two runs, got 1" in refusal(large)
    assert "is given twice" in refusal(large, large)
    assert "it holds no job.json" in refusal(large, tmp_path)

    open_run = changed_run(small, tmp_path / "open")
    (open_run / "summary.json").unlink()
    assert "not finished (finished, documents 4 of 4 done); continue it with: longmem resume" in refusal(
        large, open_run
    )

    books = tmp_path / "books"
    shutil.copytree(inputs.books, books)
    (books / "2.txt").write_text("another text")
    assert "document 2 is another text in other-text than in large" in refusal(large, score("other-text", books=books))
    limited = refusal(large, score("limited", limit_tokens=40))
    assert "large has scored all tokens of each document, and limited the first 40 tokens of each document" in limited
    assert "the same --limit-tokens" in limited
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "book.txt").write_text("one more text")
    assert "no document was scored in all runs: large has 0, 1, 2 and 1 more; elsewhere has book" in refusal(
        large, score("elsewhere", books=elsewhere)
    )

    run_it, spec = SPECS["icl"](inputs, tmp_path / "icl")
    run_it(spec, QUIET)
    assert "of kind icl, and" in refusal(large, tmp_path / "icl")
    for name in ("probe", "other-probe"):
        run_it, spec = SPECS["probe"](inputs, tmp_path / name)
        run_it(spec, QUIET)
    assert "of kind probe; expected one of perplexity, icl" in refusal(tmp_path / "probe", tmp_path / "other-probe")


def test_documents_of_one_run_only_are_left_out_and_told(
    large: Path, score: Score, inputs: Inputs, tmp_path: Path
) -> None:
    books = tmp_path / "books"
    books.mkdir()
    for name in ("0", "3"):
        shutil.copy(inputs.books / f"{name}.txt", books)
    found = compared(large, score("fewer", books=books))
    assert [row["document"] for row in found["documents"]] == ["0", "3"]
    assert found["notes"] == ["large also scored 1, 2, unlike another run: left out."]


@pytest.mark.parametrize("text", ["{}", '{"model": {"fingerprint": {}}}', "[1]", '{"settings": "x"}'])
def test_a_summary_without_its_parts_is_refused(large: Path, small: Path, tmp_path: Path, text: str) -> None:
    damaged = changed_run(small, tmp_path / "damaged")
    (damaged / "summary.json").write_text(text)
    outcome = invoke("compare", large, damaged)
    assert outcome.code == 2
    assert f"cannot read {damaged}/summary.json" in outcome.stderr.replace("\n", "")
    assert "longmem resume" in outcome.stderr


def test_another_reading_of_whole_demonstrations_is_a_difference(small: Path) -> None:
    run = FinishedRun("run", small, "icl", {}, json.loads((small / "summary.json").read_text()))
    nearest, any_two = (
        replace(run, summary=run.summary | {"grid": {"whole": {"choice": choice, "num_read": count}}})
        for choice, count in (("idf", 16), ("random", 2))
    )
    found = {each.name: each.values for each in differences([nearest, any_two])}
    assert found == {"choice": ["idf", "random"], "num_read": [16, 2]}


def test_a_damaged_table_is_refused_with_its_name(large: Path, small: Path, tmp_path: Path) -> None:
    damaged = changed_run(small, tmp_path / "damaged")
    (damaged / "segments.parquet").write_bytes(b"PAR1")
    outcome = invoke("compare", large, damaged)
    assert (outcome.code, "segments.parquet" in outcome.stderr) == (2, True)
    assert "Traceback" not in outcome.stderr


@pytest.fixture(scope="module")
def cells(inputs: Inputs, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("cells")
    for name, top_k in (("wide", 64), ("narrow", 1)):
        _, spec = SPECS["icl"](inputs, folder / name)
        model = replace(spec.model, settings={"top_k": top_k})
        run_icl(replace(spec, model=model, seeds=2, memory_shots=(0, 2, 4)), QUIET)
    return folder / "wide", folder / "narrow"


def test_icl_cells_are_paired_over_items_and_seeds(cells: tuple[Path, Path]) -> None:
    found = compared(*cells)
    assert found["differences"] == [{"name": "top_k", "values": [64, 1]}]
    assert len(found["cells"]) == 3 * 2, "cells and scorings"
    columns = {"normalised": "longmem", "greedy": "longmem_greedy"}
    for cell in found["cells"]:
        assert (cell["seeds"], cell["items"]) == (2, 6)
        shares = []
        for run in cells:
            rows = [
                row
                for row in pq.read_table(run / "items.parquet").to_pylist()
                if row["memory_shots"] == cell["memory_shots"]
            ]
            shares.append(sum(row[columns[cell["scoring"]]] == row["gold"] for row in rows) / len(rows))
        assert [run["figure"] for run in cell["runs"]] == pytest.approx(shares)
        change = cell["runs"][1]["change"]
        assert change["value"] == pytest.approx(shares[1] - shares[0])
        assert change["low"] <= change["value"] <= change["high"]
    shown = invoke("compare", *cells)
    assert max(map(len, shown.stdout.splitlines()[:-1])) <= 80
    assert "6 cells" in shown.stdout


def test_icl_cells_of_one_run_only_are_left_out(cells: tuple[Path, Path], inputs: Inputs, tmp_path: Path) -> None:
    _, spec = SPECS["icl"](inputs, tmp_path / "fewer")
    run_icl(replace(spec, seeds=1, memory_shots=(0, 4), limit_items=3), QUIET)
    found = compared(cells[0], tmp_path / "fewer")
    assert {(cell["memory_shots"], cell["seeds"], cell["items"]) for cell in found["cells"]} == {(0, 1, 3), (4, 1, 3)}
    assert "wide has 1 more cell of the grid, unlike another run: left out." in found["notes"]


def test_icl_tasks_with_other_data_are_refused(cells: tuple[Path, Path], inputs: Inputs, tmp_path: Path) -> None:
    folder = tmp_path / "other"
    shutil.copytree(inputs.task.parent, folder, ignore=shutil.ignore_patterns("books"))
    lines = (folder / "train.jsonl").read_text().replace("t1", "u1")
    (folder / "train.jsonl").write_text(lines)
    _, spec = SPECS["icl"](replace(inputs, task=folder / "colours.toml"), tmp_path / "out")
    run_icl(replace(spec, seeds=2), QUIET)
    outcome = invoke("compare", cells[0], tmp_path / "out")
    assert (outcome.code, "task colours has other items or demonstrations in out" in outcome.stderr) == (2, True)
