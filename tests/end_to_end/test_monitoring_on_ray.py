# SPDX-License-Identifier: Apache-2.0
"""A real run in Ray's metrics endpoint, a real Prometheus, `longmem status` and the Ray dashboard."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import urllib.parse
import urllib.request
from collections import defaultdict
from collections.abc import Callable, Iterator
from io import StringIO
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import pytest
from rich.console import Console

from actors.config import ClusterShape
from actors.monitoring.job_status import JobSnapshot
from actors.monitoring.metrics import METRICS, TASK_SECONDS
from longmem.model.source import ModelSource
from longmem.runtime.executor import STAGES, Stage
from longmem.runtime.scheduler import Limits
from longmem.testing import small_longmem
from longmem.types import Segment
from pipelines.job.state import JobState
from pipelines.perplexity.job import PerplexityJob, run_job
from pipelines.watch.export import DASHBOARD, export_monitoring

pytest_plugins = ["tests.ray_cluster"]
pytestmark = [pytest.mark.thorough, pytest.mark.ray, pytest.mark.timeout(240)]

VISIBLE_S = 30.0
"""Timeout in seconds: Ray exports every second (tests/ray_cluster.py), but the machine may be busy."""
TEXT = "Call me Ishmael. Some years ago, never mind how long precisely. " * 8

PROMETHEUS = shutil.which("prometheus")
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

Values = dict[tuple[str, str], float]
"""Values by exported name and the value of its one label (or of `le`, or empty), summed over workers."""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    small_longmem(folder).save_pretrained(folder / "checkpoint")
    return folder / "checkpoint"


def watched_job(
    checkpoint: Path, folder: Path, at: Callable[[Stage, Segment], None], monkeypatch: pytest.MonkeyPatch
) -> tuple[dict[str, Any], Path]:
    """Run a job of one good and one bad document and return its summary and folder; `at` is called before every
    task."""
    import actors.executor.ray_executor

    class Watched(actors.executor.ray_executor.RayExecutor):
        def submit(self, stage: Stage, segment: Segment) -> None:
            at(stage, segment)
            super().submit(stage, segment)

    monkeypatch.setattr(actors.executor.ray_executor, "RayExecutor", Watched)
    books = folder / "books"
    books.mkdir()
    (books / "moby.txt").write_text(TEXT)
    (books / "broken.txt").write_bytes(b"\xff\xfe\x00")
    job = PerplexityJob(
        inputs=(str(books),),
        out=folder / "out",
        model=ModelSource(str(checkpoint)),
        cluster=ClusterShape(address="local"),
        threads=1,
        limits=Limits(4, 2**30),
    )
    return run_job(job, Console(file=StringIO())), folder / "out"


def scraped() -> dict[str, Values]:
    """Return the current values of all nodes' metrics endpoints, by worker."""
    import ray

    found: dict[str, Values] = defaultdict(dict)
    for node in ray.nodes():
        address = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
        with urllib.request.urlopen(address, timeout=10) as answer:
            text = answer.read().decode()
        for name, labels, value in re.findall(r"^(ray_longmem_\w+)\{(.*)\} (\S+)$", text, re.MULTILINE):
            pairs = dict(re.findall(r'(\w+)="([^"]*)"', labels))
            label = next((pairs[each] for each in ("stage", "pool", "tier", "outcome") if each in pairs), "")
            bucket = pairs.get("le", "")
            found[pairs["WorkerId"]][f"{name}{bucket}", label] = float(value)
    return found


def scraped_when(enough: Callable[[dict[str, Values]], bool]) -> dict[str, Values]:
    deadline = monotonic() + VISIBLE_S
    while not enough(found := scraped()):
        assert monotonic() < deadline, f"not exported within {VISIBLE_S:g} s: {dict(found)}"
        sleep(0.5)
    return found


@pytest.fixture(scope="module")
def prometheus(
    ray_cluster: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[str], list[dict[str, Any]]] | None]:
    """Yield a query function of a real server that scrapes every second with the exported configuration; None without
    one."""
    import ray

    if PROMETHEUS is None:
        yield None
        return
    folder = tmp_path_factory.mktemp("prometheus")
    session = Path(ray._private.worker.global_worker.node.get_session_dir_path())
    export_monitoring(folder, str(session.parent))
    config = folder / "prometheus.yml"
    config.write_text(config.read_text().replace("10s", "1s"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"127.0.0.1:{free.getsockname()[1]}"
    flags = [f"--config.file={config}", f"--storage.tsdb.path={folder / 'data'}", f"--web.listen-address={url}"]
    server = subprocess.Popen([PROMETHEUS, *flags, "--log.level=error"], cwd=folder)

    def query(expression: str) -> list[dict[str, Any]]:
        address = f"http://{url}/api/v1/query?{urllib.parse.urlencode({'query': expression})}"
        deadline = monotonic() + 20
        while True:
            try:
                with urllib.request.urlopen(address, timeout=10) as answer:
                    return list(json.load(answer)["data"]["result"])
            except OSError:
                assert monotonic() < deadline, "Prometheus does not answer"
                assert server.poll() is None, "Prometheus has ended"
                sleep(0.2)

    yield query
    server.terminate()
    server.wait(20)


class Run:
    """One job and everything observed of it."""

    def __init__(
        self, summary: dict[str, Any], out: Path, live: list[JobSnapshot], values: Values, worker: str
    ) -> None:
        self.summary, self.out, self.live, self.values, self.worker = summary, out, live, values, worker


@pytest.fixture(scope="module")
def run(ray_cluster: None, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory, prometheus: Any) -> Run:
    from actors.monitoring.live_jobs import LiveJobs

    folder = tmp_path_factory.mktemp("job")
    live: list[JobSnapshot] = []

    def look(stage: Stage, segment: Segment) -> None:
        if stage == "score" and segment.index == 9:
            with LiveJobs("auto") as jobs:
                deadline = monotonic() + 20
                while not (found := jobs.snapshots()):
                    assert monotonic() < deadline, "the monitor knows nothing"
                    sleep(0.1)
            live.extend(found)

    before = set(scraped())
    with pytest.MonkeyPatch.context() as monkeypatch:
        summary, out = watched_job(checkpoint, folder, look, monkeypatch)

    def finished(found: dict[str, Values]) -> bool:
        return any(
            each.get(("ray_longmem_documents_total", "scored")) == 1 and each.get(("ray_longmem_jobs_running", "")) == 0
            for worker, each in found.items()
            if worker not in before
        )

    found = scraped_when(finished)
    (worker,) = set(found) - before
    return Run(summary, out, live, found[worker], worker)


def test_every_metric_of_the_table_is_exported(run: Run) -> None:
    exported = {name for name, _ in run.values}
    expected = {each.exported for each in METRICS if each.kind != "histogram"}
    assert {each for each in exported if not each.startswith(f"ray_{TASK_SECONDS}")} == expected
    assert {f"ray_{TASK_SECONDS}_count", f"ray_{TASK_SECONDS}_bucket+Inf", f"ray_{TASK_SECONDS}_bucket0.25"} <= exported


def test_counters_agree_with_the_summary(run: Run) -> None:
    stages = run.summary["stages"]
    for stage in STAGES:
        assert stages[stage]["segments"] > 10
        assert run.values["ray_longmem_segments_total", stage] == stages[stage]["segments"]
        assert run.values["ray_longmem_tokens_total", stage] == stages[stage]["tokens"]
        assert run.values["ray_longmem_busy_seconds_total", stage] == pytest.approx(stages[stage]["busy_s"], rel=1e-9)
        assert run.values[f"ray_{TASK_SECONDS}_count", stage] == stages[stage]["segments"]
    counts = run.summary["counts"]
    assert run.values["ray_longmem_documents_total", "scored"] == counts["documents"] == 1
    assert run.values["ray_longmem_documents_total", "failed"] == counts["failed_documents"] == 1
    for name in ("retries", "stalls", "failed_tasks", "lost_workers"):
        assert [run.values[f"ray_longmem_{name}_total", stage] for stage in STAGES] == [0, 0, 0]
    assert run.values["ray_longmem_bytes_total", "put"] > 0


def test_gauges_end_where_the_job_ended(run: Run) -> None:
    for name in ("lag_segments", "tokens_left", "in_flight_bytes", "eta_seconds", "documents_active", "jobs_running"):
        assert run.values[f"ray_longmem_{name}", ""] == 0, name
    assert run.values["ray_longmem_durable_tokens", ""] == run.summary["stages"]["put"]["tokens"] > 0
    assert 0 < run.values["ray_longmem_gate_mean", ""] < 1
    assert run.values["ray_longmem_object_store_limit_bytes", ""] == pytest.approx(2**28, rel=0.01)


def test_a_live_job_is_seen_over_the_cluster(run: Run) -> None:
    job = json.loads((run.out / "job.json").read_text())
    (seen,) = run.live
    assert (seen.job, seen.name, seen.state) == (job["id"], "out", "running")
    assert seen.out == str(run.out)


def test_folder_and_log_tell_the_same(run: Run) -> None:
    status = json.loads((run.out / "status.json").read_text())
    assert status["state"] == "finished"
    for stage in STAGES:
        said, counted = status["stages"][stage], run.summary["stages"][stage]
        assert {name: said[name] for name in counted} == counted
    events = [json.loads(line) for line in (run.out / "log.jsonl").read_text().splitlines()]
    assert {(each["event"], each.get("document")) for each in events} == {
        ("job_started", None),
        ("document_admitted", "moby"),
        ("document_admitted", "broken"),
        ("document_scored", "moby"),
        ("document_failed", "broken"),
        ("job_finished", None),
    }


@pytest.mark.skipif(PROMETHEUS is None, reason="no prometheus here; it is a Debian package")
def test_prometheus_answers_what_the_summary_says(run: Run, prometheus: Any) -> None:
    mine = f'{{WorkerId="{run.worker}"}}'
    deadline = monotonic() + VISIBLE_S
    while not (found := prometheus(f"sum by (stage) (ray_longmem_tokens_total{mine})")):
        assert monotonic() < deadline, "Prometheus has not scraped the run"
        sleep(0.5)
    values = {each["metric"]["stage"]: float(each["value"][1]) for each in found}
    assert values == {stage: run.summary["stages"][stage]["tokens"] for stage in STAGES}
    busy = prometheus(f"sum(ray_longmem_busy_seconds_total{mine})")
    total = sum(each["busy_s"] for each in run.summary["stages"].values())
    assert float(busy[0]["value"][1]) == pytest.approx(total, rel=1e-9)


@pytest.mark.skipif(PROMETHEUS is None, reason="no prometheus here; it is a Debian package")
def test_every_chart_has_data(run: Run, prometheus: Any, tmp_path: Path) -> None:
    """Check queries over the whole scraped time, gauges included, which end with the job."""
    export_monitoring(tmp_path, "/tmp/ray")
    dashboard = json.loads((tmp_path / DASHBOARD).read_text())
    targets = [target for panel in dashboard["panels"] for target in panel.get("targets", [])]
    expressions = {target["expr"].replace("$__rate_interval", "1m") for target in targets}
    assert len(expressions) > 25
    deadline = monotonic() + VISIBLE_S
    while empty := [each for each in expressions if not prometheus(f"last_over_time(({each})[3m:1s])")]:
        assert monotonic() < deadline, f"no data: {empty}"
        sleep(0.5)
    (rules,) = prometheus("count(count by (alertname) (ALERTS))") or [None]
    assert rules is None or float(rules["value"][1]) <= 1, "only the failed document may raise an alert"


@pytest.mark.skipif(BROWSER is None, reason="no Chromium here")
def test_the_actors_page_reads_like_the_design(run: Run, tmp_path: Path) -> None:
    import ray

    url = ray._private.worker.global_worker.node.webui_url
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]
    flags += ["--disable-background-networking", "--disable-component-update", "--virtual-time-budget=20000"]
    job = json.loads((run.out / "job.json").read_text())["id"]
    words = [f"longmem-job-{job}", f"JobMonitor(job={job}, name=out)"]
    words += ["Encoder(rank=0", "Reader(rank=0", "MemoryStore(shard=0"]
    lacking, shown = words, ""
    # the dashboard learns of actors and their names late on a busy machine
    for _ in range(4):
        with urllib.request.urlopen(f"http://{url}/logical/actors") as answer:
            known = answer.read().decode()
        page = subprocess.run(
            [str(BROWSER), *flags, f"--user-data-dir={tmp_path}", "--dump-dom", f"http://{url}/#/actors"],
            capture_output=True,
            text=True,
            check=True,
            timeout=100,
        ).stdout
        lacking = [each for each in words if each not in known]
        # the page shows ten actors, and other tests of this cluster have actors too
        shown = next((each for each in words if each in page), "")
        if not lacking and shown:
            break
    assert not lacking
    assert shown


def test_a_monitor_that_dies_neither_stops_the_job_nor_counts_twice(
    ray_cluster: None, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray
    from ray.util.state import list_actors

    import actors.monitoring.monitor_actor
    from actors.monitoring.monitor_actor import NAME
    from actors.workers.base import NAMESPACE

    def is_monitor(actor: dict[str, str]) -> bool:
        return actor["namespace"] == NAMESPACE and NAME.fullmatch(actor["name"]) is not None

    before = set(scraped())
    counted: list[JobSnapshot] = []

    def kill(stage: Stage, segment: Segment) -> None:
        if stage != "score" or counted:
            return
        (name,) = (each["name"] for each in ray.util.list_named_actors(all_namespaces=True) if is_monitor(each))
        known = ray.get(ray.get_actor(name, namespace=NAMESPACE).latest.remote())
        if known is None or known.stages["encode"].segments < 4:
            return
        filters = [("class_name", "=", "JobMonitor"), ("state", "=", "ALIVE")]
        address = ray.get_runtime_context().gcs_address
        (monitor,) = list_actors(address=address, detail=True, filters=filters)
        counted.append(known)
        os.kill(monitor.pid, signal.SIGKILL)

    monkeypatch.setattr(actors.monitoring.monitor_actor, "PUSH_S", 0.0)
    summary, _ = watched_job(checkpoint, tmp_path, kill, monkeypatch)
    assert summary["counts"]["documents"] == 1
    (last,) = counted

    def ended(found: dict[str, Values]) -> list[Values]:
        """Return the values of the monitor that received the end of the job: the second one."""
        return [
            each
            for worker, each in found.items()
            if worker not in before and each.get(("ray_longmem_jobs_running", "")) == 0
        ]

    (second,) = ended(scraped_when(lambda found: bool(ended(found))))
    for stage in STAGES:
        left = summary["stages"][stage]["segments"] - last.stages[stage].segments
        assert second["ray_longmem_segments_total", stage] <= left


def test_a_resumed_job_takes_its_name_back_from_a_dead_one(ray_cluster: None, tmp_path: Path) -> None:
    import ray

    from actors.monitoring.monitor_actor import JobMonitor, MonitorLine, actor_name
    from actors.workers.base import NAMESPACE

    left = JobMonitor.options(name=actor_name("f00"), namespace=NAMESPACE, lifetime="detached").remote("f00", "old")
    assert ray.get(left.latest.remote()) is None
    line = MonitorLine("f00", "new")
    snapshot = JobState("f00", "perplexity", tmp_path).snapshot("running")
    line.push(snapshot)
    found = ray.get_actor(actor_name("f00"), namespace=NAMESPACE)
    assert ray.get(found.latest.remote()) == snapshot
    line.close(snapshot)
