# SPDX-License-Identifier: Apache-2.0
"""Snapshots of a job's state after various reports."""

import json
from pathlib import Path

import numpy as np
import pytest

from actors.monitoring.job_status import JobSnapshot
from longmem.errors import CorruptionError, DocumentError, LongMemError, OutputError
from longmem.runtime.executor import Completion, EncodeReceipt, EventKind, ExecutorEvent, Stage
from longmem.types import DocumentKey, PutReceipt, RetrievalStats, Segment, SegmentScore
from pipelines.job.state import RECENT_FAILURES, JobState

KEY = DocumentKey("job-1", "moby")


class Clock:
    time = 1000.0

    def __call__(self) -> float:
        return self.time


def segment(index: int, tokens: int = 8) -> Segment:
    return Segment(KEY, index, index * tokens, np.zeros(tokens, np.int32), np.zeros(tokens, np.int32))


def ended(stage: Stage, index: int, busy_s: float = 0.5, error: LongMemError | None = None) -> Completion:
    results = {
        "encode": EncodeReceipt(np.zeros(8, np.float32), 700),
        "put": PutReceipt(KEY, index, 400, duplicate=index == 1),
        "score": SegmentScore(
            KEY,
            index,
            np.zeros(8, np.float32),
            RetrievalStats(8 * index, 0.25 * index, 0.1 * index, 0.0, 0, np.zeros(3, np.int64), "0"),
        ),
    }
    return Completion(stage, segment(index), None if error else results[stage], error, busy_s)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def state(clock: Clock, tmp_path: Path) -> JobState:
    return JobState("1", "perplexity", tmp_path / "out", store_limit_bytes=1000, clock=clock, now=clock)


def test_a_new_job_has_done_nothing(state: JobState, tmp_path: Path) -> None:
    snapshot = state.snapshot("running")
    assert (snapshot.job, snapshot.name, snapshot.out) == ("1", "out", str(tmp_path / "out"))
    assert snapshot.eta_s is snapshot.gate_mean is snapshot.copy_mean is snapshot.total_documents is None
    assert snapshot.stages["score"].tokens == snapshot.store_bytes == 0


def test_stages_are_summed(state: JobState, clock: Clock) -> None:
    state.admitted("moby", 32, 4)
    clock.time += 2
    for index in range(3):
        for stage in ("encode", "put", "score")[: 3 - (index == 2)]:
            state.task_ended(ended(stage, index))
    state.levels({"encode": 5, "put": 1, "score": 2}, 2100, 3)
    snapshot = state.snapshot("running")
    encode, put, score = (snapshot.stages[stage] for stage in ("encode", "put", "score"))
    assert (encode.segments, encode.tokens, encode.num_bytes, encode.busy_s) == (3, 24, 2100, 1.5)
    assert (put.segments, put.num_bytes, put.queue_depth) == (3, 1200, 1)
    assert (score.segments, score.tokens, score.queue_depth, score.tokens_per_s) == (2, 16, 2, 8.0)
    assert (snapshot.in_flight_bytes, snapshot.lag_segments, snapshot.duplicate_puts) == (2100, 3, 1)
    assert snapshot.tokens_left == 16
    assert snapshot.eta_s == pytest.approx(2.0), "16 tokens took 2 s, and 16 are left"
    assert snapshot.store_bytes == 1200


def test_a_block_takes_room_once_and_until_it_is_removed(state: JobState) -> None:
    state.admitted("moby", 32, 4)
    state.found_stored("moby", {0: 400, 1: 400})
    for index in (1, 2, 3):
        state.task_ended(ended("put", index))
    assert state.snapshot("running").store_bytes == 1600
    state.trimmed("moby", 3)
    assert state.snapshot("running").store_bytes == 400
    state.document_ended("moby", None, kept=False)
    assert state.snapshot("running").store_bytes == 0


def test_only_segments_with_a_memory_tell_of_the_gate(state: JobState) -> None:
    state.admitted("moby", 32, 4)
    state.task_ended(ended("score", 0))
    assert state.snapshot("running").gate_mean is None
    for index in (1, 3):
        state.task_ended(ended("score", index))
    assert state.snapshot("running").gate_mean == pytest.approx(0.5)
    assert state.snapshot("running").copy_mean == pytest.approx(0.2)


def test_documents_come_and_go(state: JobState) -> None:
    for name in ("moby", "emma", "jane"):
        state.admitted(name, 100, 10)
        state.found_stored(name, {0: 20, 1: 30})
    state.document_ended("moby", None, kept=True)
    state.document_ended("emma", CorruptionError("segment 3 is damaged"), kept=False)
    snapshot = state.snapshot("failed")
    assert (snapshot.admitted_documents, snapshot.scored_documents, snapshot.failed_documents) == (3, 1, 1)
    assert snapshot.tokens_left == 100
    assert snapshot.store_bytes == 100
    assert snapshot.checksum_failures == 1
    assert snapshot.recent_failures == ("emma: segment 3 is damaged",)


def test_failures_are_counted_and_the_last_ones_named(state: JobState) -> None:
    for index in range(RECENT_FAILURES + 5):
        state.task_ended(ended("put", 0, error=DocumentError("no")))
        state.document_ended(str(index), DocumentError("s3://me:secret@bucket/x is not text"), kept=False)
    snapshot = state.snapshot("running")
    assert snapshot.stages["put"].failed_tasks == snapshot.failed_documents == RECENT_FAILURES + 5
    assert snapshot.stages["put"].segments == snapshot.checksum_failures == 0
    assert len(snapshot.recent_failures) == RECENT_FAILURES
    assert snapshot.recent_failures[-1] == "14: s3://***@bucket/x is not text"


def test_worker_events_are_counted_by_kind(state: JobState) -> None:
    kinds: list[EventKind] = ["retry", "encoded again", "stalled", "killed", "lost", "back", "quarantined"]
    for kind in kinds:
        state.worker_event(ExecutorEvent(kind, "…", stage="encode"))
    snapshot = state.snapshot("running")
    encode = snapshot.stages["encode"]
    assert (encode.retries, encode.stalls, encode.lost_workers, snapshot.blocks_encoded_again) == (2, 1, 1, 1)


def test_a_snapshot_survives_json(state: JobState) -> None:
    state.admitted("moby", 32, 4)
    state.task_ended(ended("score", 1))
    state.document_ended("emma", DocumentError("no"), kept=False)
    snapshot = state.snapshot("interrupted")
    assert JobSnapshot.from_json(json.loads(json.dumps(snapshot.to_json(), allow_nan=False))) == snapshot


@pytest.mark.parametrize("change", [{"state": "asleep"}, {"stages": {}}, {"unknown": 1}, {"stages": None}])
def test_the_status_of_another_version_is_refused(state: JobState, change: dict[str, object]) -> None:
    with pytest.raises(OutputError, match=r"version|state"):
        JobSnapshot.from_json({**state.snapshot("running").to_json(), **change})
