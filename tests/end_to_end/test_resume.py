# SPDX-License-Identifier: Apache-2.0
"""`longmem resume`: a job is continued by its folder alone, from anywhere, and secrets are asked for."""

import json
import os
import pty
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from longmem.testing import small_longmem
from pipelines.cli import app
from pipelines.resume.command import read_command
from tests.texts import prose

LONGMEM = Path(sys.executable).parent / "longmem"
ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "COLUMNS": "140", "PYTHONPATH": str(ROOT)}
TABLES = ("documents.parquet", "segments.parquet")
SECRET = "hunter2-hunter2"

pytestmark = [
    pytest.mark.thorough,
    pytest.mark.skipif(not LONGMEM.exists(), reason="longmem is not installed in this environment"),
    pytest.mark.timeout(180),
]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with books and a model, in which a job is begun with relative paths."""
    folder = tmp_path_factory.mktemp("work")
    small_longmem(folder).save_pretrained(folder / "model")
    (folder / "my books").mkdir()
    for number in range(3):
        (folder / "my books" / f"{number}.txt").write_text(prose(number, 500), encoding="utf-8")
    return folder


def run(*arguments: object, cwd: Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [str(LONGMEM), *map(str, arguments)],
        cwd=cwd,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        stdin=subprocess.DEVNULL,
    )


OPTIONS = ("perplexity", "my books", "--model", "model", "--address", "none", "--threads", "1")


def test_a_killed_job_is_continued_from_another_folder_with_nothing_retyped(
    work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(*OPTIONS, "--out", "whole", cwd=work)
    assert whole.returncode == 0, whole.stderr
    begun = subprocess.Popen(
        [str(LONGMEM), *OPTIONS, "--out", "out"], cwd=work, env=ENVIRONMENT, stderr=subprocess.DEVNULL
    )
    journal = work / "out" / "journal.jsonl"
    deadline = time.monotonic() + 100
    while not (journal.exists() and journal.read_bytes().count(b"\n") > 20):
        assert time.monotonic() < deadline, "the job wrote no results"
        assert begun.poll() is None, "the job ended before it was killed"
        time.sleep(0.02)
    begun.kill()
    begun.wait()
    assert not (work / "out" / "summary.json").exists(), "the job was killed too late"

    # moved, and named relative to where the user is now
    (work / "out").rename(tmp_path / "moved")
    resumed = run("resume", "moved", cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    assert "continuing: longmem perplexity 'my books' --model model" in resumed.stderr
    assert "per token" in resumed.stdout
    for name in TABLES:
        assert (tmp_path / "moved" / name).read_bytes() == (work / "whole" / name).read_bytes(), name
    log = [json.loads(line) for line in (tmp_path / "moved" / "log.jsonl").read_text().splitlines()]
    commands = [event["message"] for event in log if event["event"] in ("job_started", "job_resumed")]
    assert len(commands) == 2
    continued = commands[0].replace(" --out out", "") + f" --resume --out {tmp_path / 'moved'}"
    assert commands[1] == continued, "the command that was continued, with each option once"

    monkeypatch.chdir(tmp_path)
    again = CliRunner().invoke(app, ["resume", "moved", "--json"], prog_name="longmem")
    assert again.exit_code == 0, again.stderr
    assert json.loads(again.stdout) == json.loads((tmp_path / "moved" / "summary.json").read_text())
    assert "nothing was changed" in again.stderr


def planted(out: Path, message: str, **fields: str) -> Path:
    """Write the folder of a job that has begun with a command."""
    out.mkdir(parents=True)
    (out / "job.json").write_text(json.dumps({"id": "1", "identity": {"job": "perplexity"}}))
    lines = [{"event": "job_started", "message": message, **fields}, {"event": "document_admitted", "message": "x"}]
    (out / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"event": "job_res')
    return out


def refusal(out: Path) -> str:
    result = CliRunner().invoke(app, ["resume", str(out)], prog_name="longmem")
    assert (result.exit_code, result.stdout) == (2, ""), result.output
    assert result.stderr.count("\n") == 1, "one sentence"
    return result.stderr


def test_folders_without_a_command_are_refused(tmp_path: Path) -> None:
    assert "holds no job.json" in refusal(tmp_path / "nowhere")
    assert "names no command to continue; a job that was begun in Python" in refusal(planted(tmp_path / "a", ""))
    assert "but 'longmem rm -rf'" in refusal(planted(tmp_path / "b", "longmem rm -rf"))
    assert 'but "longmem perplexity \'books"' in refusal(planted(tmp_path / "c", "longmem perplexity 'books"))
    gone = planted(tmp_path / "d", "longmem perplexity books", folder=str(tmp_path / "gone"))
    result = CliRunner().invoke(app, ["resume", str(gone)], prog_name="longmem")
    assert "to which its paths are relative" in result.stderr
    (tmp_path / "d" / "log.jsonl").unlink()
    assert "which has the command of the job" in refusal(gone)


def test_the_newest_command_counts_and_a_torn_line_does_not(tmp_path: Path) -> None:
    out = planted(tmp_path / "out", "longmem perplexity a --encoders 1", folder="/here")
    event = {"event": "job_resumed", "message": "longmem perplexity a --encoders 2 --resume", "folder": "/there"}
    (out / "log.jsonl").write_text((out / "log.jsonl").read_text() + "\n" + json.dumps(event) + "\n")
    found = read_command(out)
    assert (found.arguments[-3:], found.folder) == (["--encoders", "2", "--resume"], Path("/there"))


@pytest.mark.parametrize("given", ["--out x", "--out=x", "--resume --out x", "--resume --out x --json"])
def test_a_command_that_is_resumed_again_does_not_grow(
    tmp_path: Path, given: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["longmem"])
    out = planted(tmp_path / "out", f"longmem perplexity gone.txt {given} --threads 1 -- --resume")
    result = CliRunner().invoke(app, ["resume", str(out), "--json"], prog_name="longmem")
    said = result.stderr.splitlines()[0]
    assert said == f"continuing: longmem perplexity gone.txt --threads 1 --resume --json --out {out} -- --resume"


def test_a_secret_is_asked_for(tmp_path: Path) -> None:
    """The command is printed where there is no terminal; on one, the argument is typed and compared."""
    # a local input that is missing ends the command before it asks the bucket
    out = planted(tmp_path / "out", "longmem perplexity gone.txt s3://***@bucket/books -- x", folder=str(tmp_path))
    said = refusal(out)
    complete = f"longmem perplexity gone.txt 's3://***@bucket/books' --resume --out {out} -- x"
    assert f"complete them and run: {complete}" in said

    ours, theirs = pty.openpty()
    shown = b""
    with subprocess.Popen(
        [str(LONGMEM), "resume", str(out)],
        stdin=theirs,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env=ENVIRONMENT,
        start_new_session=True,
    ) as process:
        os.close(theirs)
        assert process.stderr is not None
        for typed in ("s3://other", f"s3://key:{SECRET}@bucket/books"):
            # what is typed before the prompt is discarded
            while not shown.endswith(b"(with its secret, not shown): "):
                read = process.stderr.read(1)
                assert read, shown
                shown += read
            os.write(ours, f"{typed}\n".encode())
            shown += process.stderr.read(1)
        shown += process.stderr.read()
    os.close(ours)
    text = shown.decode()
    assert text.count("s3://***@bucket/books (with its secret, not shown)") == 2, "asked again for another one"
    assert "expected s3://***@bucket/books with something in the place of ***" in text
    assert "continuing: longmem perplexity gone.txt 's3://***@bucket/books'" in text
    assert "input not found" in text.splitlines()[-1]
    assert SECRET not in text
