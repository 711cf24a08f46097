# SPDX-License-Identifier: Apache-2.0
"""Terminal output of `longmem plan`: the plan, its bottleneck and advice, and the comparison with a run."""

from dataclasses import asdict
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from longmem.wording import counted, signed
from pipelines.job.format import NOTHING, byte_size, milliseconds, rough_duration
from pipelines.plan.check import PlanComparison
from pipelines.plan.costs import Cost, UnitCosts
from pipelines.plan.predict import Plan
from pipelines.plan.workload import Cluster

NOISY = 0.2
"""Spread of repetitions above which a figure is reported as noisy."""
MB = 1e6
GIGABIT_MB_PER_S = 117


def print_plan(console: Console, plan: Plan, best: Plan, costs: UnitCosts, bfloat16_helps: bool) -> None:
    """Print a plan. `best` is the plan with the suggested numbers of workers.

    With `bfloat16_helps`, the planned dtype is float32 and this machine multiplies faster in bfloat16.
    """
    cluster, workload = plan.cluster, plan.workload
    where = f"in this process: {_in_process(cluster)}" if cluster.in_process else _shape(cluster)
    console.print(
        f"{counted(workload.num_tokens, 'token')} of {counted(len(workload.document_tokens), 'document')}, "
        f"{counted(plan.num_segments, 'segment')}, {where}",
        style="bold",
    )
    table = Table(box=box.SIMPLE_HEAD)
    for column in ("stage", "workers", "tokens/s", "busy", "slowest for", "of one segment"):
        table.add_column(column, justify="left" if column == "stage" else "right")
    full_window_s = costs.score.levels[-1][1].wall_s + costs.read.wall_s
    per_segment = {
        "encode": _cost(costs.encode),
        "put": _cost(costs.put),
        "score": f"{milliseconds(costs.score.empty.wall_s)} to {milliseconds(full_window_s)}",
        "driver": _cost(costs.record),
        "cores": "",
    }
    for name, limited_s in plan.limited_s.items():
        stage = plan.stages.get(name)
        table.add_row(
            name,
            _workers(stage.workers) if stage else f"{cluster.nodes * cluster.cores_per_node:g}",
            f"{stage.tokens_per_s:,.0f}" if stage else f"{workload.num_tokens / plan.cpu_s:,.0f} each",
            rough_duration(stage.busy_s if stage else plan.cpu_s),
            f"{limited_s / max(plan.wall_s, 1e-9):.0%}",
            per_segment[name],
        )
    console.print(table)
    facts = Table(box=None, show_header=False, padding=(0, 2))
    facts.add_row("wall time", f"{rough_duration(plan.wall_s)}, after {rough_duration(plan.start_s)} to start")
    facts.add_row("throughput", f"{plan.tokens_per_s:,.0f} tokens/s")
    facts.add_row("CPU time", rough_duration(plan.cpu_s))
    facts.add_row("RAM", f"{byte_size(plan.ram_bytes_per_node)} per node")
    facts.add_row("object store", byte_size(plan.object_store_bytes))
    facts.add_row(
        "disk", f"{byte_size(plan.disk_bytes)} memory ({workload.retention}), {byte_size(plan.result_bytes)} results"
    )
    travelling = ", ".join(f"{name} {byte_size(bytes_)}" for name, bytes_ in plan.network_bytes.items() if bytes_)
    facts.add_row(
        "network",
        f"{byte_size(plan.network_bytes_per_node)} sent by each node, {plan.network_mb_per_s:,.1f} MB/s ({travelling})"
        if travelling
        else "none: one node",
    )
    console.print(facts)
    console.print(
        f"\n  Limited by {plan.bottleneck}. What helps: {'; '.join(advice(plan, best, costs, bfloat16_helps))}."
    )
    if plan.network_mb_per_s > GIGABIT_MB_PER_S / 2:
        console.print(
            "  [yellow]The network matters:[/] more than half of what gigabit Ethernet carries; this plan does not "
            "wait for it."
        )
    if best.cluster != cluster:
        console.print(
            f"  Suggested for these cores: --encoders {best.cluster.encoders} --readers {best.cluster.readers} "
            f"--stores {best.cluster.stores}: {best.tokens_per_s:,.0f} tokens/s, {rough_duration(best.wall_s)}."
        )
    print_noise(console, costs)


def advice(plan: Plan, best: Plan, costs: UnitCosts, bfloat16_helps: bool) -> list[str]:
    """Return what would make this job faster: options that it can still take, on machines like those of the plan."""
    cluster, bottleneck = plan.cluster, plan.bottleneck
    found = []
    if cluster.in_process:
        if cluster.cores_per_node >= 2 * cluster.workers * cluster.threads:
            found.append("more --workers, which use the other cores")
        elif cluster.workers == 1 and cluster.threads > 1:
            found.append(f"--workers {cluster.threads} --threads 1, because threads of one segment wait for each other")
    elif bottleneck in ("encode", "score") and best.cluster != cluster:
        found.append(f"more {'--encoders' if bottleneck == 'encode' else '--readers'} on these cores")
    elif bottleneck in ("encode", "score", "cores"):
        found.append("more nodes or cores: the workers keep all of these busy")
    if bottleneck in ("encode", "score", "cores") and bfloat16_helps:
        found.append("--dtype auto, because this CPU is faster in bfloat16")
    longest = max(plan.workload.document_tokens)
    if bottleneck in ("score", "cores") and min(costs.memory_tokens, longest) > costs.segment_tokens:
        reached = min(costs.memory_tokens, longest)
        found.append(f"--memory-tokens below the {reached:,} that are read, because scoring grows with the window")
    if bottleneck == "put":
        found.append("a faster disk for --store")
        if not cluster.in_process and len(plan.workload.document_tokens) > cluster.stores:
            found.append("more --stores, if documents are short")
    if bottleneck == "driver":
        found.append("larger --segment-tokens: one driver plans all segments")
    return found or ["a faster machine: no option is left"]


def print_noise(console: Console, costs: UnitCosts) -> None:
    """Print the spread of the measured costs."""
    named = {"encode": costs.encode, "put": costs.put, "read": costs.read}
    named |= {f"score at {tokens:,}": cost for tokens, cost in costs.score.levels}
    noisy = [f"{name} ±{cost.spread / 2:.0%}" for name, cost in named.items() if cost.spread > NOISY]
    middle = sorted(cost.spread for cost in named.values())[len(named) // 2]
    console.print(
        f"  Costs: spread of repetitions ±{middle / 2:.0%} (median)"
        + (f", noisy: {', '.join(noisy)}" if noisy else "")
        + f"; scoring follows a line over the window within {costs.score.residual:.0%}.",
        style="dim",
    )


def print_comparison(console: Console, comparison: PlanComparison) -> None:
    """Print predicted and measured figures."""
    table = Table(box=box.SIMPLE_HEAD, title="checked against a run", title_justify="left")
    for column in ("", "predicted", "measured", "error"):
        table.add_column(column, justify="right" if column else "left")
    for figure in comparison.figures:
        table.add_row(
            figure.name,
            _amount(figure.predicted, figure.unit),
            _amount(figure.measured, figure.unit),
            _error(figure.error),
        )
    console.print(table)
    if comparison.drift:
        drifts = ", ".join(f"{name} {signed(ratio - 1, '+.0%')}" for name, ratio in comparison.drift.items())
        console.print(f"  The machine, measured again after the run: {drifts}.", style="dim")
    console.print(f"  Other programs used {comparison.foreign_cores:.2g} cores during the run.", style="dim")
    verdict = "[green]within[/]" if comparison.passed else "[bold red]off by more than[/]"
    console.print(f"  Throughput is {verdict} {comparison.tolerance:.0%}.")
    if not comparison.passed and comparison.passed_on_left_cores:
        console.print("  It would be within on the cores that others left: repeat the check on an idle machine.")


def as_json(plan: Plan, best: Plan, costs: UnitCosts, comparison: PlanComparison | None) -> dict[str, Any]:
    """Return all figures as JSON values."""
    return {
        "plan": {**_plan_json(plan), "documents": len(plan.workload.document_tokens)},
        "suggested": _plan_json(best),
        "costs": asdict(costs),
        "check": comparison
        and {
            "passed": comparison.passed,
            "figures": [{**asdict(figure), "error": figure.error} for figure in comparison.figures],
            "drift": comparison.drift,
            "foreign_cores": comparison.foreign_cores,
        },
    }


def _plan_json(plan: Plan) -> dict[str, Any]:
    values = asdict(plan)
    workload = values.pop("workload")
    return {
        **values,
        "retention": workload["retention"],
        "tokens": plan.workload.num_tokens,
        "tokens_per_s": plan.tokens_per_s,
        "bottleneck": plan.bottleneck,
        "network_bytes_per_node": plan.network_bytes_per_node,
        "network_mb_per_s": plan.network_mb_per_s,
    }


def _shape(cluster: Cluster) -> str:
    pools = {"encoder": cluster.encoders, "reader": cluster.readers, "store": cluster.stores}
    cores = "1 core" if cluster.cores_per_node == 1 else f"{cluster.cores_per_node:g} cores"
    return (
        f"on {counted(cluster.nodes, 'node')} of {cores}: "
        f"{', '.join(counted(number, worker) for worker, number in pools.items())}, "
        f"{counted(cluster.threads, 'thread')} each"
    )


def _in_process(cluster: Cluster) -> str:
    return f"{counted(cluster.workers, 'worker')} of {counted(cluster.threads, 'thread')}"


def _workers(number: float) -> str:
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


def _cost(cost: Cost) -> str:
    return f"{milliseconds(cost.wall_s)} ±{cost.spread / 2:.0%}"


def _amount(value: float, unit: str) -> str:
    if unit == "bytes":
        return byte_size(value)
    return rough_duration(value) if unit == "s" else f"{value:,.0f}"


def _error(error: float | None) -> str:
    return NOTHING if error is None else signed(error, "+.0%")
