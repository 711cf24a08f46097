# SPDX-License-Identifier: Apache-2.0
"""A perplexity job whose backbone did not run alone: what it writes, prints and shows, and how it is compared."""

import json
import math
import re
import shutil
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from rich.console import Console
from typer.testing import CliRunner

from longmem.errors import ConfigError, OutputError
from longmem.runtime.executor import EncodeReceipt
from longmem.runtime.inline_executor import InlineExecutor
from pipelines.app import app
from pipelines.compare.compare import compare
from pipelines.compare.console import print_comparison
from pipelines.compare.report import write_comparison
from pipelines.job.format import figure
from pipelines.job.output import write_table
from pipelines.perplexity.console import print_result
from pipelines.perplexity.job import PerplexityJob, run_job
from pipelines.perplexity.journal import Journal
from pipelines.perplexity.records import baseline_nats
from pipelines.view.answers import Answers
from pipelines.view.page import passage, render
from pipelines.view.questions import BadRequestError
from pipelines.view.run_folder import RunFolder
from tests.jobs import SPECS, Inputs, write_inputs

NOTHING = {"value": None, "low": None, "high": None}
WINDOW, STRIDE = 48, 20
WHY = "The backbone alone did not run in one pass"
ADVICE = f"{WHY}: for a perplexity without memory, give --window N, or score again with --no-memory and use longmem "
MISSING = re.compile(r"\b([Nn]a[Nn]|None)\b")
"""Text that a missing figure must not become."""
SEGMENTS = "segments.parquet"


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    return write_inputs(tmp_path_factory.mktemp("inputs"))


def leave_out_the_baseline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every receipt in this process lack the log-probabilities of the backbone alone."""
    encode = InlineExecutor._encode

    def in_one_pass(executor: InlineExecutor, *task: Any) -> EncodeReceipt:
        receipt = encode(executor, *task)
        object.__setattr__(receipt, "backbone_logprobs", None)
        return receipt

    monkeypatch.setattr(InlineExecutor, "_encode", in_one_pass)


@pytest.fixture(scope="module")
def runs(inputs: Inputs, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return the folders of finished jobs on the same texts, with and without a baseline."""
    folder = tmp_path_factory.mktemp("runs")

    def run(name: str, **options: Any) -> Path:
        _, job = SPECS["perplexity"](inputs, folder / name)
        assert isinstance(job, PerplexityJob)
        summary = run_job(replace(job, keep_tokens=True, **options), Console(file=StringIO()))
        assert summary["failures"] == []
        return folder / name

    off = replace(inputs.small, settings={"memory_tokens": 0})
    found = {"ordinary": run("ordinary"), "off": run("off", model=off)}
    with pytest.MonkeyPatch.context() as monkeypatch:
        leave_out_the_baseline(monkeypatch)
        found["one pass"] = run("one pass")
        found["less memory"] = run("less memory", model=replace(inputs.small, settings={"memory_tokens": 32}))
        found["windows"] = run("windows", window=WINDOW, stride=STRIDE)
    return found


def summary_of(out: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((out / "summary.json").read_text())
    return values


def test_records_of_the_journal_have_no_baseline(runs: dict[str, Path]) -> None:
    with Journal(runs["one pass"] / "journal.jsonl") as journal:
        segments = [segment for name in journal.documents for segment in journal.scored(name)]
    assert {segment.nll_backbone for segment in segments} == {None}
    assert {segment.tokens is not None and segment.tokens.logprobs_backbone for segment in segments} == {None}
    assert baseline_nats(segments) is None


def printed(out: Path) -> str:
    console = Console(file=StringIO(), width=200)
    print_result(console, summary_of(out), out)
    assert isinstance(console.file, StringIO)
    return console.file.getvalue()


def column(out: Path, table: str, name: str) -> list[Any]:
    values: list[Any] = pq.read_table(out / f"{table}.parquet")[name].to_pylist()
    return values


def test_the_summary_has_the_figures_of_memory_alone(runs: dict[str, Path]) -> None:
    ours, theirs = summary_of(runs["one pass"]), summary_of(runs["ordinary"])
    for unit in ("token", "word", "byte"):
        assert ours["perplexity"][unit] == {"longmem": theirs["perplexity"][unit]["longmem"], "backbone": NOTHING}
    assert ours["bits_per_byte"] == {"longmem": theirs["bits_per_byte"]["longmem"], "backbone": None}
    assert ours["nats"] == {"longmem": theirs["nats"]["longmem"], "backbone": None}
    assert ours["change"] == NOTHING
    absent = {"median": None, "dominant": None}
    assert ours["spread"] == {"longmem": theirs["spread"]["longmem"], "backbone": absent, "change": absent}
    assert "NaN" not in (runs["one pass"] / "summary.json").read_text()
    assert ours.keys() == theirs.keys()


def test_tables_have_null_where_the_baseline_would_be(runs: dict[str, Path]) -> None:
    for table, name in (("documents", "nll_backbone"), ("segments", "nll_backbone"), ("tokens", "logprob_backbone")):
        ours, theirs = (pq.read_table(runs[run] / f"{table}.parquet") for run in ("one pass", "ordinary"))
        assert ours.schema == theirs.schema
        assert set(ours[name].to_pylist()) == {None}
        assert ours.drop_columns([name]).equals(theirs.drop_columns([name]))


def test_the_terminal_shows_memory_alone_and_says_why(runs: dict[str, Path]) -> None:
    said = printed(runs["one pass"])
    head = next(line for line in said.splitlines() if "perplexity" in line)
    assert head.split() == ["perplexity", "with", "memory"]
    assert f"  {ADVICE}compare.\n" in said
    assert not MISSING.search(said)
    assert "change" not in said
    median = next(line for line in said.splitlines() if "Median over" in line)
    value = summary_of(runs["one pass"])["spread"]["longmem"]["median"]
    assert median.strip() == f"Median over 2 documents, each counted once: perplexity {figure(value)} (with memory)."


def test_windows_stay_shown(runs: dict[str, Path]) -> None:
    summary, said = summary_of(runs["windows"]), printed(runs["windows"])
    assert summary["window"]["change_to_memory"]["value"] == pytest.approx(
        math.expm1((summary["nats"]["longmem"] - summary["window"]["nats"]) / summary["counts"]["tokens"])
    )
    head = next(line for line in said.splitlines() if "perplexity" in line)
    assert head.split() == f"perplexity with memory window {WINDOW}, stride {STRIDE}".split()
    assert "with memory, compared with the windows: " in said
    assert f"{WHY}: for a perplexity of the same segments without memory, score again with --no-memory and use " in said
    assert "--window" not in said
    report = (runs["windows"] / "report.html").read_text()
    assert f"Window {WINDOW}, stride {STRIDE}" in report
    assert "compared with the backbone alone in overlapping windows" in report
    assert "Without memory" not in report


def test_the_report_leaves_out_line_and_columns(runs: dict[str, Path]) -> None:
    html, ordinary = ((runs[name] / "report.html").read_text() for name in ("one pass", "ordinary"))
    value = summary_of(runs["one pass"])["perplexity"]["token"]["longmem"]["value"]
    assert f'<p class="verdict">Token perplexity is {figure(value)} with memory (95% interval ' in html
    assert f"<p>{ADVICE}compare.</p>" in html
    for part in ("Without memory", ">Change<", 'class="without"', "nats, without memory", "shaded gap", "(without"):
        assert part in ordinary, "the test looks for parts that a report has"
        assert part not in html
    dashed = "stroke: var(--without-memory)"
    assert dashed in ordinary
    assert dashed not in html
    assert not MISSING.search(html)
    for report in (html, ordinary):
        for table in report.split("<table")[1:]:
            rows = [row.count("<td") + row.count("<th ") for row in table.split("</table>")[0].split("<tr>")[1:]]
            assert len(set(rows)) == 1, "all rows of a table have as many cells"


@pytest.mark.parametrize("names", [("ordinary", "one pass"), ("one pass", "ordinary"), ("off", "one pass")])
def test_runs_with_and_without_a_baseline_are_compared(
    runs: dict[str, Path], names: tuple[str, str], tmp_path: Path
) -> None:
    found = compare([runs[name] for name in names])
    base, other = (summary_of(runs[name])["nats"]["longmem"] for name in names)
    change = found["whole"][1]["change"]
    assert change["value"] == pytest.approx(math.expm1((other - base) / found["count"]), abs=1e-12)
    assert change["low"] <= change["value"] <= change["high"]
    assert (change["value"] == 0) == (names[0] != "off"), "only a memory makes a difference here"
    assert found["frequencies"]
    for name, row in zip(names, found["whole"], strict=True):
        assert row["figure"] == summary_of(runs[name])["perplexity"]["token"]["longmem"]
        assert row["without_memory"] == summary_of(runs[name])["perplexity"]["token"]["backbone"]
    assert found["notes"] == ["one pass: the backbone alone did not run in one pass."]
    console = Console(file=StringIO(), width=120)
    print_comparison(console, found)
    assert isinstance(console.file, StringIO)
    said = console.file.getvalue()
    assert "backbone" in next(line for line in said.splitlines() if "median document" in line)
    assert found["notes"][0] in said
    html = write_comparison(tmp_path / "page.html", found).read_text()
    assert "Backbone<br>alone" in html
    assert not MISSING.search(said + html + json.dumps(found))


def test_without_any_baseline_the_comparison_has_no_such_column(runs: dict[str, Path], tmp_path: Path) -> None:
    found = compare([runs["one pass"], runs["less memory"]])
    assert found["whole"][1]["change"]["value"] != 0
    console = Console(file=StringIO(), width=120)
    print_comparison(console, found)
    assert isinstance(console.file, StringIO)
    head = next(line for line in console.file.getvalue().splitlines() if "median document" in line)
    assert head.split() == ["run", "LongMem", "median", "document", "change", "95%", "interval"]
    assert "Backbone<br>alone" not in write_comparison(tmp_path / "page.html", found).read_text()


def test_the_viewer_shows_the_probability_itself(runs: dict[str, Path]) -> None:
    answers, ordinary = (Answers(RunFolder(runs[name])) for name in ("one pass", "ordinary"))
    assert (answers.run()["baseline"], ordinary.run()["baseline"]) == (False, True)
    assert answers.run()["change"] is None
    page, theirs = answers.page(0, 1, 50), ordinary.page(0, 1, 50)
    assert page == {**theirs, "without": None}
    assert len(theirs["without"]) == 50
    assert answers.token(0, 40) == {**ordinary.token(0, 40), "without": None}
    rows = [row for row in pq.read_table(runs["one pass"] / SEGMENTS).to_pylist() if row["document"] == "0"]
    means = [-row["nll_longmem"] / max(row["num_tokens"], 1) for row in rows]
    assert answers.overview(0) == {
        "firsts": [row["start_token"] + 1 for row in rows],
        "logprobs": [round(mean, 4) for mean in means],
    }
    with pytest.raises(BadRequestError, match="the backbone alone did not run in one pass"):
        answers.extremes(0, 1)
    data = passage(answers, 0, 1, 20)
    assert "NaN" not in render("small", data)


def test_the_viewer_exports_a_passage_of_such_a_run(runs: dict[str, Path], tmp_path: Path) -> None:
    options = ["--export", str(tmp_path / "passage.html"), "--document", "0"]
    result = CliRunner().invoke(app, ["view", str(runs["one pass"]), *options])
    assert result.exit_code == 0, result.output
    assert '"without": null' in (tmp_path / "passage.html").read_text()


def test_tables_with_a_part_of_the_baseline_are_refused(runs: dict[str, Path], tmp_path: Path) -> None:
    damaged = Path(shutil.copytree(runs["ordinary"], tmp_path / "damaged"))
    table = pq.read_table(damaged / SEGMENTS)
    values = [None, *table["nll_backbone"].to_pylist()[1:]]
    at = table.schema.get_field_index("nll_backbone")
    write_table(damaged / SEGMENTS, table.set_column(at, table.schema.field(at), [values]))
    with pytest.raises(ConfigError, match="lack nll_backbone in 1 of"):
        RunFolder(damaged)
    with pytest.raises(OutputError, match="lack nll_backbone in 1 of"):
        compare([runs["ordinary"], damaged])


def test_a_resumed_job_writes_the_same(runs: dict[str, Path], inputs: Inputs, tmp_path: Path) -> None:
    out = Path(shutil.copytree(runs["one pass"], tmp_path / "resumed"))
    (out / "summary.json").unlink()
    (out / SEGMENTS).unlink()
    _, job = SPECS["perplexity"](inputs, out)
    run_job(replace(job, keep_tokens=True, resume=True), Console(file=StringIO()))
    for name in ("documents", "segments", "tokens", "readings", "passages"):
        assert (out / f"{name}.parquet").read_bytes() == (runs["one pass"] / f"{name}.parquet").read_bytes()
    names = ("nats", "perplexity", "bits_per_byte", "change", "spread")
    ours, before = summary_of(out), summary_of(runs["one pass"])
    assert {name: ours[name] for name in names} == {name: before[name] for name in names}
