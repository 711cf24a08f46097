# SPDX-License-Identifier: Apache-2.0
"""The suite of every kind of job: what all of them leave in their folder, and what `--resume` makes of it.

A new kind of job adds a function to `tests.jobs.SPECS`, and its name to `pipelines.registry`.
"""

import ast
import json
import re
from contextlib import nullcontext
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner

from longmem.errors import ConfigError, LongMemError
from pipelines.cli import app
from pipelines.job.folder import FinishedSummary, JobFolder
from pipelines.job.reporter import JobReporter
from pipelines.job.runner import run
from pipelines.job.spec import AbstractJob, JobContext, Tell
from pipelines.registry import JOBS, job_class
from tests.folders import snapshot
from tests.jobs import COMMAND, SECRET, SPECS, UNITS, Inputs, write_inputs


@pytest.fixture(scope="module", autouse=True)
def _threads() -> Any:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    return write_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="module", params=JOBS)
def finished(request: pytest.FixtureRequest, inputs: Inputs, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Name, spec, summary and output of one job of every kind."""
    run_it, spec = SPECS[request.param](inputs, tmp_path_factory.mktemp(request.param) / "out")
    file = StringIO()
    return request.param, (run_it, spec), run_it(spec, Console(file=file, width=80)), file.getvalue()


def test_job_registered_is_every_subclass() -> None:
    """No kind of job is left out of the registry, and so of this suite."""
    found = set()
    for path in (Path(__file__).parents[2] / "pipelines").rglob("*.py"):
        for node in ast.parse(path.read_text("utf-8")).body:
            bases = [ast.unparse(base) for base in node.bases] if isinstance(node, ast.ClassDef) else []
            is_job = any(base.startswith(("AbstractJob", "RequestJob")) for base in bases)
            if is_job and not any(base.startswith("Generic[") for base in bases):
                found.add(node.name)  # type: ignore[attr-defined]
    assert found == {job_class(name).__name__ for name in JOBS}
    assert set(SPECS) == set(JOBS) == set(UNITS), "tests/jobs.py has an example and its units for every kind"
    assert all(job_class(name).name == name for name in JOBS)


def test_job_finished_leaves_status_log_and_results(finished: Any) -> None:
    name, (_, spec), summary, _ = finished
    status = json.loads((spec.out / "status.json").read_text())
    assert (status["state"], status["kind"], status["units_done"]) == ("finished", name, UNITS[name])
    assert status["units_total"] == UNITS[name]
    log = [json.loads(line) for line in (spec.out / "log.jsonl").read_text().splitlines()]
    assert (log[0]["event"], log[-1]["event"]) == ("job_started", "job_finished")
    stored = json.loads((spec.out / job_class(name).results).read_text())
    assert stored == json.loads(json.dumps(summary)) | {"command": stored["command"]}
    job = json.loads((spec.out / "job.json").read_text())
    assert job["identity"]["job"] == name
    assert {"job.lock", "status.json", "log.jsonl"} <= {path.name for path in spec.out.iterdir()}


def test_job_finished_holds_no_secret(finished: Any) -> None:
    _, (_, spec), _, shown = finished
    files = [path for path in spec.out.rglob("*") if path.is_file()]
    assert [path for path in files if SECRET.encode() in path.read_bytes()] == []
    assert SECRET not in shown
    assert "s3://" in (spec.out / "log.jsonl").read_text(), "the command is not in the log"


def test_job_redirected_shows_a_share_that_never_falls(finished: Any) -> None:
    name, _, _, shown = finished
    shares = [int(share) for share in re.findall(r"\((\d+)%\)", shown)]
    assert shares == sorted(shares), shown
    assert shares[-1] == 100, shown
    assert f" of {UNITS[name]} (100%)" in shown


def test_job_finished_is_left_as_it_is_by_resume(finished: Any) -> None:
    _, (run_it, spec), summary, _ = finished
    before = snapshot(spec.out)
    again = run_it(replace(spec, resume=True), Console(file=StringIO()))
    assert isinstance(again, FinishedSummary)
    # as it was written: without the secret of the command
    assert again == json.loads(json.dumps(summary)) | {"command": again["command"]}
    assert SECRET not in again["command"]
    assert snapshot(spec.out) == before


def test_job_finished_is_not_begun_again_without_resume(finished: Any) -> None:
    _, (run_it, spec), _, _ = finished
    with pytest.raises(LongMemError, match="holds another job"):
        run_it(spec, Console(file=StringIO()))


def test_job_finished_is_shown_by_status(finished: Any) -> None:
    name, (_, spec), _, _ = finished
    result = CliRunner(env={"COLUMNS": "80"}).invoke(app, ["status", "--out", str(spec.out)], prog_name="longmem")
    assert result.exit_code == 0, result.output
    assert ": finished, as of " in result.output
    assert f"{UNITS[name]} of {UNITS[name]} done" in result.output
    assert max(map(len, result.output.splitlines())) <= 80, result.output


class Counting(AbstractJob[list[int]]):
    """The smallest job: it says what it counts, and how far; everything else is the runner's."""

    name = "counting"
    on_cluster = False

    def __init__(self, out: Path, *, resume: bool = False, fails_at: int | None = None) -> None:
        self.out, self.resume, self.command = out, resume, COMMAND
        self.fails_at = fails_at

    def given(self) -> dict[str, Any]:
        return {"job": self.name, "to": 4}

    def requested_model(self) -> None:
        return None

    def describe(self, worker: list[int]) -> None:
        return None

    def open(self, tell: Tell) -> Any:
        tell("counting")
        return nullcontext([1, 2, 3, 4])

    def is_resumed(self, folder: JobFolder) -> bool:
        return folder.has_results_in("counted.txt")

    def run(self, context: JobContext[list[int]]) -> dict[str, Any]:
        counted = self.out / "counted.txt"
        done = len(counted.read_text().split()) if counted.exists() else 0
        context.observer.planned("numbers", 4, done)
        for number in context.worker[done:]:
            if number == self.fails_at:
                raise ConfigError(f"cannot count to {number}")
            with counted.open("a") as file:
                file.write(f"{number} ")
            context.observer.advanced()
        return {"counted": 4}


def test_new_kind_of_job_gets_everything_from_the_runner(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(ConfigError, match="cannot count to 3"):
        run(Counting(out, fails_at=3), Console(file=StringIO()))
    status = json.loads((out / "status.json").read_text())
    assert (status["state"], status["unit"], status["units_done"]) == ("failed", "numbers", 2)
    assert not (out / "summary.json").exists()
    with pytest.raises(LongMemError, match="continue that job with --resume"):
        run(Counting(out), Console(file=StringIO()))
    file = StringIO()
    assert run(Counting(out, resume=True), Console(file=file, width=80)) == {"counted": 4}
    assert "numbers 2 of 4 (50%)" in file.getvalue()
    assert "numbers 4 of 4 (100%)" in file.getvalue()
    events = [json.loads(line)["event"] for line in (out / "log.jsonl").read_text().splitlines()]
    assert events == ["job_started", "job_failed", "job_resumed", "job_finished"]
    assert SECRET not in (out / "log.jsonl").read_text()
    assert (out / "counted.txt").read_text() == "1 2 3 4 "


@pytest.mark.parametrize("resumed", [False, True])
def test_json_is_the_summary_and_nothing_else(inputs: Inputs, tmp_path: Path, resumed: bool) -> None:
    """Standard output of a job with `--json`, finished now or before, parses as its results file."""
    options = ["suffix", str(inputs.examples), "--model", inputs.small.source, "--out", str(tmp_path / "out")]
    options += ["--context-tokens", "16,64", "--suffix-tokens", "8", "--threads", "1", "--json"]
    runner = CliRunner(env={"COLUMNS": "80"})
    for more in ([], ["--resume"])[: 1 + resumed]:
        result = runner.invoke(app, [*options, *more], prog_name="longmem")
        assert result.exit_code == 0, result.output
    assert json.loads(result.stdout) == json.loads((tmp_path / "out" / "summary.json").read_text())
    assert ("nothing was changed" in result.stderr) == resumed


@pytest.mark.parametrize("level", ["--quiet", "-v", ""])
def test_quiet_prints_the_result_only_and_verbose_every_event(inputs: Inputs, tmp_path: Path, level: str) -> None:
    options = ["perplexity", str(inputs.books), "--model", inputs.small.source, "--out", str(tmp_path / "out")]
    options += ["--address", "none", "--threads", "1", *([level] if level else [])]
    result = CliRunner(env={"COLUMNS": "80"}).invoke(app, options, prog_name="longmem")
    assert result.exit_code == 0, result.output
    assert "per token" in result.stdout
    assert (result.stderr == "") == (level == "--quiet")
    for words in ("starting: loading libraries", "start-up included"):
        assert (words in result.stderr) == (level != "--quiet"), words
    for words in ("versions: longmem ", "memory_tokens=", "0: segment 0 encode ", "1: every segment is scored"):
        assert (words in result.stderr) == (level == "-v"), words
    failed = CliRunner().invoke(app, [*options, "--quiet"], prog_name="longmem")
    assert (failed.exit_code, failed.stdout) == (2, "")
    assert "error: " in failed.stderr, "a quiet command prints its errors"
    assert ("contradict each other" in failed.stderr) == (level == "-v")


def test_icl_status_follows_memories_while_they_are_written(
    inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Writing thousands of demonstrations takes hours, before the first item is answered."""
    seen: list[dict[str, Any]] = []
    publish = JobReporter._publish

    def watch(reporter: JobReporter, state: Any) -> None:
        publish(reporter, state)
        seen.append(json.loads((tmp_path / "out" / "status.json").read_text()))

    monkeypatch.setattr("pipelines.job.reporter.STATUS_S", 0.0)
    monkeypatch.setattr(JobReporter, "_publish", watch)
    run_it, spec = SPECS["icl"](inputs, tmp_path / "out")
    run_it(spec, Console(file=StringIO()))
    writing = [status for status in seen if status["units_done"] == 0]
    assert any(status["stages"]["encode"]["segments"] for status in writing)
    assert any(status["stages"]["put"]["segments"] for status in writing)
