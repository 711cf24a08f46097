# SPDX-License-Identifier: Apache-2.0
"""Backlog hints that a job gives its executor, and errors that end a job instead of failing a document."""

from collections import Counter
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

import longmem.runtime.scheduler
import pipelines.command.options
import pipelines.perplexity.job
from longmem.errors import ClusterError, ConfigError
from longmem.model.source import ModelSource
from longmem.runtime.executor import AbstractExecutor, Completion, Stage
from longmem.runtime.inline_executor import InlineExecutor
from longmem.runtime.scheduler import Limits, SegmentScheduler
from longmem.store.in_memory import InMemoryStore
from longmem.testing import small_longmem
from longmem.types import Segment
from pipelines.perplexity.job import PerplexityJob, run_job
from pipelines.perplexity.spec import PerplexitySpec
from tests.texts import prose


class Told(InlineExecutor):
    """Executor that records the backlog at each submission for encoding."""

    def __init__(self, job: PerplexityJob) -> None:
        super().__init__(job.model.open(), InMemoryStore())
        self.unsubmitted_segments: int | None = -1
        self.unscored_segments = -1
        self.left: list[int | None] = []
        self.unread: list[int] = []
        self.truly_unread: list[int] = []
        self._num_ended: Counter[Stage] = Counter()

    def set_backlog(self, unscored_segments: int, unsubmitted_segments: int | None) -> None:
        self.unscored_segments, self.unsubmitted_segments = unscored_segments, unsubmitted_segments

    def submit(self, stage: Stage, segment: Segment) -> None:
        if stage == "encode":
            self.left.append(self.unsubmitted_segments)
            self.unread.append(self.unscored_segments)
            self.truly_unread.append(self._num_ended["encode"] - self._num_ended["score"])
        super().submit(stage, segment)

    def wait(self, timeout_s: float) -> list[Completion]:
        completions = super().wait(timeout_s)
        self._num_ended.update(each.stage for each in completions)
        return completions


def job_of(folder: Path) -> PerplexityJob:
    """Return a job of five short documents in this process."""
    small_longmem(folder / "backbone").save_pretrained(folder / "model")
    texts = folder / "texts"
    texts.mkdir()
    for number in range(5):
        (texts / f"{number}.txt").write_text(prose(number, 60), "utf-8")
    return PerplexityJob(
        inputs=(str(texts),),
        out=folder / "out",
        model=ModelSource(str(folder / "model")),
        cluster=None,
        threads=1,
        limits=Limits(4, 2**30),
    )


class OnFullDisk(InlineExecutor):
    """Executor whose workers cannot record the tasks that they run."""

    def wait(self, timeout_s: float) -> list[Completion]:
        error = ClusterError("cannot record the running task: No space left on device")
        return [replace(each, result=None, error=error) for each in super().wait(timeout_s)]


def test_an_error_of_the_cluster_ends_the_job_and_fails_no_document(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = job_of(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(
            pipelines.perplexity.job, "open_executor", lambda job, _tell: OnFullDisk(job.model.open(), InMemoryStore())
        )
        with pytest.raises(ClusterError, match="No space left"):
            run_job(job, Console(file=StringIO()))
    summary = run_job(replace(job, resume=True), Console(file=StringIO()))
    assert (summary["failures"], summary["counts"]["documents"]) == ([], 5)


def test_run_backlog_is_known_once_all_documents_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[Told] = []

    def opening(job: PerplexityJob, _tell: object) -> AbstractExecutor:
        opened.append(Told(job))
        return opened[-1]

    monkeypatch.setattr(pipelines.perplexity.job, "open_executor", opening)
    summary = run_job(job_of(tmp_path), Console(file=StringIO()))
    assert summary["failures"] == []
    (executor,) = opened
    num_segments = len(executor.left)
    foreseen = [left for left in executor.left if left is not None]
    assert executor.left[0] is None, "documents are still to come"
    assert executor.left[num_segments - len(foreseen) :] == foreseen
    assert foreseen == list(range(len(foreseen) - 1, -1, -1))
    assert foreseen
    assert executor.unread == executor.truly_unread
    assert max(executor.unread) > 0


@pytest.mark.parametrize(("limits_given", "segments"), [(True, 16), (False, 4)])
def test_a_default_limit_is_lower_for_large_segments(
    limits_given: bool, segments: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Check it with every segment a large one."""
    monkeypatch.setattr(longmem.runtime.scheduler, "ENOUGH_BYTES", 1)
    used: list[Limits] = []

    class Watched(SegmentScheduler):
        def __init__(self, limits: Limits, *arguments: Any, **named: Any) -> None:
            used.append(limits)
            super().__init__(limits, *arguments, **named)

    monkeypatch.setattr(pipelines.perplexity.job, "SegmentScheduler", Watched)
    job = replace(job_of(tmp_path), limits=Limits(16, 2**30), limits_given=limits_given)
    assert run_job(job, Console(file=StringIO()))["failures"] == []
    assert used == [Limits(segments, 2**30)]


@pytest.mark.parametrize(
    ("options", "given"),
    [({}, False), ({"max_in_flight_segments": 32}, True), ({"max_in_flight_bytes": 2**32}, True)],
)
def test_a_limit_that_is_given_stays(options: dict[str, int], given: bool, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a text", "utf-8")
    job = PerplexitySpec(address="none", inputs=(str(tmp_path / "a.txt"),), **options).job(Console(file=StringIO()))
    assert job.limits_given is given


@pytest.mark.parametrize("write_memory", [True, False])
def test_puts_are_expected_where_there_will_be_some(
    write_memory: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    called: list[str] = []
    monkeypatch.setattr(InlineExecutor, "expect_puts", lambda _executor: called.append("puts"))
    monkeypatch.setattr(
        InlineExecutor, "tokenizer", lambda executor: called.append("tokenizer") or executor._model.tokenizer
    )
    job = job_of(tmp_path)
    model = replace(job.model, settings={"memory_tokens": 0}) if not write_memory else job.model
    run_job(replace(job, model=model, write_memory=write_memory), Console(file=StringIO()))
    assert called[: 1 + write_memory] == (["puts"] if write_memory else []) + ["tokenizer"]


@pytest.mark.parametrize(
    ("options", "cores", "workers", "threads"),
    [
        ({}, 2, 2, 1),
        ({}, 1, 1, 1),
        ({}, 16, 4, 4),
        ({"threads": 2}, 4, 1, 2),
        ({"workers": 3}, 8, 3, 2),
        ({"workers": 2, "threads": 4}, 8, 2, 4),
        ({"one_pass": True}, 4, 1, 4),
    ],
)
def test_workers_and_threads_in_one_process(
    options: dict[str, Any], cores: int, workers: int, threads: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipelines.command.options, "num_cores", lambda: cores)
    (tmp_path / "a.txt").write_text("a text", "utf-8")
    job = PerplexitySpec(address="none", inputs=(str(tmp_path / "a.txt"),), **options).job(Console(file=StringIO()))
    assert (job.workers, job.threads) == (workers, threads)


def test_workers_of_one_process_are_refused_on_ray(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a text", "utf-8")
    spec = PerplexitySpec(address="local", workers=2, inputs=(str(tmp_path / "a.txt"),))
    with pytest.raises(ConfigError, match=r"^--workers 2 is for jobs in one process: add --address none, or give"):
        spec.job(Console(file=StringIO()))


@pytest.mark.parametrize(
    ("workers", "threads", "begun", "expected"), [(2, 1, 2, (1, 2)), (1, 4, 1, (1, 1)), (4, 2, 1, (4, 1))]
)
def test_a_resumed_job_keeps_its_threads_and_takes_no_more_of_the_machine(
    workers: int, threads: int, begun: int, expected: tuple[int, int], tmp_path: Path
) -> None:
    job = replace(job_of(tmp_path), workers=workers, threads=threads).with_threads(begun)
    assert (job.workers, job.threads) == expected
