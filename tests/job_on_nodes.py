# SPDX-License-Identifier: Apache-2.0
"""Driver for tests of several nodes: a job in a process of its own, which records the routing of its tasks.

`python -m tests.job_on_nodes OUT SHAPE` with the fields of a ClusterShape as JSON; books are in OUT/../books, the model
in OUT/../checkpoint. Writes OUT.json, {"sent": [[stage, document, segment, worker, node], …], "events": [[s, kind,
message], …], "wall_s"}.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path
from time import monotonic
from typing import Any

from rich.console import Console

import actors.executor.ray_executor
from actors.config import ClusterShape
from actors.executor.timeouts import Timeouts
from longmem.model.source import ModelSource
from longmem.runtime.executor import ExecutorEvent, Stage
from longmem.runtime.scheduler import Limits
from pipelines.perplexity.job import PerplexityJob, run_job

sent: list[list[Any]] = []
said: list[list[Any]] = []
start_s = monotonic()
held = Path(sys.argv[1]).with_suffix(".held")


class Recording(actors.executor.ray_executor.RayExecutor):
    """Executor that records the worker of each task, and the events."""

    def _send(self, task: Any, worker: Any) -> None:
        super()._send(task, worker)
        for each in getattr(task, "members", [task]):
            sent.append([each.stage, each.segment.key.document, each.segment.index, worker.name, worker.info.node_id])

    def slots(self, stage: Stage) -> int:
        """Return no slots while the test holds the job, until slow-starting workers are ready."""
        return 0 if held.exists() else super().slots(stage)

    def events(self) -> list[ExecutorEvent]:
        events = super().events()
        said.extend([monotonic() - start_s, event.kind, event.message] for event in events)
        return events


def main(out: Path, shape: dict[str, Any]) -> None:
    actors.executor.ray_executor.RayExecutor = Recording  # type: ignore[misc]
    timeouts = Timeouts(**shape.pop("timeouts", {}))
    cluster = ClusterShape(**shape) if shape else None
    job = PerplexityJob(
        inputs=(str(out.parent / "books"),),
        out=out,
        model=ModelSource(str(out.parent / "checkpoint")),
        cluster=cluster and replace(cluster, timeouts=timeouts),
        threads=1,
        limits=Limits(8, 2**30),
        keep_tokens=True,
    )
    summary = run_job(job, Console(stderr=True, width=200))
    assert summary["failures"] == []
    out.with_suffix(".json").write_text(json.dumps({"sent": sent, "events": said, "wall_s": summary["wall_s"]}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(sys.argv[2]))
