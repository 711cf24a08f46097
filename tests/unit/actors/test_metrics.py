# SPDX-License-Identifier: Apache-2.0
"""The table of metrics, and totals that are exported as increments."""

from dataclasses import replace
from pathlib import Path

import pytest

from actors.monitoring.job_status import JobSnapshot
from actors.monitoring.metrics import (
    METRICS,
    OBJECT_STORE_BYTES,
    OBJECT_STORE_LIMIT_BYTES,
    TASK_SECONDS,
    increments,
    levels,
    sums,
)
from pipelines.job.state import JobState

TABLE = {each.name: each for each in METRICS}


@pytest.fixture
def empty(tmp_path: Path) -> JobSnapshot:
    return JobState("1", "perplexity", tmp_path).snapshot("running")


def grown(snapshot: JobSnapshot, segments: int) -> JobSnapshot:
    score = replace(snapshot.stages["score"], segments=segments, busy_s=0.1 * segments)
    return replace(snapshot, stages={**snapshot.stages, "score": score}, gate_mean=0.5, copy_mean=0.1, eta_s=1.0)


def test_names_follow_the_rules() -> None:
    assert len(TABLE) == len(METRICS)
    for metric in METRICS:
        assert metric.name.startswith("longmem_")
        assert not metric.name.endswith("_total"), "Ray appends it"
        assert set(metric.labels) <= {"pool", "stage", "tier", "outcome"}
        assert bool(metric.boundaries) == (metric.kind == "histogram")
        assert metric.description


def test_a_snapshot_speaks_to_every_metric_with_its_labels(empty: JobSnapshot) -> None:
    snapshot = grown(empty, 1)
    series = {"counter": list(sums(snapshot)), "gauge": [each for each, _ in levels(snapshot)]}
    for kind, found in series.items():
        for name, labels in found:
            assert TABLE[name].kind == kind
            assert TABLE[name].labels == tuple(label for label, _ in labels)
    spoken = {name for found in series.values() for name, _ in found}
    assert spoken | {TASK_SECONDS, OBJECT_STORE_BYTES, OBJECT_STORE_LIMIT_BYTES} == set(TABLE)


def test_what_is_unknown_is_absent(empty: JobSnapshot) -> None:
    names = {name for (name, _), _ in levels(empty)}
    assert names.isdisjoint({"longmem_gate_mean", "longmem_copy_mean", "longmem_eta_seconds"})


def test_differences_add_up_to_the_whole(empty: JobSnapshot) -> None:
    key = ("longmem_segments", (("stage", "score"),))
    total = 0.0
    since = None
    for segments in (0, 3, 3, 10):
        snapshot = grown(empty, segments)
        total += increments(snapshot, since)[key]
        since = snapshot
    assert total == 10


def test_a_sum_that_shrinks_is_a_bug(empty: JobSnapshot) -> None:
    with pytest.raises(AssertionError, match="shrunk"):
        increments(empty, grown(empty, 1))
