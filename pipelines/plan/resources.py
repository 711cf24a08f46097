# SPDX-License-Identifier: Apache-2.0
"""Predicted resources of a running job: memory, object store, disk, and network between nodes."""

from math import ceil

from actors.config import STORES_RECENT_BYTES
from longmem.memory.window_cache import READ_SEGMENTS
from longmem.stored_format import blocks_at_once
from pipelines.job.executors import default_limits, least_in_flight
from pipelines.plan.costs import UnitCosts
from pipelines.plan.workload import Cluster, Segments, Workload


def waiting_segments(cluster: Cluster, segment_bytes: int) -> int:
    """Return the limit of encoded segments of this size in flight, over the whole cluster."""
    workers = None if cluster.in_process else cluster.encoders + cluster.readers, cluster.workers
    return default_limits(*workers).for_segments_of(segment_bytes, least_in_flight(*workers)).max_in_flight_segments


def open_documents(costs: UnitCosts, workload: Workload, cluster: Cluster, segments: Segments) -> float:
    """Return the mean number of concurrently open documents: one, and those with segments in flight."""
    if cluster.in_process:
        return 1.0
    documents = len(workload.document_tokens)
    return min(float(documents), 1.0 + waiting_segments(cluster, costs.segment_bytes) * documents / segments.total)


def ram_bytes(costs: UnitCosts, workload: Workload, cluster: Cluster, segments: Segments) -> int:
    """Return peak resident bytes of the most loaded node: workers, windows, Ray daemons and object store."""
    documents = ceil(open_documents(costs, workload, cluster, segments))
    filled = min(1.0, max(workload.document_tokens) / max(1, costs.memory_tokens)) if costs.memory_tokens else 0.0
    window = costs.window_bytes * filled
    # the window in use is never evicted, regardless of the cap
    windows = int(max(window, min(documents * window, cluster.window_cap_bytes)))
    if cluster.in_process or costs.ray is None:
        return costs.process_bytes + windows + (cluster.workers - 1) * costs.worker_bytes
    encoders, readers, stores = (
        -(-count // cluster.nodes) for count in (cluster.encoders, cluster.readers, cluster.stores)
    )
    objects = object_store_bytes(costs, cluster, segments)
    return (
        encoders * costs.ray.encoder_bytes
        + readers * (costs.ray.reader_bytes + windows)
        + stores * costs.ray.store_bytes
        + costs.ray.daemon_bytes
        + -(-objects // cluster.nodes)
    )


def object_store_bytes(costs: UnitCosts, cluster: Cluster, segments: Segments) -> int:
    """Return the bytes of segments in flight, of newest blocks that stores keep, and of blocks that readers fetch, over
    the whole cluster."""
    if cluster.in_process:
        return 0
    waiting = min(waiting_segments(cluster, costs.segment_bytes), segments.total)
    at_once = blocks_at_once(costs.block_bytes, READ_SEGMENTS)
    fetched = min(at_once, segments.total) * cluster.readers * (costs.memory_tokens > 0)
    # the newest blocks are those in flight, and what is left of the capacity
    stored = segments.total * costs.block_bytes * (costs.memory_tokens > 0)
    kept = max(0, min(STORES_RECENT_BYTES, stored) - waiting * costs.block_bytes)
    return waiting * costs.segment_bytes + fetched * costs.block_bytes + kept


def disk_bytes(costs: UnitCosts, workload: Workload, cluster: Cluster, segments: Segments) -> int:
    """Return the peak bytes of the memory store on disk."""
    if not costs.memory_tokens:
        return 0
    tokens = sorted(workload.document_tokens, reverse=True)
    if workload.retention == "window":
        tokens = [min(length, costs.memory_tokens + costs.segment_tokens) for length in tokens]
    if workload.retention != "forever":
        # the longest documents, and the part of the next one that is encoded ahead
        num_open = open_documents(costs, workload, cluster, segments)
        whole = int(num_open)
        last = int(tokens[whole] * (num_open - whole)) if whole < len(tokens) else 0
        tokens = [*tokens[:whole], last]
    return int(sum(tokens) / costs.segment_tokens * costs.block_bytes * costs.store_overhead)


def network_bytes(costs: UnitCosts, cluster: Cluster, segments: Segments) -> dict[str, int]:
    """Return an upper bound of the bytes sent between N nodes, by kind of data.

    It assumes evenly spread workers without locality, so that data is remote with probability (N - 1)/N, and that every
    reader reads every document.
    """
    elsewhere = (cluster.nodes - 1) / cluster.nodes
    stored = segments.full * (costs.memory_tokens > 0)
    return {
        "encoded segments to readers": int(elsewhere * segments.full * costs.segment_bytes),
        "block to the store": int(elsewhere * stored * costs.block_bytes),
        "blocks from the store": int(elsewhere * stored * costs.block_bytes * cluster.readers),
    }
