"""What a job tells its executor beside tasks."""

from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

import pipelines.job
from longmem.executor import AbstractExecutor, InlineExecutor, Stage
from longmem.memory.in_memory import InMemoryStore
from longmem.model_source import ModelSource
from longmem.scheduler import Limits
from longmem.testing import small_longmem
from longmem.types import Segment
from pipelines.job import PerplexityJob, run_job
from tests.texts import prose


class Told(InlineExecutor):
    """Remembers what was foreseen when a segment was submitted for encoding; None before anything was."""

    def __init__(self, job: PerplexityJob) -> None:
        super().__init__(job.model.open(), InMemoryStore())
        self.num_left: int | None = None
        self.left: list[int | None] = []

    def foresee(self, num_left: int) -> None:
        self.num_left = num_left

    def submit(self, stage: Stage, segment: Segment) -> None:
        if stage == "encode":
            self.left.append(self.num_left)
        super().submit(stage, segment)


def test_what_is_left_to_encode_is_foreseen_once_no_document_can_come(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_longmem(tmp_path / "backbone").save_pretrained(tmp_path / "model")
    texts = tmp_path / "texts"
    texts.mkdir()
    for number in range(5):
        (texts / f"{number}.txt").write_text(prose(number, 60), "utf-8")
    opened: list[Told] = []

    def opening(job: PerplexityJob, _tell: object) -> AbstractExecutor:
        opened.append(Told(job))
        return opened[-1]

    monkeypatch.setattr(pipelines.job, "open_executor", opening)
    job = PerplexityJob(
        inputs=(str(texts),),
        out=tmp_path / "out",
        model=ModelSource(str(tmp_path / "model")),
        cluster=None,
        threads=1,
        limits=Limits(4, 2**30),
    )
    summary = run_job(job, Console(file=StringIO()))
    assert summary["failures"] == []
    (executor,) = opened
    num_segments = len(executor.left)
    foreseen = [left for left in executor.left if left is not None]
    assert executor.left[0] is None, "documents are still to come"
    assert executor.left[num_segments - len(foreseen) :] == foreseen
    assert foreseen == list(range(len(foreseen) - 1, -1, -1))
    assert foreseen
