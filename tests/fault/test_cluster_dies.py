# SPDX-License-Identifier: Apache-2.0
"""Parts of a job's cluster that die or stop, one by one.

The job ends with identical bytes, or with one sentence and exit code 2, and continues with --resume. The default run
kills the head in test_jobs_survive.py.
"""

import os
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest
from typer.testing import CliRunner

from longmem.testing import small_longmem
from pipelines.cli import app
from tests.fault.crash.killed_jobs import LIMIT_S, descendants, driver, lines_of
from tests.fault.test_jobs_survive import prose, table_bytes

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]

PARTS = {
    "encoder": "ray::Encoder",
    "reader": "ray::Reader",
    "store": "Store",
    "monitor": "JobMonitor",
    "dashboard": "dashboard/dashboard.py",
    "dashboard agent": "ray::DashboardAgent",
    "runtime environments": "ray::RuntimeEnvAgent",
    "gcs": "/gcs_server",
    "raylet": "/raylet/raylet",
}
"""Substring of the command line of each part."""
FATAL = ("gcs", "raylet")
TOLD_S = 45.0
"""Seconds within which a job must end after it lost its cluster: 1 s to detect, up to 15 s to close, and a busy
machine."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a model, books, and the results of an undisturbed run."""
    folder = tmp_path_factory.mktemp("cluster")
    small_longmem(folder).save_pretrained(folder / "checkpoint")
    (folder / "books").mkdir()
    for number in range(2):
        (folder / "books" / f"{number}.txt").write_text(prose(number, 120), "utf-8")
    in_process(folder, "undisturbed")
    return folder


def in_process(folder: Path, name: str, *more: str) -> None:
    """Run the job to its end, or resume it, without Ray."""
    outcome = CliRunner().invoke(app, command(folder, name, "none", *more))
    assert outcome.exit_code == 0, outcome.output


def command(folder: Path, name: str, address: str, *more: str) -> list[str]:
    options = ["--model", str(folder / "checkpoint"), "--threads", "1", "--tokens", "--address", address]
    return ["perplexity", str(folder / "books"), *options, "--out", str(folder / name), *more]


def part(pid: int, what: str) -> psutil.Process:
    """Return the part's process among those that the driver started."""
    for process in descendants(pid):
        try:
            title = " ".join(process.cmdline())
        except psutil.Error:
            continue
        # a worker's title changes with its task, and other processes have the raylet among their arguments
        worker = what in ("encoder", "reader", "store", "monitor")
        text = title.split(" ")[0] if what in FATAL or worker else title
        if PARTS[what] in text and (not worker or text.startswith("ray::")):
            return process
    raise AssertionError(f"no {what} runs")


def until_scored(folder: Path, name: str, process: "subprocess.Popen[bytes]", more_lines: int) -> None:
    """Wait for `more_lines` more lines in the journal."""
    journal, log = folder / name / "journal.jsonl", folder / f"{name}.log"
    goal, deadline = lines_of(journal) + more_lines, time.monotonic() + LIMIT_S
    while lines_of(journal) < goal:
        assert process.poll() is None, log.read_text("utf-8")
        assert time.monotonic() < deadline, log.read_text("utf-8")
        time.sleep(0.02)


def assert_lost(folder: Path, name: str, what: str, more: tuple[str, ...]) -> None:
    """Check that a job whose cluster is lost ends with one sentence and exit code 2."""
    log = folder / f"{name}.log"
    before = len(log.read_bytes()) if log.exists() else 0
    with driver(command(folder, name, "local", *more), log) as process:
        until_scored(folder, name, process, 5)
        part(process.pid, what).kill()
        assert process.wait(TOLD_S) == 2, log.read_text("utf-8")
    said = log.read_bytes()[before:].decode().strip().splitlines()
    assert any(line.startswith("started a Ray cluster on this machine, at ") for line in said[:2]), said
    shown = {"gcs": "head process (GCS)", "raylet": "node process (raylet)"}[what]
    assert said[-1].startswith(f"error: the Ray cluster that this command started was lost: its {shown} has ended"), (
        said
    )
    assert said[-1].endswith("a job goes on with the same command and --resume"), said
    assert not any("Traceback" in line for line in said)


@pytest.mark.parametrize("what", FATAL)
def test_job_cluster_killed_ends_with_two_and_resumes_to_the_same_bytes(folder: Path, what: str) -> None:
    assert_lost(folder, what, what, ())
    in_process(folder, what, "--resume")
    assert table_bytes(folder / what) == table_bytes(folder / "undisturbed")


@pytest.mark.parametrize("what", [each for each in PARTS if each not in FATAL])
def test_job_part_killed_ends_with_the_same_bytes(folder: Path, what: str) -> None:
    name = f"killed-{what.replace(' ', '-')}"
    log = folder / f"{name}.log"
    with driver(command(folder, name, "local"), log) as process:
        until_scored(folder, name, process, 5)
        part(process.pid, what).kill()
        code = process.wait(LIMIT_S)
    if code == 2:
        # Ray ends a node whose agents have ended
        assert what in ("dashboard agent", "runtime environments"), log.read_text("utf-8")
        assert "was lost: its node process (raylet)" in log.read_text("utf-8").splitlines()[-1]
        in_process(folder, name, "--resume")
        code = 0
    assert code == 0, log.read_text("utf-8")
    assert table_bytes(folder / name) == table_bytes(folder / "undisturbed")


@pytest.mark.parametrize("what", ["encoder", "reader", "store", "monitor", "gcs", "raylet", "driver"])
def test_job_part_stopped_for_seconds_ends_with_the_same_bytes(folder: Path, what: str) -> None:
    name = f"stopped-{what}"
    log = folder / f"{name}.log"
    with driver(command(folder, name, "local"), log) as process:
        until_scored(folder, name, process, 5)
        pid = process.pid if what == "driver" else part(process.pid, what).pid
        os.kill(pid, signal.SIGSTOP)
        time.sleep(8)
        os.kill(pid, signal.SIGCONT)
        assert process.wait(LIMIT_S) == 0, log.read_text("utf-8")
    assert table_bytes(folder / name) == table_bytes(folder / "undisturbed")


@pytest.mark.parametrize("what", FATAL)
def test_job_cluster_stopped_for_good_ends_with_two(folder: Path, what: str) -> None:
    """Stop the part: neither an ended child nor a refused connection, only silence, detected before Ray ends the
    process."""
    name = f"silent-{what}"
    log = folder / f"{name}.log"
    with driver(command(folder, name, "local"), log) as process:
        until_scored(folder, name, process, 5)
        part(process.pid, what).suspend()
        code = process.wait(75)
    assert code in (0, 2), log.read_text("utf-8")
    if code == 2:
        assert "was lost: its" in log.read_text("utf-8").splitlines()[-1]
        in_process(folder, name, "--resume")
    assert table_bytes(folder / name) == table_bytes(folder / "undisturbed")
