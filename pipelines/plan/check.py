"""A plan against the truth: the same job is run for real, and every figure is put beside what was predicted."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rich.console import Console

from actors.config import ClusterShape
from longmem.errors import ConfigError
from longmem.model.source import ModelSource
from longmem.runtime.scheduler import Limits
from pipelines.job.executors import MEMORY_FOLDER
from pipelines.perplexity.job import PerplexityJob, run_job
from pipelines.plan.costs import UnitCosts, without_waiting
from pipelines.plan.measure import measure_apart
from pipelines.plan.predict import Plan, predict
from pipelines.plan.processes import Watch
from pipelines.plan.resources import waiting_segments
from pipelines.plan.workload import Cluster, Workload

TOLERANCE = 0.25
SHARED = 0.1
"""Share of the cores from which on it is worth telling that others use them."""
THROUGHPUT = "throughput"
THROUGHPUT_LEFT = "  on the cores that others left"


@dataclass(frozen=True)
class Figure:
    """One thing that was predicted and measured."""

    name: str
    unit: str
    predicted: float
    measured: float

    @property
    def error(self) -> float | None:
        """Of the prediction, as a share of what was measured; None when nothing was measured."""
        return (self.predicted - self.measured) / self.measured if self.measured else None


@dataclass(frozen=True)
class PlanComparison:
    """A plan and what its run took."""

    figures: tuple[Figure, ...]
    drift: dict[str, float] = field(default_factory=dict)
    """Costs measured after the run over those before it: what the machine itself did meanwhile."""
    foreign_cores: float = 0.0
    """Cores that other programs kept busy during the run."""
    tolerance: float = TOLERANCE

    @property
    def passed(self) -> bool:
        """Whether throughput was predicted well enough, whatever else the machine did meanwhile."""
        return self._is_close(THROUGHPUT)

    @property
    def passed_on_left_cores(self) -> bool:
        """The same for the cores that others left. It knows what others took during the run, so it explains a miss and
        is no prediction."""
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
    """Plan the job for this machine, run it, and measure the costs again, to tell a wrong plan from a busy machine.

    Raises as `run_for_real` does.
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
    """Tokens/s of the job while other programs keep some cores busy, from what things cost when nobody disturbs."""
    left = max(0.01, cluster.cores_per_node - foreign_cores)
    plan = predict(without_waiting(costs), workload, replace(cluster, cores_per_node=left))
    # one process uses one core for each thread; what is missing of that it waits for
    return plan.tokens_per_s * min(1.0, left / cluster.threads) if cluster.in_process else plan.tokens_per_s


def run_for_real(
    inputs: Sequence[str],
    source: ModelSource,
    cluster: Cluster,
    limit_documents: int | None,
    keep_memory: bool,
    console: Console,
) -> tuple[dict[str, Any], Watch]:
    """Run the job in a temporary folder; returns its summary and what its processes used.

    Raises ConfigError when a document failed (a plan counts all of them), and what `run_job` raises.
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
            threads=cluster.threads,
            limits=Limits(waiting_segments(cluster), 2**30),
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
    """Every figure that a run measures."""
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
    """How much dearer things became between two measurements."""
    return {
        "encode": after.encode.wall_s / before.encode.wall_s,
        "score": after.score.levels[-1][1].wall_s / before.score.levels[-1][1].wall_s,
    }
