# SPDX-License-Identifier: Apache-2.0
"""Secrets in the URIs of any option never reach a terminal or a file, whether the command succeeds or fails."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pyarrow.parquet as pq
import pytest
import torch
import typer
from typer.testing import CliRunner

from longmem.system.redaction import know_secrets
from longmem.testing import small_longmem
from pipelines.app import app
from pipelines.command.option_types import OptionValueError

pytestmark = pytest.mark.thorough

MARK = "S3cr3tMARKer"
OTHER = "An0therS3cret"


def uri(scheme: str, name: str, secret: str = MARK) -> str:
    return f"{scheme}://user:{secret}@bucket/{name}?token={secret}&X-Amz-Signature={secret}#sig={secret}"


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    know_secrets([])


def run(folder: Path, *arguments: str, code: int | None = None) -> str:
    """Run a command, check the files that it wrote, and return its whole output."""
    result = CliRunner(env={"COLUMNS": "80"}).invoke(app, list(arguments), prog_name="longmem")
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    shown = result.stdout + result.stderr
    assert code is None or result.exit_code == code, shown
    check(shown, folder)
    return shown


def check(shown: str, folder: Path) -> None:
    for secret in (MARK, OTHER):
        # lines may be wrapped in the middle of a word
        assert secret not in shown.replace("\n", "").replace(" ", ""), shown
        for path in folder.rglob("*"):
            assert secret not in str(path)
            if path.is_file():
                assert secret.encode() not in path.read_bytes(), path
            if path.suffix == ".parquet":
                assert secret not in str(pq.read_table(path).to_pylist()), path


def leaves(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    if hasattr(command, "commands"):
        for name, each in command.commands.items():
            yield from leaves(each, (*path, name))
    else:
        yield path, command


LEAVES = dict(leaves(typer.main.get_command(app)))
SLOW = {("doctor", "--out"), ("doctor", "--text")}
"""Options of a command that inspects this machine, which holds no secrets."""


@pytest.mark.parametrize("path", LEAVES, ids=" ".join)
def test_a_secret_in_an_option_is_never_shown(
    path: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    # no host is contacted: a failing store or hub quotes its arguments
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    parameters = LEAVES[path].params
    for parameter in parameters:
        info = parameter.type_descriptor.parameter_info if hasattr(parameter, "type_descriptor") else None
        if info is None or info.parser is None or (*path, parameter.opts[0]) in SLOW:
            continue
        secret = uri("ray" if "address" in parameter.name else "memory", "a.txt")
        if "address" in parameter.name:
            secret = f"ray://user:{MARK}@127.0.0.1:1"
        is_option = parameter.param_type_name == "option"
        given = [f"{parameter.opts[0]}={secret}"] if is_option else []
        for other in parameters:
            if other.required and other is not parameter and other.param_type_name == "option":
                given.append(f"{other.opts[0]}={tmp_path / other.name}")
        if any(other.name == "address" for other in parameters) and parameter.name != "address":
            # no command may start a cluster here
            given.append("--address=none" if path[0] not in ("service", "status") else "--address=127.0.0.1:1")
        arguments = [secret if each is parameter else "1" for each in parameters if each.param_type_name != "option"]
        run(tmp_path, *path, *given, "--", *arguments)


def test_a_job_on_a_uri_with_a_secret_leaves_no_trace_of_it_and_goes_on_with_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_longmem(tmp_path / "made").save_pretrained(tmp_path / "model")
    filesystem = fsspec.filesystem("memory")
    for secret in (MARK, OTHER):
        filesystem.pipe(f"/user:{secret}@bucket/books/a.txt", b"Call me Ishmael. " * 20)
        filesystem.pipe(f"/user:{secret}@bucket/books/b.jsonl", b'{"text": "a whale"}\n{"text": 7}\n')
    monkeypatch.setattr(sys, "argv", ["longmem", "perplexity", f"memory://user:{MARK}@bucket/books/a.txt"])
    options = ("--model", str(tmp_path / "model"), "--address", "none", "--threads", "1")
    options += ("--out", str(tmp_path / "out"))

    def job(secret: str, *more: str, code: int = 0) -> str:
        inputs = [f"memory://user:{secret}@bucket/books/{name}" for name in ("a.txt", "b.jsonl")]
        return run(tmp_path / "out", "perplexity", *inputs, *options, *more, code=code)

    assert "must be" in job(MARK, "--limit-documents", "0", code=2)
    job(MARK, "--limit-documents", "2")
    sources = pq.read_table(tmp_path / "out" / "documents.parquet").column("source").to_pylist()
    assert sources == ["memory://***@bucket/books/a.txt", "memory://***@bucket/books/b.jsonl line 1"]
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["command"] == "longmem perplexity 'memory://***@bucket/books/a.txt'"
    # two keys to one bucket identify one job
    assert "finished before" in job(OTHER, "--limit-documents", "2", "--resume")
    (tmp_path / "out" / "summary.json").unlink()
    job(OTHER, "--limit-documents", "2", "--resume")
    # a failed document's error names its source
    options = (*options[:-1], str(tmp_path / "failed"))
    assert "b.jsonl line 2" in job(MARK, code=1)


def test_a_bug_shows_its_traceback_without_secrets(tmp_path: Path) -> None:
    code = f"""
import sys
from pipelines.cli import main
import pipelines.app
def fail():
    raise RuntimeError("a bug with {uri("s3", "a")}")
pipelines.app.app.command("fail")(fail)
sys.argv[1:] = ["fail"]
main()
"""
    ended = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path.cwd())},
    )
    assert ended.returncode == 1
    assert "Traceback" in ended.stderr
    assert "RuntimeError: a bug with s3://***@bucket/a?token=***" in ended.stderr
    check(ended.stdout + ended.stderr, tmp_path)


def test_an_error_in_an_option_shows_no_secret() -> None:
    with pytest.raises(OptionValueError) as error:
        LEAVES["doctor",].params[0].type_descriptor.parameter_info.parser(uri("s3", "out"))
    assert MARK not in str(error.value)
