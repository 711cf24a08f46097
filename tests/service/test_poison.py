# SPDX-License-Identifier: Apache-2.0
"""Two jobs on one service, of which one has segments that end or break the shared workers: only that one is blamed."""

import json
from concurrent.futures import ThreadPoolExecutor
from io import StringIO
from pathlib import Path
from threading import Barrier
from typing import Any

import pyarrow.parquet as pq
import pytest
from rich.console import Console

from actors.config import ClusterShape
from actors.executor.timeouts import Timeouts
from longmem.model.source import ModelSource
from longmem.runtime.scheduler import Limits
from longmem.store.config import StoreSettings
from longmem.types import Segment
from pipelines.job.service import ServiceChoice
from pipelines.perplexity.job import PerplexityJob, run_job
from tests.poison import BUG, POISON, LingeringSource
from tests.texts import prose

pytest_plugins = ["tests.ray_cluster"]
pytestmark = [pytest.mark.thorough, pytest.mark.ray]

NAME = "poisoned"
TRIES = 2
TABLES = ("documents.parquet", "segments.parquet", "tokens.parquet")


def test_poison_of_one_job_is_charged_to_that_job_alone(
    ray_cluster: None, source: ModelSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Share one encoder between two jobs. Each poisoned task lingers before it fails, so a task of the other job is
    then queued in the same process and is the only one in flight of its job."""
    from actors.service.executor import AttachedExecutor
    from actors.service.registry import Service, start_service, stop_service

    both, begun = Barrier(2, timeout=60), set[int]()

    class Together(AttachedExecutor):
        """Executor that begins when the other job begins."""

        def submit(self, stage: Any, segment: Segment) -> None:
            if id(self) not in begun:
                begun.add(id(self))
                both.wait()
            super().submit(stage, segment)

    monkeypatch.setattr("actors.service.executor.AttachedExecutor", Together)
    books: dict[str, dict[str, str]] = {"innocent": {}, "guilty": {}}
    for number in range(4):
        books["innocent"][f"innocent-{number}"] = prose(number, 40)
        books["guilty"][f"harmless-{number}"] = prose(10 + number, 40)
    for name, poison in (("deadly", POISON), ("faulty", BUG)):
        books["guilty"][name] = prose(20, 30) + poison + prose(21, 10)
    poisoned = LingeringSource(source.source)
    shape = ClusterShape(timeouts=Timeouts(max_tries=TRIES))
    store = StoreSettings(str(tmp_path / "memory.lance"))
    start_service(Service(name=NAME, source=poisoned, store=store, shape=shape))

    def job(name: str, texts: dict[str, str], service: str | None) -> PerplexityJob:
        out = tmp_path / f"{name}-{service or 'inline'}"
        inputs = tmp_path / f"books-{name}"
        inputs.mkdir(exist_ok=True)
        for document, text in texts.items():
            (inputs / f"{document}.txt").write_text(text, "utf-8")
        return PerplexityJob(
            inputs=(str(inputs),),
            out=out,
            model=source,
            cluster=None if service is None else ClusterShape(timeouts=shape.timeouts),
            service=None if service is None else ServiceChoice(name=service),
            threads=1,
            limits=Limits(8, 2**30),
            keep_tokens=True,
        )

    def run(job: PerplexityJob) -> dict[str, Any]:
        return run_job(job, Console(file=StringIO()))

    jobs = {name: job(name, texts, NAME) for name, texts in books.items()}
    try:
        with ThreadPoolExecutor(2) as threads:
            summaries = dict(zip(jobs, threads.map(run, jobs.values()), strict=True))
    finally:
        stop_service(NAME)

    # the innocent job has the numbers of a run alone, and no retry is charged to it
    assert summaries["innocent"]["failures"] == []
    logs = {name: (each.out / "log.jsonl").read_text().splitlines() for name, each in jobs.items()}
    events = {name: [json.loads(line) for line in log] for name, log in logs.items()}
    charged = {
        name: [each for each in log if each["event"] in ("worker_retry", "worker_quarantined")]
        for name, log in events.items()
    }
    assert charged["innocent"] == []
    assert any(each["event"] == "worker_lost" for each in events["innocent"])
    alone = job("innocent", books["innocent"], None)
    assert run(alone)["failures"] == []
    for table in TABLES:
        assert (jobs["innocent"].out / table).read_bytes() == (alone.out / table).read_bytes()

    # the guilty one has the error that names segment and tries, of these documents and no other
    failures = {each["document"]: each["error"] for each in summaries["guilty"]["failures"]}
    assert sorted(failures) == ["deadly", "faulty"]
    for document, error in failures.items():
        assert f"/{document} segment" in error
        assert f"failed {TRIES} times" in error
    assert "a bug of ours" in failures["faulty"]
    assert {each["document"] for each in charged["guilty"]} == {"deadly", "faulty"}
    rows = pq.read_table(jobs["guilty"].out / "documents.parquet").to_pylist()
    assert {row["document"] for row in rows if row["status"] == "scored"} == {f"harmless-{n}" for n in range(4)}
