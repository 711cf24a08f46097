# SPDX-License-Identifier: Apache-2.0
"""Prediction of a job's time, memory, disk and network on N nodes, computed from unit costs.

This is a pure calculation. Stages run concurrently and buffer only a few segments, so a segment takes as long as its
slowest stage: encoders, stores, readers, the driver, or all cores together. Times are summed over segments, because
scoring costs more while a document's window fills. In one process the stages run one after the other and add up.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from actors.executor.write_batcher import pause_s
from longmem.errors import ConfigError
from longmem.runtime.executor import PUT_SEGMENTS
from longmem.stored_format import blocks_at_once
from pipelines.plan.costs import Cost, UnitCosts
from pipelines.plan.resources import disk_bytes, network_bytes, object_store_bytes, open_documents, ram_bytes
from pipelines.plan.workload import Cluster, Segments, Workload, kinds_of_segments

MOST_STORES = 4
"""Maximum number of suggested stores: documents are processed in order, so more stores would often be idle."""


@dataclass(frozen=True)
class StagePlan:
    """Prediction of one stage over the whole job."""

    busy_s: float
    """Compute seconds, summed over its workers."""
    workers: float
    """Mean number of workers that can work concurrently; may be fractional."""
    tokens_per_s: float
    """Throughput of the stage alone."""


@dataclass(frozen=True)
class Plan:
    """Predicted time and resources of a job."""

    workload: Workload
    cluster: Cluster
    num_segments: int
    wall_s: float
    """Seconds from the first segment to the last result: `wall_s` of a job's summary."""
    start_s: float
    """Seconds before the first segment: start of Ray and workers, loading of models."""
    cpu_s: float
    """CPU seconds of all processes."""
    stages: dict[str, StagePlan]
    limited_s: dict[str, float]
    """Seconds of `wall_s` limited by each of `encode`, `put`, `score`, `driver`, or all `cores`."""
    ram_bytes_per_node: int
    object_store_bytes: int
    """Peak bytes in Ray's object store, over the whole cluster."""
    disk_bytes: int
    """Peak bytes of the memory store on disk."""
    result_bytes: int
    network_bytes: dict[str, int]
    """Bytes sent between nodes in the whole job, by kind of data."""

    @property
    def tokens_per_s(self) -> float:
        return self.workload.num_tokens / self.wall_s

    @property
    def bottleneck(self) -> str:
        """Resource that limits the job for the longest time."""
        return max(self.limited_s, key=lambda name: self.limited_s[name])

    @property
    def network_bytes_per_node(self) -> int:
        """Mean bytes that each node sends."""
        return sum(self.network_bytes.values()) // self.cluster.nodes

    @property
    def network_mb_per_s(self) -> float:
        """Mean network rate of each node while the job runs, in 10⁶ bytes/s."""
        return self.network_bytes_per_node / self.wall_s / 1e6


def predict(costs: UnitCosts, workload: Workload, cluster: Cluster) -> Plan:
    """Return the plan of a job with these workers.

    Raises ConfigError for a plan on Ray from costs without Ray.
    """
    if not cluster.in_process and costs.ray is None:
        raise ConfigError("these costs were measured without Ray; measure again with --address local")
    segments = kinds_of_segments(costs, workload)
    times = _times(costs, workload, segments, cluster)
    wall_s = times.wall_s + _edges_s(costs, workload, cluster)
    idle_cores = 0.0 if cluster.in_process or costs.ray is None else cluster.nodes * costs.ray.idle_cores
    cpu_s = times.cpu_s + costs.tokenise_s * workload.num_tokens + idle_cores * wall_s
    cpu_s += costs.forget.cpu_s * _forgotten(workload)
    return Plan(
        workload=workload,
        cluster=cluster,
        num_segments=segments.total,
        wall_s=wall_s,
        start_s=costs.load_s if cluster.in_process or costs.ray is None else costs.ray.start_s,
        cpu_s=cpu_s,
        stages={
            stage: StagePlan(busy_s, times.workers[stage], _rate(workload.num_tokens * times.workers[stage], busy_s))
            for stage, busy_s in times.busy_s.items()
        },
        limited_s=times.limited_s,
        ram_bytes_per_node=ram_bytes(costs, workload, cluster, segments),
        object_store_bytes=object_store_bytes(costs, cluster, segments),
        disk_bytes=disk_bytes(costs, workload, cluster, segments),
        result_bytes=costs.record_bytes * segments.total,
        network_bytes=network_bytes(costs, cluster, segments),
    )


def suggest(
    costs: UnitCosts,
    workload: Workload,
    cluster: Cluster,
    *,
    encoders: int | None = None,
    readers: int | None = None,
    stores: int | None = None,
) -> Cluster:
    """Return the cluster with the numbers of workers that minimise wall time; of equals, the fewest.

    Given numbers are kept. The others are limited so that the cores suffice for all encoders and readers, or to one of
    each.
    """
    if cluster.in_process:
        return cluster
    slots = int(cluster.nodes * cluster.cores_per_node / cluster.threads)
    segments = kinds_of_segments(costs, workload)
    best: tuple[tuple[float, int], Cluster] | None = None
    for num_encoders in [encoders] if encoders else _numbers(max(1, slots - (readers or 1))):
        for num_readers in [readers] if readers else _numbers(max(1, slots - num_encoders)):
            for num_stores in [stores] if stores else range(1, MOST_STORES + 1):
                tried = replace(cluster, encoders=num_encoders, readers=num_readers, stores=num_stores)
                wall_s = _times(costs, workload, segments, tried).wall_s
                rank = (round(wall_s, 6), num_encoders + num_readers + num_stores)
                if best is None or rank < best[0]:
                    best = (rank, tried)
    assert best is not None, "there is always room for one encoder and one reader"
    return best[1]


def _numbers(most: int) -> Sequence[int]:
    """Return candidate numbers up to `most`: 1, 2, 3, …, and in steps of 10% from ten on."""
    tried = [1]
    while (following := max(tried[-1] + 1, int(tried[-1] * 1.1))) <= most:
        tried.append(following)
    return tried


@dataclass(frozen=True)
class _Times:
    wall_s: float
    """Wall seconds of the steady state, without start and end of the pipeline."""
    cpu_s: float
    busy_s: dict[str, float]
    workers: dict[str, float]
    limited_s: dict[str, float]


def _times(costs: UnitCosts, workload: Workload, segments: Segments, cluster: Cluster) -> _Times:
    # a document belongs to one store: other stores work only while segments of other documents wait
    stores = min(float(cluster.stores), open_documents(costs, workload, cluster, segments))
    wall, cpu = _per_segment(costs, segments, cluster, stores)
    busy = {stage: float((seconds * segments.count).sum()) for stage, seconds in wall.items()}
    cpu_s = sum(float((seconds * segments.count).sum()) for seconds in cpu.values())
    if cluster.in_process and cluster.workers == 1:
        # sequential: the stages share the whole time
        return _Times(sum(busy.values()), cpu_s, busy, dict.fromkeys(busy, 1.0), busy)
    if cluster.in_process:
        return _times_of_threads(wall, cpu, segments, cluster)
    workers = {"encode": float(cluster.encoders), "put": stores, "score": float(cluster.readers), "driver": 1.0}
    limits = {stage: seconds / workers[stage] for stage, seconds in wall.items()}
    limits["cores"] = np.stack(list(cpu.values())).sum(axis=0) / _free_cores(costs, cluster)
    table: np.ndarray = np.stack(list(limits.values()))
    spent = table.max(axis=0) * segments.count
    slowest = table.argmax(axis=0)
    limited = {name: float(spent[slowest == row].sum()) for row, name in enumerate(limits)}
    return _Times(float(spent.sum()), cpu_s, busy, workers, limited)


def _times_of_threads(
    wall: dict[str, np.ndarray], cpu: dict[str, np.ndarray], segments: Segments, cluster: Cluster
) -> _Times:
    """Return the times of workers that share one process: they run the models, and a thread of its own puts."""
    busy = {stage: float((seconds * segments.count).sum()) for stage, seconds in wall.items()}
    models = {stage: wall[stage] / cluster.workers for stage in ("encode", "score")}
    cpu_s = np.stack(list(cpu.values())).sum(axis=0)
    limits = np.stack([models["encode"] + models["score"], wall["put"], cpu_s / cluster.cores_per_node])
    spent, slowest = limits * segments.count, limits.argmax(axis=0)
    limited = {stage: float((seconds * segments.count)[slowest == 0].sum()) for stage, seconds in models.items()}
    limited |= {name: float(spent[row][slowest == row].sum()) for row, name in ((1, "put"), (2, "cores"))}
    workers = {stage: float(cluster.workers) if stage in models else 1.0 for stage in busy}
    return _Times(sum(limited.values()), float((cpu_s * segments.count).sum()), busy, workers, limited)


def _free_cores(costs: UnitCosts, cluster: Cluster) -> float:
    """Return the cores of all nodes that idle Ray processes leave, at least 5%."""
    idle = costs.ray.idle_cores if costs.ray is not None else 0.0
    return cluster.nodes * max(cluster.cores_per_node - idle, 0.05 * cluster.cores_per_node)


def _rate(amount: float, seconds: float) -> float:
    return amount / seconds if seconds else float("inf")


def _forgotten(workload: Workload) -> int:
    """Return the number of documents that are deleted from the store."""
    return 0 if workload.retention == "forever" else len(workload.document_tokens)


def _per_segment(
    costs: UnitCosts, segments: Segments, cluster: Cluster, stores: float
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Return wall and CPU seconds of one segment of each kind, by stage, for `stores` concurrent stores."""
    window, share = segments.window_tokens, segments.share
    some = window > 0
    score = costs.score
    encode_s = costs.encode.wall_s * share
    score_s = np.where(some, score.wall.at(window), score.empty.wall_s) * share
    if not cluster.in_process:
        # encoders that are ahead run the reader layers that need no memory (`prepare_policy`)
        ahead_s = score_s / cluster.readers - encode_s / cluster.encoders
        moved_s = np.clip(ahead_s / (1 / cluster.readers + 1 / cluster.encoders), 0.0, costs.prepare.wall_s * share)
        encode_s, score_s = encode_s + moved_s, score_s - moved_s
    together = _puts_together(
        costs, cluster, stores * np.maximum(encode_s / cluster.encoders, score_s / cluster.readers)
    )

    def put(part: Callable[[Cost], float]) -> np.ndarray:
        return _in_groups(part(costs.put), part(costs.put_more), together)

    def read(part: Callable[[Cost], float]) -> np.ndarray:
        # a reader reads whole commits; readers alternate within a document, and each needs all its blocks
        others = 0 if cluster.in_process else (cluster.readers - 1) * part(costs.read_more)
        return some * (_in_groups(part(costs.read), part(costs.read_more), together) + others)

    wall: dict[str, np.ndarray] = {
        "encode": encode_s,
        "put": put(_wall_s),
        "score": score_s + read(_wall_s),
        "driver": costs.record.wall_s * np.ones(len(window)),
    }
    cpu: dict[str, np.ndarray] = {
        "encode": costs.encode.cpu_s * share,
        "put": put(_cpu_s),
        "score": np.where(some, score.cpu.at(window), score.empty.cpu_s) * share + read(_cpu_s),
        "driver": costs.record.cpu_s * np.ones(len(window)),
    }
    if costs.ray is not None and not cluster.in_process:
        cpu["ray"] = costs.ray.call.cpu_s * share
    return wall, cpu


def _puts_together(costs: UnitCosts, cluster: Cluster, segment_s: np.ndarray) -> np.ndarray:
    """Return the segments per commit of a store that receives one every `segment_s`.

    A commit takes the segments that arrive during the last commit and its pause. The model ignores that a store does
    not pause while readers are idle: it then does more work than predicted, but encoders limit the job.
    """
    most = blocks_at_once(costs.block_bytes, PUT_SEGMENTS)
    if cluster.in_process:
        return np.full(len(segment_s), float(most))
    first_s, more_s = costs.put.wall_s, costs.put_more.wall_s
    room_s = np.maximum(segment_s - more_s, 1e-9)
    together: np.ndarray = np.clip((first_s - more_s + pause_s(first_s)) / room_s, 1.0, most)
    return together


def _in_groups(first_s: float, more_s: float, size: np.ndarray) -> np.ndarray:
    """Return the seconds per block of a batch of `size` blocks."""
    per_block: np.ndarray = (first_s + (size - 1) * more_s) / size
    return per_block


def _wall_s(cost: Cost) -> float:
    return cost.wall_s


def _cpu_s(cost: Cost) -> float:
    return cost.cpu_s


def _edges_s(costs: UnitCosts, workload: Workload, cluster: Cluster) -> float:
    """Return the seconds of filling and draining the pipeline, and of deleting documents."""
    first_text = costs.tokenise_s * workload.document_tokens[0]
    forget = costs.forget.wall_s * _forgotten(workload)
    if cluster.in_process or costs.ray is None:
        return first_text + forget
    # only the encoder works on the first segment, only the reader on the last
    last = min(workload.document_tokens[-1], costs.memory_tokens)
    score = float(costs.score.wall.at(np.array(last)))
    return first_text + forget + costs.encode.wall_s + score + costs.ray.call.wall_s
