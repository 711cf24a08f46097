# SPDX-License-Identifier: Apache-2.0
"""Grafana dashboard built from a list of panels, which shows every metric of `actors.monitoring.metrics`.

Series are always summed over workers, because each monitor process creates new ones (label WorkerId).
"""

from dataclasses import dataclass
from typing import Any

TITLE = "LongMem"
UID = "longmem-jobs"
WIDTH, PANEL_WIDTH, PANEL_HEIGHT = 24, 8, 8

_RATE = "[$__rate_interval]"


@dataclass(frozen=True)
class Panel:
    """Chart with its queries, their legends, and a Grafana unit."""

    title: str
    queries: tuple[tuple[str, str], ...]
    unit: str = "short"
    help: str = ""


def _rate(metric: str, by: str = "stage") -> str:
    return f"sum by ({by}) (rate(ray_longmem_{metric}_total{_RATE}))"


def _increase(metric: str) -> str:
    return f"sum(increase(ray_longmem_{metric}_total{_RATE}))"


def _quantile(quantile: float) -> str:
    return f"histogram_quantile({quantile}, sum by (le, stage) (rate(ray_longmem_task_seconds_bucket{_RATE})))"


ROWS: dict[str, tuple[Panel, ...]] = {
    "Progress": (
        Panel("Running jobs", (("sum(ray_longmem_jobs_running)", "jobs"),)),
        Panel("Tokens per second", ((_rate("tokens"), "{{stage}}"),)),
        Panel("Segments per second", ((_rate("segments"), "{{stage}}"),)),
        Panel(
            "Documents",
            (
                ("sum by (outcome) (ray_longmem_documents_total)", "{{outcome}}"),
                ("sum(ray_longmem_documents_active)", "active"),
            ),
        ),
        Panel("Tokens left", (("sum(ray_longmem_tokens_left)", "tokens"),)),
        Panel("Time left", (("max(ray_longmem_eta_seconds)", "slowest job"),), "s"),
    ),
    "Pools": (
        Panel("Queue depth", (("sum by (pool) (ray_longmem_queue_depth)", "{{pool}}"),)),
        Panel("Readers behind encoders", (("sum(ray_longmem_lag_segments)", "segments"),)),
        Panel("Bytes in flight", (("sum(ray_longmem_in_flight_bytes)", "encoded, not done"),), "bytes"),
        Panel("Busy workers", ((_rate("busy_seconds"), "{{stage}}"),), help="Busy seconds per second"),
        Panel(
            "Mean seconds of a task",
            ((f"{_rate('busy_seconds')} / {_rate('segments')}", "{{stage}}"),),
            "s",
        ),
        Panel(
            "Quantiles of a task",
            ((_quantile(0.5), "{{stage}} p50"), (_quantile(0.95), "{{stage}} p95"), (_quantile(0.99), "{{stage}} p99")),
            "s",
        ),
    ),
    "Memory": (
        Panel("Bytes per second", ((_rate("bytes"), "{{stage}}"),), "Bps"),
        Panel("Tokens stored", (("sum(ray_longmem_durable_tokens)", "acknowledged"),)),
        Panel(
            "Store",
            (
                ("sum by (tier) (ray_longmem_store_bytes)", "{{tier}}"),
                ("max by (tier) (ray_longmem_store_limit_bytes)", "{{tier}} limit, 0 for none"),
            ),
            "bytes",
        ),
        Panel(
            "Ray's object store",
            (("max(ray_longmem_object_store_bytes)", "used"), ("max(ray_longmem_object_store_limit_bytes)", "size")),
            "bytes",
        ),
        Panel(
            "What readers take from memory",
            (("avg(ray_longmem_gate_mean)", "gate"), ("avg(ray_longmem_copy_mean)", "copy head")),
            "percentunit",
        ),
    ),
    "Trouble": (
        Panel(
            "Seconds since the last sign of life", (("time() - min(ray_longmem_heartbeat_timestamp_seconds)", ""),), "s"
        ),
        Panel("Retries", ((_rate("retries"), "{{stage}}"),)),
        Panel(
            "Stalls and lost workers",
            ((_rate("stalls"), "{{stage}} stalls"), (_rate("lost_workers"), "{{stage}} lost")),
        ),
        Panel("Failed tasks", ((_rate("failed_tasks"), "{{stage}}"),)),
        Panel(
            "Store",
            (
                (_increase("checksum_failures"), "checksum failures"),
                (_increase("duplicate_puts"), "duplicate puts"),
                (_increase("blocks_encoded_again"), "lost with a node"),
            ),
        ),
    ),
}


def dashboard(description: str) -> dict[str, Any]:
    """Return the dashboard as JSON values for import into Grafana."""
    panels: list[dict[str, Any]] = []
    y = 0
    for row, charts in ROWS.items():
        panels.append(
            {"type": "row", "title": row, "collapsed": False, "gridPos": {"x": 0, "y": y, "w": WIDTH, "h": 1}}
        )
        y += 1
        per_line = WIDTH // PANEL_WIDTH
        for index, chart in enumerate(charts):
            line, column = divmod(index, per_line)
            position = {"x": column * PANEL_WIDTH, "y": y + line * PANEL_HEIGHT, "w": PANEL_WIDTH, "h": PANEL_HEIGHT}
            panels.append(_chart(chart, position))
        y += -(-len(charts) // per_line) * PANEL_HEIGHT
    for number, panel in enumerate(panels, start=1):
        panel["id"] = number
    return {
        "uid": UID,
        "title": TITLE,
        "description": description,
        "tags": ["longmem"],
        "timezone": "browser",
        "schemaVersion": 39,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {
            "list": [{"name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus"}]
        },
        "panels": panels,
    }


def _chart(panel: Panel, position: dict[str, int]) -> dict[str, Any]:
    source = {"type": "prometheus", "uid": "${datasource}"}
    return {
        "type": "timeseries",
        "title": panel.title,
        "description": panel.help,
        "datasource": source,
        "gridPos": position,
        "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0}, "overrides": []},
        "options": {
            "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True, "calcs": []},
            "tooltip": {"mode": "multi", "sort": "desc"},
        },
        "targets": [
            {"refId": chr(ord("A") + index), "datasource": source, "expr": expression, "legendFormat": legend}
            for index, (expression, legend) in enumerate(panel.queries)
        ],
    }
