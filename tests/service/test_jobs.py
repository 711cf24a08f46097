# SPDX-License-Identifier: Apache-2.0
"""Jobs on a service: the numbers of a job alone, of concurrent jobs, and with blocks that others have written."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from io import StringIO
from pathlib import Path
from threading import Barrier, Lock, get_ident
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from actors.config import ClusterShape
from longmem.errors import FingerprintError
from longmem.model.source import ModelSource
from longmem.runtime.executor import Completion, Stage
from longmem.runtime.scheduler import Limits
from longmem.testing import small_longmem
from longmem.types import Segment
from pipelines.cli import app
from pipelines.job.service import ServiceChoice
from pipelines.perplexity.job import PerplexityJob, run_job
from tests.texts import prose

pytest_plugins = ["tests.ray_cluster"]
pytestmark = [pytest.mark.thorough, pytest.mark.ray]

TABLES = ("documents.parquet", "segments.parquet", "tokens.parquet", "readings.parquet", "passages.parquet")
Job = Callable[..., PerplexityJob]


@pytest.fixture(scope="module")
def books(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("books")
    for number, words in enumerate((150, 2, 90)):
        (folder / f"book-{number}.txt").write_text(prose(number, words))
    return folder


@pytest.fixture(scope="module")
def job(source: ModelSource, books: Path) -> Job:
    """Return a factory: `job(out)` runs in this process, `job(out, service=…)` on a service."""

    def make(out: Path, service: str | None = None, **fields: Any) -> PerplexityJob:
        given = {
            "inputs": (str(books),),
            "out": out,
            "model": source,
            "cluster": None if service is None else ClusterShape(),
            "service": None if service is None else ServiceChoice(name=service),
            "threads": 1,
            "limits": Limits(8, 2**30),
            "keep_tokens": True,
        }
        return PerplexityJob(**given | fields)

    return make


@pytest.fixture(scope="module")
def inline(job: Job, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    return run(job(tmp_path_factory.mktemp("inline") / "out"))[1]


def run(job: PerplexityJob) -> tuple[dict[str, Any], dict[str, bytes]]:
    summary = run_job(job, Console(file=StringIO()))
    assert summary["failures"] == []
    return summary, {name: (job.out / name).read_bytes() for name in TABLES}


def test_two_jobs_at_once_take_turns_and_say_what_one_alone_says(
    service: str, job: Job, inline: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from actors.service.executor import AttachedExecutor

    both, lock, order, begun = Barrier(2, timeout=60), Lock(), [], set()

    class Watched(AttachedExecutor):
        def submit(self, stage: Stage, segment: Segment) -> None:
            if get_ident() not in begun:
                begun.add(get_ident())
                both.wait()
            super().submit(stage, segment)

        def wait(self, timeout_s: float) -> list[Completion]:
            completions = super().wait(timeout_s)
            with lock:
                order.extend([get_ident()] * len(completions))
            return completions

    monkeypatch.setattr("actors.service.executor.AttachedExecutor", Watched)
    with ThreadPoolExecutor(2) as threads:
        jobs = [threads.submit(run, job(tmp_path / name, service)) for name in ("first", "second")]
        results = [each.result() for each in jobs]
    assert [tables for _, tables in results] == [inline, inline]
    assert results[0][0]["executor"]["service"] == service
    assert results[0][0]["executor"]["encoders"] == 2
    # while both ran, neither was far ahead of the other
    first, second = sorted(set(order), key=order.index)
    together = order[: len(order) - next(n for n, who in enumerate(reversed(order)) if who != order[-1])]
    assert min(together.count(first), together.count(second)) > 0.3 * len(together)
    assert len(together) > 0.5 * len(order)


def test_what_one_job_wrote_another_reads(
    service: str, job: Job, inline: dict[str, bytes], tmp_path: Path, books: Path
) -> None:
    fields: dict[str, Any] = {"retention": "forever", "namespace": "kept"}
    first, tables = run(job(tmp_path / "first", service, **fields))
    second, again = run(job(tmp_path / "second", service, **fields))
    assert tables == again == inline
    assert first["stages"]["put"]["segments"] == first["counts"]["segments"]
    assert second["stages"]["put"]["segments"] == 0
    changed = tmp_path / "changed"
    changed.mkdir()
    (changed / "book-0.txt").write_text(prose(7, 150))
    summary = run_job(job(tmp_path / "third", service, inputs=(str(changed),), **fields), Console(file=StringIO()))
    assert [each["document"] for each in summary["failures"]] == ["book-0"]
    # a job that keeps nothing does not read kept blocks
    assert run(job(tmp_path / "fourth", service, inputs=(str(changed),)))[0]["failures"] == []


@pytest.mark.asyncio
async def test_a_job_that_keeps_nothing_leaves_nothing(
    service: str, job: Job, inline: dict[str, bytes], tmp_path: Path
) -> None:
    from actors.client import connect

    async with connect(service=service) as client:
        before = await client.documents()
        run(job(tmp_path / "out", service))
        assert await client.documents() == before


def test_another_model_is_refused(service: str, job: Job, tmp_path: Path) -> None:
    small_longmem(tmp_path, seed=1).save_pretrained(tmp_path / "other")
    choice = ServiceChoice(name=service, offered=ModelSource(str(tmp_path / "other")))
    with pytest.raises(FingerprintError, match=r"another model \(held != offered\): .*leave out --model"):
        run_job(replace(job(tmp_path / "out", service), service=choice), Console(file=StringIO()))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--encoders", "2"], "--encoders: service 'any' decides that"),
        (["--store", "here", "--readers", "1"], "--readers, --store: service 'any' decides that"),
        (["--no-memory"], "--no-memory: service 'any' decides that"),
        (["--address", "none"], "--service needs a cluster that runs already, not --address none"),
    ],
)
def test_what_the_service_decides_cannot_be_chosen(options: list[str], message: str, tmp_path: Path) -> None:
    """Refuse without Ray."""
    arguments = ["perplexity", "--service", "any", "--out", str(tmp_path / "out"), *options]
    result = CliRunner(env={"COLUMNS": "140"}).invoke(app, arguments)
    assert result.exit_code == 2, result.output
    assert message in result.stderr
