# SPDX-License-Identifier: Apache-2.0
"""`longmem status` on job folders, other folders and missing ones."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from longmem.errors import OutputError
from longmem.runtime.steps import Step
from pipelines.cli import app
from pipelines.job.folder import STATUS_FILE, JobFolder
from pipelines.job.reporter import JobReporter
from pipelines.watch.status import SILENT_S, read_status, render


@pytest.fixture
def running(tmp_path: Path) -> Iterator[JobReporter]:
    """Yield a reporter of a job that runs in `tmp_path`."""
    with (
        JobFolder(tmp_path, resume=False) as folder,
        JobReporter(folder, "1f", "perplexity", on_cluster=False) as reporter,
    ):
        yield reporter


def shown(folder: Path, later_s: float = 0.0) -> str:
    console = Console(width=80, record=True)
    updated = json.loads((folder / STATUS_FILE).read_text())["updated"]
    console.print(render([read_status(folder, lambda: updated + later_s)]))
    return console.export_text()


def test_a_running_job(running: JobReporter, tmp_path: Path) -> None:
    assert read_status(tmp_path).verdict == "running"
    assert read_status(tmp_path).alive is True
    text = shown(tmp_path, 3)
    assert "running, as of 3 s ago" in text
    assert "job 1f" in text
    for words in ("tokens/s", "queued", "retries", "segments behind", "perplexity: documents 0 done"):
        assert words in text
    assert "…" not in text, "everything fits 80 columns"


def test_a_job_that_hangs_is_told_from_one_that_is_gone(tmp_path: Path) -> None:
    with JobFolder(tmp_path, resume=False) as folder, JobReporter(folder, "1f", "perplexity", on_cluster=False):
        text = shown(tmp_path, SILENT_S + 1)
        assert "silent" in text
        assert "hangs" in text
        alive = (tmp_path / STATUS_FILE).read_bytes()
    assert "finished" in shown(tmp_path, 9999)
    (tmp_path / STATUS_FILE).write_bytes(alive)  # the state after kill -9
    assert read_status(tmp_path).verdict == "killed"
    assert "longmem resume FOLDER" in shown(tmp_path)


def test_looking_does_not_take_the_folder(running: JobReporter, tmp_path: Path) -> None:
    for _ in range(3):
        read_status(tmp_path)
    with pytest.raises(OutputError, match="another process"):
        JobFolder(tmp_path, resume=True)


def test_foreign_names_are_shown_harmlessly(running: JobReporter, tmp_path: Path) -> None:
    from longmem.errors import DocumentError

    running.document_ended("[bold]x\x1b[2J", DocumentError("no"), kept=False)
    running._publish("running")
    text = shown(tmp_path)
    assert "[bold]x\ufffd[2J: no" in text
    assert "\x1b" not in text
    assert "1 failed" in text


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "is not the output folder of a job"), ("{", "damaged"), ("[]", "version"), ('{"state": "x"}', "version")],
)
def test_a_folder_without_a_status(tmp_path: Path, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / STATUS_FILE).write_text(content)
    with pytest.raises(OutputError, match=message):
        read_status(tmp_path)
    result = CliRunner().invoke(app, ["status", "--out", str(tmp_path)])
    assert result.exit_code == 2
    assert re.search(message, result.stderr)


def test_json_is_a_list_of_jobs(running: JobReporter, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["status", "--out", str(tmp_path), "--json"])
    assert result.exit_code == 0
    (job,) = json.loads(result.stdout)
    assert (job["verdict"], job["alive"], job["job"], job["stages"]["put"]["tokens"]) == ("running", True, "1f", 0)


@pytest.mark.parametrize("options", [["--out", "x", "--address", "auto"], ["--json", "--watch"]])
def test_options_that_contradict_each_other(options: list[str]) -> None:
    result = CliRunner().invoke(app, ["status", *options])
    assert result.exit_code == 2
    assert "give one of them" in result.stderr


def test_status_written_before_jobs_had_units_counts_documents(running: JobReporter, tmp_path: Path) -> None:
    values = json.loads((tmp_path / "status.json").read_text())
    for name in ("kind", "unit", "units_done", "units_total"):
        del values[name]
    values |= {"admitted_documents": 6, "scored_documents": 5, "failed_documents": 1}
    (tmp_path / "status.json").write_text(json.dumps(values))
    assert "perplexity: documents 6 done, 6 begun, 5 scored, 1 failed" in shown(tmp_path, 3)


def test_status_says_what_is_planned_before_the_first_unit_ends(running: JobReporter, tmp_path: Path) -> None:
    running.planned("examples", 60, 2)
    assert "examples 2 of 60 done" in shown(tmp_path, 3)


def test_status_shows_the_steps_of_a_request_while_it_runs(running: JobReporter, tmp_path: Path) -> None:
    running.planned("questions", 60)
    running.stepped("a book", Step("segments", "encoded", 12, 256))
    running.planned("questions", 60)
    assert "a book: 12 of 256 segments encoded" in shown(tmp_path, 3)


def test_a_job_that_scores_no_segments_shows_no_such_stage(running: JobReporter, tmp_path: Path) -> None:
    values = json.loads((tmp_path / STATUS_FILE).read_text())
    values |= {"kind": "icl", "unit": "items", "units_done": 32, "units_total": 32}
    values["stages"]["encode"] |= {"segments": 2, "tokens": 138}
    (tmp_path / STATUS_FILE).write_text(json.dumps(values))
    text = shown(tmp_path)
    assert "items 32 of 32 done" in text
    rows = [line.split()[0] for line in text.splitlines() if line.strip()]
    assert "encode" in rows
    assert not {"put", "score"} & set(rows)
