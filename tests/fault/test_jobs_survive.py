# SPDX-License-Identifier: Apache-2.0
"""Whole jobs whose workers or driver die or stop: identical bytes, and every deviation is reported."""

import json
import os
import random
import signal
import sys
from io import StringIO
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from rich.console import Console
from typer.testing import CliRunner

from actors.config import ClusterShape
from actors.executor.timeouts import Timeouts
from longmem.model.source import ModelSource
from longmem.runtime.executor import Completion
from longmem.runtime.scheduler import Limits
from longmem.testing import small_longmem
from pipelines.perplexity.job import PerplexityJob, run_job
from tests.fault.crash.killed_jobs import driver, run_and_kill
from tests.inputs import ALL_LAYERS
from tests.poison import POISON, PoisonedSource

pytest_plugins = ["tests.ray_cluster"]
pytestmark = [pytest.mark.thorough, pytest.mark.ray]

TABLES = ("documents.parquet", "segments.parquet", "tokens.parquet", "readings.parquet", "passages.parquet")
SENTENCES = ("Call me Ishmael. ", "Some years ago, never mind how long precisely. ", "Having little or no money. ")


def prose(seed: int, sentences: int) -> str:
    return "".join(random.Random(seed).choices(SENTENCES, k=sentences))


def table_bytes(out: Path) -> dict[str, bytes]:
    return {table: (out / table).read_bytes() for table in TABLES}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    small_longmem(folder).save_pretrained(folder / "checkpoint")
    return folder / "checkpoint"


@pytest.fixture(scope="module")
def books(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("books")
    for number in range(3):
        (folder / f"{number}.txt").write_text(prose(number, 40), "utf-8")
    return folder


@pytest.fixture(scope="module")
def undisturbed(checkpoint: Path, books: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    job = job_of(checkpoint, books, tmp_path_factory.mktemp("undisturbed") / "out", cluster=None)
    assert run_job(job, Console(file=StringIO()))["failures"] == []
    return table_bytes(job.out)


def job_of(checkpoint: Path, inputs: Path, out: Path, cluster: ClusterShape | None) -> PerplexityJob:
    return PerplexityJob(
        inputs=(str(inputs),),
        out=out,
        model=ModelSource(str(checkpoint)),
        cluster=cluster,
        threads=1,
        limits=Limits(4, 2**30),
        keep_tokens=True,
    )


# --- stopped ------------------------------------------------------------------------------------------------------


def test_workers_that_stop_are_told_and_replaced(
    ray_cluster: None,
    checkpoint: Path,
    books: Path,
    undisturbed: dict[str, bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Send SIGSTOP to encoder, store and reader in the middle of a job, which simulates a hanging process."""
    import actors.executor.ray_executor

    class Stopping(actors.executor.ray_executor.RayExecutor):
        completed = 0

        def wait(self, timeout_s: float) -> list[Completion]:
            completions = super().wait(timeout_s)
            before, self.completed = self.completed, self.completed + len(completions)
            if before < 20 <= self.completed:
                for pool in self._pools.values():
                    (worker,) = pool.usable
                    assert worker.info is not None
                    os.kill(worker.info.pid, signal.SIGSTOP)
            return completions

    monkeypatch.setattr(actors.executor.ray_executor, "RayExecutor", Stopping)
    shape = ClusterShape(address="local", timeouts=Timeouts(unresponsive_s=1, kill_s=3))
    console = Console(file=StringIO(), width=200)
    job = job_of(checkpoint, books, tmp_path / "out", shape)
    summary = run_job(job, console)
    assert summary["failures"] == []
    assert table_bytes(job.out) == undisturbed
    assert isinstance(console.file, StringIO)
    said = console.file.getvalue()
    for kind in ("encoder", "store", "sidenet"):
        for what in ("has not answered for 1 s", "killed, it starts again", "was lost and starts again", "is ready"):
            assert any(f"{kind}-0" in line and what in line for line in said.splitlines()), (kind, what, said)


# --- poison -------------------------------------------------------------------------------------------------------


def test_a_document_that_ends_its_workers_is_set_aside(
    ray_cluster: None,
    checkpoint: Path,
    books: Path,
    undisturbed: dict[str, bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # modules that are imported while the class is replaced would keep the replacement
    import actors.executor.ray_executor  # noqa: F401
    import longmem.model.remembered_dtype
    import longmem.model.source
    from pipelines.cli import app

    poisoned = tmp_path / "books"
    poisoned.mkdir()
    for book in books.iterdir():
        (poisoned / book.name).write_bytes(book.read_bytes())
    (poisoned / "poison.txt").write_text(prose(9, 6) + POISON + prose(10, 6), "utf-8")
    monkeypatch.setattr(longmem.model.source, "ModelSource", PoisonedSource)
    out = tmp_path / "out"
    options = ["--model", str(checkpoint), "--threads", "1", "--address", "local", "--max-tries", "2", "--tokens"]
    outcome = CliRunner().invoke(app, ["perplexity", str(poisoned), *options, "--out", str(out)])
    assert outcome.exit_code == 1, outcome.output
    (failure,) = json.loads((out / "summary.json").read_text())["failures"]
    assert failure["document"] == "poison"
    assert "failed 2 times" in failure["error"]
    assert "set aside" in failure["error"]
    assert "--resume" in failure["error"]
    # segments that were queued behind it are not suspected
    blamed = [line for line in outcome.stderr.splitlines() if "is tried again" in line]
    assert blamed
    assert all("/poison segment" in line for line in blamed)
    for table in ("segments.parquet", "tokens.parquet"):
        assert (out / table).read_bytes() == undisturbed[table]
    documents = {row["document"]: row for row in pq.read_table(out / "documents.parquet").to_pylist()}
    assert documents.pop(failure["document"])["status"] == "failed"
    assert {row["status"] for row in documents.values()} == {"scored"}
    monkeypatch.undo()
    kept = [name for name, module in sys.modules.items() if vars(module).get("ModelSource") is PoisonedSource]
    assert not kept, "import them before the class is replaced"


# --- killed -------------------------------------------------------------------------------------------------------


@pytest.mark.timeout(600)
def test_random_kills_change_nothing(
    checkpoint: Path, books: Path, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    arguments = ["perplexity", str(books), "--model", str(checkpoint), "--threads", "1", "--tokens"]
    kills = ["worker", "gcs", "asked"]
    arguments += ["--out", str(out)]
    # the last slice needs no cluster: two of them have been started by then
    then = [*arguments, "--address", "none"]
    done = run_and_kill([*arguments, "--address", "local"], out, 1, kills, then)
    assert done == kills
    assert table_bytes(out) == undisturbed


@pytest.mark.timeout(600)
def test_random_kills_change_nothing_in_one_pass(books: Path, tmp_path: Path) -> None:
    """Kill a worker and the driver: what was encoded and not stored is encoded again, behind the same memory."""
    small_longmem(tmp_path, **ALL_LAYERS).save_pretrained(tmp_path / "checkpoint")
    arguments = ["perplexity", str(books), "--model", str(tmp_path / "checkpoint"), "--one-pass", "--threads", "1"]
    arguments += ["--tokens"]
    with driver([*arguments, "--address", "none", "--out", str(tmp_path / "alone")], tmp_path / "log") as process:
        assert process.wait() == 0, (tmp_path / "log").read_text("utf-8")
    kills = ["worker", "driver"]
    arguments += ["--out", str(tmp_path / "out")]
    on_ray = [*arguments, "--address", "local", "--encoders", "2"]
    assert run_and_kill(on_ray, tmp_path / "out", 2, kills, then=[*arguments, "--address", "none"]) == kills
    assert table_bytes(tmp_path / "out") == table_bytes(tmp_path / "alone")


@pytest.mark.slow
@pytest.mark.data
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("seed", [1])
def test_twenty_kills_and_five_of_the_whole_job(data_folder: Path, tmp_path: Path, seed: int) -> None:
    """Run three real books with the reference model."""
    books = tmp_path / "books"
    books.mkdir()
    for book in sorted((data_folder / "books_test").glob("*.txt"))[:3]:
        (books / book.name).write_text(book.read_text("utf-8")[:120_000], "utf-8")
    arguments = ["perplexity", str(books), "--threads", "1", "--tokens"]
    log = tmp_path / "undisturbed.log"
    with driver([*arguments, "--address", "none", "--out", str(tmp_path / "undisturbed")], log) as process:
        assert process.wait() == 0, log.read_text("utf-8")
    kills = ["worker"] * 20 + ["driver"] * 5
    random.Random(seed).shuffle(kills)
    out = tmp_path / "out"
    pools = ["--encoders", "2", "--readers", "2", "--stores", "2"]
    done = run_and_kill([*arguments, *pools, "--address", "local", "--out", str(out)], out, seed, kills)
    assert done == kills
    assert table_bytes(out) == table_bytes(tmp_path / "undisturbed")
