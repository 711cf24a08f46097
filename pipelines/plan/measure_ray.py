# SPDX-License-Identifier: Apache-2.0
"""Measurement of Ray's overhead: one encoder, one reader and one store, one segment at a time."""

from dataclasses import replace
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter, sleep

import numpy as np

from actors.config import ClusterShape
from longmem.model.source import ModelSource
from longmem.runtime.executor import STAGES, AbstractExecutor, Completion, Stage
from longmem.text.language_reference import language_reference
from longmem.text.segments import cut_segments
from longmem.types import DocumentKey, Segment
from pipelines.plan.costs import Cost, RayCost, UnitCosts
from pipelines.plan.processes import Role, Usage, total_cpu_s, usage_by_role

DAEMONS: tuple[Role, ...] = ("driver", "daemon")
WARM_SEGMENTS = 3
MIN_SEGMENTS = 6
IDLE_S = 2.0
MAX_SEGMENTS = 30
KEY = DocumentKey("plan", "measured")


def with_ray_costs(costs: UnitCosts, source: ModelSource, threads: int, budget_s: float) -> UnitCosts:
    """Return the costs with Ray's overhead added, measured on a temporary local cluster.

    Raises ClusterError and errors of the workers.
    """
    from actors.executor.ray_executor import RayExecutor

    tokenizer = source.open_tokenizer()
    segments = cut_segments(KEY, tokenizer.sequence(language_reference().text), costs.segment_tokens)
    segments = [segment for segment in segments if segment.num_tokens == costs.segment_tokens]
    start = perf_counter()
    with TemporaryDirectory(prefix="longmem-plan-") as folder:
        shape = ClusterShape(address="local", encoders=1, readers=1, stores=1, threads=threads)
        with RayExecutor(source, str(Path(folder) / "memory.lance"), shape) as executor:
            start_s = perf_counter() - start
            stages = STAGES if costs.memory_tokens else tuple(stage for stage in STAGES if stage != "put")
            for segment in segments[:WARM_SEGMENTS]:
                _pass(executor, stages, segment)
            idle_cores = _idle_cores()
            measured = segments[WARM_SEGMENTS : WARM_SEGMENTS + MAX_SEGMENTS]
            call = _call(executor, stages, measured, costs, budget_s, idle_cores)
            usage = usage_by_role()
    return replace(
        costs,
        ray=RayCost(
            call=call,
            start_s=start_s,
            encoder_bytes=_each(usage, "encoder"),
            reader_bytes=_each(usage, "reader"),
            store_bytes=_each(usage, "store"),
            idle_cores=idle_cores,
            daemon_bytes=sum(usage[role].resident_bytes for role in DAEMONS if role in usage),
        ),
    )


def _idle_cores() -> float:
    """Return the mean number of cores that all processes use while idle."""
    start, cpu_s = perf_counter(), total_cpu_s()
    sleep(IDLE_S)
    return max(0.0, (total_cpu_s() - cpu_s) / (perf_counter() - start))


def _call(
    executor: AbstractExecutor,
    stages: tuple[Stage, ...],
    segments: list[Segment],
    costs: UnitCosts,
    budget_s: float,
    idle_cores: float,
) -> Cost:
    """Return the cost of one segment beyond the compute seconds of its workers."""
    latencies, begun, cpu_s = [], perf_counter(), total_cpu_s()
    for segment in segments:
        latencies.append(_pass(executor, stages, segment))
        if len(latencies) >= MIN_SEGMENTS and perf_counter() - begun > budget_s:
            break
    cpu_s = (total_cpu_s() - cpu_s - idle_cores * (perf_counter() - begun)) / len(latencies)
    windows = np.minimum([segment.start_token for segment in segments[: len(latencies)]], costs.memory_tokens)
    plain_s = costs.encode.cpu_s + costs.put.cpu_s + costs.read.cpu_s + float(np.mean(costs.score.cpu.at(windows)))
    low, high = np.quantile(latencies, [0.25, 0.75])
    middle = median(latencies)
    return Cost(middle, max(0.0, cpu_s - plain_s), float((high - low) / middle), len(latencies))


def _pass(executor: AbstractExecutor, stages: tuple[Stage, ...], segment: Segment) -> float:
    """Send one segment through all stages; return the seconds in which no worker computed."""
    start, busy_s = perf_counter(), 0.0
    for stage in stages:
        executor.submit(stage, segment)
        completions: list[Completion] = []
        while not completions:
            completions = executor.wait(1.0)
        for completion in completions:
            if completion.error is not None:
                raise completion.error
            busy_s += completion.busy_s
    executor.release(segment)
    return perf_counter() - start - busy_s


def _each(usage: dict[Role, Usage], role: Role) -> int:
    assert role in usage, f"no process of the {role} was found: has Ray changed its process titles?"
    return usage[role].resident_bytes // usage[role].processes
