# SPDX-License-Identifier: Apache-2.0
"""Backlog hints that a job gives its executor, and errors that end a job instead of failing a document."""

from collections import Counter
from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

import pipelines.perplexity.job
from longmem.errors import ClusterError
from longmem.model.source import ModelSource
from longmem.runtime.executor import AbstractExecutor, Completion, Stage
from longmem.runtime.inline_executor import InlineExecutor
from longmem.runtime.scheduler import Limits
from longmem.store.in_memory import InMemoryStore
from longmem.testing import small_longmem
from longmem.types import Segment
from pipelines.perplexity.job import PerplexityJob, run_job
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
        self._ended: Counter[Stage] = Counter()

    def set_backlog(self, unscored_segments: int, unsubmitted_segments: int | None) -> None:
        self.unscored_segments, self.unsubmitted_segments = unscored_segments, unsubmitted_segments

    def submit(self, stage: Stage, segment: Segment) -> None:
        if stage == "encode":
            self.left.append(self.unsubmitted_segments)
            self.unread.append(self.unscored_segments)
            self.truly_unread.append(self._ended["encode"] - self._ended["score"])
        super().submit(stage, segment)

    def wait(self, timeout_s: float) -> list[Completion]:
        completions = super().wait(timeout_s)
        self._ended.update(each.stage for each in completions)
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
