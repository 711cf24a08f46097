# SPDX-License-Identifier: Apache-2.0
"""All metrics that LongMem exports, and their values in a snapshot.

Sums are counters, including seconds: Ray rebuilds the sum of a histogram from bucket midpoints, so a mean must be
`busy_seconds / segments` of two counters. Levels are gauges. The histogram serves quantiles only. Labels have few
values and never name a document. Ray exports a name as `ray_<name>`, and a counter as `ray_<name>_total`.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from actors.monitoring.job_status import JobSnapshot
from longmem.stages import STAGES, Stage

Kind = Literal["counter", "gauge", "histogram"]
Series = tuple[str, tuple[tuple[str, str], ...]]
"""Name of a metric and its labels."""

POOLS: dict[Stage, str] = {"encode": "encoders", "put": "stores", "score": "readers"}


@dataclass(frozen=True)
class Metric:
    """Name, kind and labels of one metric."""

    name: str
    kind: Kind
    description: str
    labels: tuple[str, ...] = ()
    boundaries: tuple[float, ...] = ()
    """Upper bounds of a histogram's buckets."""

    @property
    def exported(self) -> str:
        """Name in Prometheus; for a histogram, without `_bucket` or `_count`."""
        return f"ray_{self.name}_total" if self.kind == "counter" else f"ray_{self.name}"


TASK_SECONDS = "longmem_task_seconds"
OBJECT_STORE_BYTES = "longmem_object_store_bytes"
OBJECT_STORE_LIMIT_BYTES = "longmem_object_store_limit_bytes"

METRICS: tuple[Metric, ...] = (
    Metric("longmem_segments", "counter", "Segments that a stage completed", ("stage",)),
    Metric("longmem_tokens", "counter", "Tokens of them", ("stage",)),
    Metric("longmem_bytes", "counter", "Bytes that were encoded, and that the store acknowledged", ("stage",)),
    Metric("longmem_busy_seconds", "counter", "Seconds that workers of a stage computed", ("stage",)),
    Metric("longmem_failed_tasks", "counter", "Tasks that ended with an error", ("stage",)),
    Metric("longmem_retries", "counter", "Tasks that were given to another worker", ("stage",)),
    Metric("longmem_stalls", "counter", "Times that a worker was silent for too long", ("stage",)),
    Metric("longmem_lost_workers", "counter", "Workers that died", ("stage",)),
    Metric("longmem_documents", "counter", "Documents that ended", ("outcome",)),
    Metric("longmem_checksum_failures", "counter", "Stored or read blocks that were damaged"),
    Metric("longmem_duplicate_puts", "counter", "Blocks that the store already held"),
    Metric("longmem_blocks_encoded_again", "counter", "Blocks that were lost with a node, and encoded again"),
    Metric(
        TASK_SECONDS,
        "histogram",
        "Seconds of one task; for quantiles only, its sum is an estimate",
        ("stage",),
        (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 60.0, 300.0),
    ),
    Metric("longmem_jobs_running", "gauge", "1 while a job runs, 0 once it has ended"),
    Metric("longmem_heartbeat_timestamp_seconds", "gauge", "Unix time of the job's last sign of life"),
    Metric("longmem_documents_active", "gauge", "Documents admitted and not ended"),
    Metric("longmem_queue_depth", "gauge", "Tasks that run or could run now", ("pool",)),
    Metric("longmem_in_flight_bytes", "gauge", "Bytes of encoded segments that wait for the store or a reader"),
    Metric("longmem_lag_segments", "gauge", "Segments encoded and not scored yet"),
    Metric("longmem_durable_tokens", "gauge", "Tokens whose blocks the store has acknowledged since this run began"),
    Metric("longmem_tokens_left", "gauge", "Tokens of admitted documents that are not scored yet"),
    Metric("longmem_eta_seconds", "gauge", "Time left for them; absent before the first segment is scored"),
    Metric("longmem_gate_mean", "gauge", "Mean gate of the last segments; absent without a memory"),
    Metric("longmem_copy_mean", "gauge", "Mean share of the copy head of the last segments; absent without a memory"),
    Metric("longmem_store_bytes", "gauge", "Bytes of blocks held for this job's documents", ("tier",)),
    Metric("longmem_store_limit_bytes", "gauge", "Quota of the store; 0 if there is none", ("tier",)),
    Metric(OBJECT_STORE_BYTES, "gauge", "Bytes used in Ray's object store, of the whole cluster"),
    Metric(OBJECT_STORE_LIMIT_BYTES, "gauge", "Size of Ray's object store, of the whole cluster"),
)


def sums(snapshot: JobSnapshot) -> dict[Series, float]:
    """Return the value of every counter."""
    values: dict[Series, float] = {}
    for stage in STAGES:
        each = snapshot.stages[stage]
        for name, value in (
            ("longmem_segments", each.segments),
            ("longmem_tokens", each.tokens),
            ("longmem_bytes", each.num_bytes),
            ("longmem_busy_seconds", each.busy_s),
            ("longmem_failed_tasks", each.failed_tasks),
            ("longmem_retries", each.retries),
            ("longmem_stalls", each.stalls),
            ("longmem_lost_workers", each.lost_workers),
        ):
            values[name, (("stage", stage),)] = value
    values["longmem_documents", (("outcome", "scored"),)] = snapshot.scored_documents
    values["longmem_documents", (("outcome", "failed"),)] = snapshot.failed_documents
    values["longmem_checksum_failures", ()] = snapshot.checksum_failures
    values["longmem_duplicate_puts", ()] = snapshot.duplicate_puts
    values["longmem_blocks_encoded_again", ()] = snapshot.blocks_encoded_again
    return values


def increments(snapshot: JobSnapshot, since: JobSnapshot | None) -> dict[Series, float]:
    """Return the growth of every counter since an earlier snapshot of the same run (None: since its start)."""
    before: Mapping[Series, float] = {} if since is None else sums(since)
    grown = {series: value - before.get(series, 0) for series, value in sums(snapshot).items()}
    assert all(value >= 0 for value in grown.values()), f"a sum has shrunk: {grown}"
    return grown


def levels(snapshot: JobSnapshot) -> Iterator[tuple[Series, float]]:
    """Yield the value of every gauge that a snapshot holds."""
    ended = snapshot.scored_documents + snapshot.failed_documents
    yield ("longmem_jobs_running", ()), float(snapshot.state == "running")
    yield ("longmem_heartbeat_timestamp_seconds", ()), snapshot.updated
    yield ("longmem_documents_active", ()), snapshot.admitted_documents - ended
    for stage, pool in POOLS.items():
        yield ("longmem_queue_depth", (("pool", pool),)), snapshot.stages[stage].queue_depth
    yield ("longmem_in_flight_bytes", ()), snapshot.in_flight_bytes
    yield ("longmem_lag_segments", ()), snapshot.lag_segments
    yield ("longmem_durable_tokens", ()), snapshot.stages["put"].tokens
    yield ("longmem_tokens_left", ()), snapshot.tokens_left
    yield ("longmem_store_bytes", (("tier", "disk"),)), snapshot.store_bytes
    yield ("longmem_store_limit_bytes", (("tier", "disk"),)), snapshot.store_limit_bytes or 0
    for name, value in (
        ("longmem_eta_seconds", snapshot.eta_s),
        ("longmem_gate_mean", snapshot.gate_mean),
        ("longmem_copy_mean", snapshot.copy_mean),
    ):
        if value is not None:
            yield (name, ()), value
