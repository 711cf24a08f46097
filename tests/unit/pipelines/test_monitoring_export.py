# SPDX-License-Identifier: Apache-2.0
"""Files for Prometheus and Grafana: they use existing metrics, alerts fire, no foreign file is overwritten."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from actors.monitoring.metrics import METRICS
from pipelines.cli import app
from pipelines.watch.export import DASHBOARD, export_monitoring, monitoring_files

PROMTOOL = shutil.which("promtool")
needs_promtool = pytest.mark.skipif(PROMTOOL is None, reason="no promtool here; it is in the Debian package prometheus")

NAMES = {f"{each.exported}{'_bucket' if each.kind == 'histogram' else ''}": each for each in METRICS}


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    export_monitoring(tmp_path / "monitoring", "/tmp/ray")
    return tmp_path / "monitoring"


def panels(folder: Path) -> list[dict[str, Any]]:
    return [each for each in json.loads((folder / DASHBOARD).read_text())["panels"] if each["type"] != "row"]


def expressions(folder: Path) -> list[str]:
    return [target["expr"] for panel in panels(folder) for target in panel["targets"]]


def used(text: str) -> set[str]:
    return set(re.findall(r"ray_longmem_\w+", text))


def test_every_metric_is_on_the_dashboard_and_nothing_else(exported: Path) -> None:
    assert used(" ".join(expressions(exported))) == set(NAMES)


def test_alerts_use_metrics_that_exist(exported: Path) -> None:
    found = used((exported / "longmem-alerts.yml").read_text())
    assert found <= set(NAMES)
    assert {"ray_longmem_checksum_failures_total", "ray_longmem_heartbeat_timestamp_seconds"} <= found


def test_charts_sum_over_workers(exported: Path) -> None:
    """Check that charts sum over monitor processes, each of which has its own series."""
    for expression in expressions(exported):
        assert re.search(r"\b(sum|max|min|avg)\b", expression), expression
        for by in re.findall(r"by \(([^)]*)\)", expression):
            for label in by.split(", "):
                assert label == "le" or label in {each for metric in METRICS for each in metric.labels}


def test_panels_lie_side_by_side(exported: Path) -> None:
    places = [each["gridPos"] for each in json.loads((exported / DASHBOARD).read_text())["panels"]]
    cells = [
        (x, y)
        for place in places
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(cells) == len(set(cells))
    assert max(x for x, _ in cells) < 24


def test_the_command_writes_what_it_names_and_may_write_again(tmp_path: Path) -> None:
    folder = tmp_path / "monitoring"
    for _ in range(2):
        result = CliRunner().invoke(app, ["monitoring", "export", str(folder), "--ray-folder", "/data/ray"])
        assert result.exit_code == 0, result.stderr
        assert sorted(result.stdout.split()) == sorted(str(folder / name) for name in monitoring_files(folder, ""))
    assert "/data/ray/session_latest/prom_metrics" in (folder / "prometheus.yml").read_text()
    for path in folder.rglob("*.*"):
        assert not re.search(r"\$(marker|folder|ray_folder)", path.read_text())
    assert "{{ $labels.stage }}" in (folder / "longmem-alerts.yml").read_text()


def test_foreign_files_are_left_alone(exported: Path) -> None:
    (exported / DASHBOARD).write_text("mine")
    (exported / "README.md").unlink()
    result = CliRunner().invoke(app, ["monitoring", "export", str(exported)])
    assert result.exit_code == 2
    assert "not written by longmem" in result.stderr.replace("\n", " ")
    assert (exported / DASHBOARD).read_text() == "mine"
    assert not (exported / "README.md").exists(), "all or nothing"


def test_dashboard_passes_grafanas_own_models_without_loss(exported: Path) -> None:
    """Decode and encode the dashboard with the typed models that Grafana generates from its schema."""
    reason = "no grafana-foundation-sdk here; it is on PyPI"
    encoder = pytest.importorskip("grafana_foundation_sdk.cog.encoder", reason=reason)
    plugins = pytest.importorskip("grafana_foundation_sdk.cog.plugins", reason=reason)
    models = pytest.importorskip("grafana_foundation_sdk.models.dashboard", reason=reason)
    plugins.register_default_plugins()
    given = json.loads((exported / DASHBOARD).read_text())
    decoded = models.Dashboard.from_json(given)
    understood = json.loads(encoder.JSONEncoder().encode(decoded))
    assert list(lost(given, understood)) == []
    # options have their own type for each kind of chart, which would fill in a field that is missing
    assert [each["options"] for each in panels(exported)] == [
        each["options"] for each in understood["panels"] if each["type"] != "row"
    ]
    kinds = {type(each.options).__module__ for each in decoded.panels if each.type_val != "row"}
    assert kinds == {"grafana_foundation_sdk.models.timeseries"}
    queries = {type(query).__module__ for each in decoded.panels for query in getattr(each, "targets", None) or []}
    assert queries == {"grafana_foundation_sdk.models.prometheus"}


def lost(given: Any, understood: Any, place: str = "") -> Iterator[str]:
    """Yield the places where `understood` lacks a value of `given`, or has another."""
    if isinstance(given, dict) and isinstance(understood, dict):
        for name, value in given.items():
            yield from lost(value, understood.get(name), f"{place}.{name}")
    elif isinstance(given, list) and isinstance(understood, list) and len(given) == len(understood):
        for index, (one, other) in enumerate(zip(given, understood, strict=True)):
            yield from lost(one, other, f"{place}[{index}]")
    elif given != understood:
        yield f"{place}: {given!r} became {understood!r}"


@needs_promtool
def test_promtool_accepts_rules_and_configuration(exported: Path) -> None:
    for arguments in (["check", "rules", "longmem-alerts.yml"], ["check", "config", "--syntax-only", "prometheus.yml"]):
        done = subprocess.run([str(PROMTOOL), *arguments], cwd=exported, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stdout + done.stderr


STEP, STEPS = "30s", 60  # half an hour
HEALTHY = {
    "ray_longmem_jobs_running": "1x60",
    "ray_longmem_heartbeat_timestamp_seconds": "0+30x60",
    "ray_longmem_lag_segments": "4x60",
    "ray_longmem_segments_total": "0+5x60",
    "ray_longmem_checksum_failures_total": "0x60",
    "ray_longmem_blocks_encoded_again_total": "0x60",
    "ray_longmem_documents_total": "0x60",
    "ray_longmem_failed_tasks_total": "0x60",
    "ray_longmem_retries_total": "0+1x5 5x55",
    "ray_longmem_stalls_total": "0x60",
    "ray_longmem_lost_workers_total": "0x30 1x30",
    "ray_longmem_store_bytes": "50x60",
    "ray_longmem_store_limit_bytes": "100x60",
    "ray_longmem_object_store_bytes": "50x60",
    "ray_longmem_object_store_limit_bytes": "100x60",
    "up": "1x60",
}
"""Series of a healthy job, with a few retries and a lost worker, in `promtool`'s notation."""

SICK = {
    "LongMemJobSilent": {"ray_longmem_heartbeat_timestamp_seconds": "0+30x30 900x30"},
    "LongMemJobVanished": {
        "ray_longmem_jobs_running": "1x50 stale _x9",
        "ray_longmem_segments_total": "0+5x50 stale _x9",
    },
    "LongMemJobStalled": {"ray_longmem_segments_total": "0+5x20 100x40"},
    "LongMemReaderLagGrowing": {"ray_longmem_lag_segments": "0+1x60"},
    "LongMemChecksumFailure": {"ray_longmem_checksum_failures_total": "0x50 1x10"},
    "LongMemBlocksLost": {"ray_longmem_blocks_encoded_again_total": "0x50 1x10"},
    "LongMemStoreNearQuota": {"ray_longmem_store_bytes": "95x60"},
    "LongMemObjectStoreNearlyFull": {"ray_longmem_object_store_bytes": "95x60"},
    "LongMemDocumentsFailed": {"ray_longmem_documents_total": "0x50 1x10"},
    "LongMemTasksFailing": {"ray_longmem_failed_tasks_total": "0x50 8x10"},
    "LongMemRetryStorm": {"ray_longmem_retries_total": "0+1x60"},
    "LongMemWorkersStall": {"ray_longmem_stalls_total": "0x50 6x10"},
    "": {},
    "no quota": {"ray_longmem_store_limit_bytes": "0x60"},
    "ended": {"ray_longmem_jobs_running": "1x40 0x4 stale _x15", "ray_longmem_segments_total": "0+5x40 stale _x19"},
}
"""Differences from the healthy job, by the one alert that must fire. The last three fire none."""

LABELS = {"ray_longmem_documents_total": ', outcome="failed"', "up": ""}
NO_WORKER = {"up"}


@needs_promtool
@pytest.mark.parametrize("alert", SICK)
def test_the_right_alert_fires(exported: Path, alert: str) -> None:
    """Check that each alert fires for its fault alone, and none for a healthy job."""
    series = []
    for name, values in {**HEALTHY, **SICK[alert]}.items():
        labels = 'instance="a", job="ray"' + ("" if name in NO_WORKER else ', WorkerId="w", stage="score"')
        series.append({"series": f"{name}{{{labels}{LABELS.get(name, '')}}}", "values": values})
    rules = re.findall(r"alert: (\w+)", (exported / "longmem-alerts.yml").read_text())
    assert set(rules) == {name for name in SICK if name.startswith("LongMem")}
    expression = 'count by (alertname) (ALERTS{alertstate="firing"})'
    fired = [{"labels": f'{{alertname="{alert}"}}', "value": 1}] if alert in rules else []
    tests = {
        "rule_files": ["longmem-alerts.yml"],
        "evaluation_interval": STEP,
        "tests": [
            {
                "interval": STEP,
                "input_series": series,
                "promql_expr_test": [{"expr": expression, "eval_time": "29m", "exp_samples": fired}],
            }
        ],
    }
    (exported / "tests.yml").write_text(json.dumps(tests))  # YAML, too
    done = subprocess.run(
        [str(PROMTOOL), "test", "rules", "tests.yml"], cwd=exported, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_export_prints_paths_as_json(tmp_path: Path) -> None:
    folder = tmp_path / "monitoring"
    result = CliRunner().invoke(app, ["monitoring", "export", str(folder), "--json"], prog_name="longmem")
    assert result.exit_code == 0, result.output
    assert [Path(name).is_file() for name in json.loads(result.stdout)["written"]] == [True] * 4
