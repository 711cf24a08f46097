# SPDX-License-Identifier: Apache-2.0
"""Validation of a plan: run the same job and compare every measured figure with its prediction."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rich.console import Console

from actors.config import ClusterShape
from longmem.errors import ConfigError
from longmem.model.source import ModelSource
from pipelines.job.executors import MEMORY_FOLDER, default_limits
from pipelines.perplexity.job import PerplexityJob, run_job
from pipelines.plan.costs import UnitCosts, without_waiting
from pipelines.plan.measure import measure_apart
from pipelines.plan.predict import Plan, predict
from pipelines.plan.processes import Watch
from pipelines.plan.workload import Cluster, Workload

TOLERANCE = 0.25
SHARED = 0.1
"""Share of the cores above which their use by other programs is reported."""
THROUGHPUT = "throughput"
THROUGHPUT_LEFT = "  on the cores that others left"


@dataclass(frozen=True)
class Figure:
    """Predicted and measured value of one quantity."""

    name: str
    unit: str
    predicted: float
    measured: float

    @property
    def error(self) -> float | None:
        """Relative error of the prediction; None if nothing was measured."""
        return (self.predicted - self.measured) / self.measured if self.measured else None


@dataclass(frozen=True)
class PlanComparison:
    """Comparison of a plan with its run."""

    figures: tuple[Figure, ...]
    drift: dict[str, float] = field(default_factory=dict)
    """Ratio of unit costs after and before the run, by stage: change of the machine itself."""
    foreign_cores: float = 0.0
    """Mean number of cores that other programs used during the run."""
    tolerance: float = TOLERANCE

    @property
    def passed(self) -> bool:
        """True if predicted throughput is within the tolerance, regardless of other load on the machine."""
        return self._is_close(THROUGHPUT)

    @property
    def passed_on_left_cores(self) -> bool:
        """True if throughput predicted for the cores that other programs left is within the tolerance.

        It uses the load measured during the run, so it explains an error and is no prediction.
        """
        return self._is_close(THROUGHPUT_LEFT)

    def _is_close(self, name: str) -> bool:
        errors = [figure.error for figure in self.figures if figure.name == name]
        return any(error is not None and abs(error) <= self.tolerance for error in errors)


def check_plan(
    inputs: Sequence[str],
    source: ModelSource,
    workload: Workload,
    cluster: Cluster,
    costs: UnitCosts,
    limit_documents: int | None,
    budget_s: float,
    console: Console,
) -> PlanComparison:
    """Plan the job for this machine, run it, and compare.

    The costs are measured again after the run, to distinguish a wrong plan from a busy machine.
    Raises the errors of `run_for_real`.
    """
    predicted = predict(costs, workload, cluster)
    keep_memory = workload.retention == "forever"
    summary, watch = run_for_real(inputs, source, cluster, limit_documents, keep_memory, console)
    after = measure_apart(source, cluster.threads, budget_s / 2)
    comparison = compare(predicted, summary, watch, drift_of(costs, after))
    if watch.foreign_cores <= SHARED * cluster.cores_per_node:
        return comparison
    left = predict_on_left_cores(costs, workload, cluster, watch.foreign_cores)
    measured = workload.num_tokens / summary["wall_s"]
    figures = list(comparison.figures)
    figures.insert(2, Figure(THROUGHPUT_LEFT, "tokens/s", left, measured))
    return replace(comparison, figures=tuple(figures))


def predict_on_left_cores(costs: UnitCosts, workload: Workload, cluster: Cluster, foreign_cores: float) -> float:
    """Return tokens/s of the job while other programs use `foreign_cores`, from undisturbed unit costs."""
    left = max(0.01, cluster.cores_per_node - foreign_cores)
    plan = predict(without_waiting(costs), workload, replace(cluster, cores_per_node=left))
    # one process uses one core per thread, and waits for missing cores
    return (
        plan.tokens_per_s * min(1.0, left / (cluster.workers * cluster.threads))
        if cluster.in_process
        else plan.tokens_per_s
    )


def run_for_real(
    inputs: Sequence[str],
    source: ModelSource,
    cluster: Cluster,
    limit_documents: int | None,
    keep_memory: bool,
    console: Console,
) -> tuple[dict[str, Any], Watch]:
    """Run the job in a temporary folder; return its summary and the resources of its processes.

    Raises ConfigError if a document failed (a plan counts all of them), and the errors of `run_job`.
    """
    shape = ClusterShape(
        address="local",
        encoders=cluster.encoders,
        readers=cluster.readers,
        stores=cluster.stores,
        threads=cluster.threads,
    )
    with TemporaryDirectory(prefix="longmem-plan-") as folder:
        job = PerplexityJob(
            inputs=tuple(inputs),
            out=Path(folder) / "out",
            model=source,
            cluster=None if cluster.in_process else shape,
            workers=cluster.workers,
            threads=cluster.threads,
            limits=default_limits(None if cluster.in_process else cluster.encoders + cluster.readers, cluster.workers),
            limits_given=False,
            limit_documents=limit_documents,
            retention="forever" if keep_memory else "document",
            write_memory=keep_memory or source.settings.get("memory_tokens") != 0,
        )
        with Watch(job.out / MEMORY_FOLDER) as watch:
            summary = run_job(job, console)
    if summary["failures"]:
        first = summary["failures"][0]
        raise ConfigError(f"--check needs documents that can be scored; {first['document']}: {first['error']}")
    return summary, watch


def compare(plan: Plan, summary: dict[str, Any], watch: Watch, drift: dict[str, float]) -> PlanComparison:
    """Compare every figure that a run measures with the plan."""
    wall_s = summary["wall_s"]
    figures = [
        Figure("wall time", "s", plan.wall_s, wall_s),
        Figure(THROUGHPUT, "tokens/s", plan.tokens_per_s, plan.workload.num_tokens / wall_s),
    ]
    for stage, totals in summary["stages"].items():
        figures.append(Figure(f"{stage}, busy", "s", plan.stages[stage].busy_s, totals["busy_s"]))
    figures += [
        Figure("CPU time, with start", "s", plan.cpu_s, watch.cpu_s),
        Figure("RAM at most", "bytes", plan.ram_bytes_per_node, watch.resident_bytes),
        Figure("disk at most", "bytes", plan.disk_bytes, watch.folder_bytes),
    ]
    return PlanComparison(tuple(figures), drift, watch.foreign_cores)


def drift_of(before: UnitCosts, after: UnitCosts) -> dict[str, float]:
    """Return the ratio of unit costs between two measurements, by stage."""
    return {
        "encode": after.encode.wall_s / before.encode.wall_s,
        "score": after.score.levels[-1][1].wall_s / before.score.levels[-1][1].wall_s,
    }
