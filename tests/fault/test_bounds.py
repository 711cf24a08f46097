# SPDX-License-Identifier: Apache-2.0
"""Effect of a slow worker on the others: encoders wait, no buffer exceeds its limit, no result is lost."""

import os
import signal
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from actors.config import ClusterShape
from longmem.model.source import ModelSource
from longmem.runtime.executor import Completion, Stage
from longmem.runtime.scheduler import Limits
from longmem.types import Segment
from pipelines.perplexity.job import PerplexityJob, run_job
from tests.fault.test_jobs_survive import books, checkpoint, table_bytes, undisturbed

__all__ = ["books", "checkpoint", "undisturbed"]
pytest_plugins = ["tests.ray_cluster"]
pytestmark = [pytest.mark.thorough, pytest.mark.ray]

LIMIT = 4
PAUSE_WAITS = 10
"""Waits of the driver, up to a fifth of a second each, during which a reader is stopped."""


@pytest.mark.parametrize("slow", ["store", pytest.param("reader", marks=pytest.mark.slow)])
def test_a_slow_worker_slows_the_encoders(
    ray_cluster: None,
    checkpoint: Path,
    books: Path,
    undisturbed: dict[str, bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    slow: str,
) -> None:
    import actors.executor.ray_executor
    import actors.workers.start
    from tests.slow_store import SlowStoreActor

    held: list[int] = []

    class Watching(actors.executor.ray_executor.RayExecutor):
        completed = 0
        stopped_for = 0

        def submit(self, stage: Stage, segment: Segment) -> None:
            super().submit(stage, segment)
            self.count()

        def wait(self, timeout_s: float) -> list[Completion]:
            completions = super().wait(timeout_s)
            self.completed += len(completions)
            self.count()
            if slow == "reader" and self.completed >= 12 and self.stopped_for <= PAUSE_WAITS:
                (reader,) = self._pools["score"].workers
                assert reader.info is not None
                sent = signal.SIGCONT if self.stopped_for == PAUSE_WAITS else signal.SIGSTOP
                os.kill(reader.info.pid, sent)
                self.stopped_for += 1
            return completions

        def count(self) -> None:
            tasks: Any = [*self._running.values(), *(task for queue in self._waiting.values() for task in queue)]
            held.append(len(self._encoded) + sum(task.stage == "encode" for task in tasks))

    monkeypatch.setattr(actors.executor.ray_executor, "RayExecutor", Watching)
    if slow == "store":
        monkeypatch.setattr(actors.workers.start, "StoreActor", SlowStoreActor)
    job = PerplexityJob(
        inputs=(str(books),),
        out=tmp_path / "out",
        model=ModelSource(str(checkpoint)),
        cluster=ClusterShape(address="local", encoders=2),
        threads=1,
        limits=Limits(LIMIT, 2**30),
        keep_tokens=True,
    )
    assert run_job(job, Console(file=StringIO()))["failures"] == []
    assert table_bytes(job.out) == undisturbed
    assert max(held) == LIMIT
    # without the slow reader, encoders would rarely be that far ahead
    assert held.count(LIMIT) > len(held) / 4
