"""What a job occupies while it runs: memory, object store, disk, and the network between nodes."""

from math import ceil

from longmem.memory.window_cache import READ_SEGMENTS
from pipelines.job.executors import default_in_flight
from pipelines.plan.costs import UnitCosts
from pipelines.plan.workload import Cluster, Segments, Workload


def waiting_segments(cluster: Cluster) -> int:
    """Encoded segments that may wait for readers and stores, in the whole cluster."""
    return default_in_flight(None if cluster.in_process else cluster.encoders + cluster.readers)


def open_documents(workload: Workload, cluster: Cluster, segments: Segments) -> float:
    """Documents of which segments are in work at once, on average: one, and those whose segments wait meanwhile."""
    if cluster.in_process:
        return 1.0
    documents = len(workload.document_tokens)
    return min(float(documents), 1.0 + waiting_segments(cluster) * documents / segments.total)


def ram_bytes(costs: UnitCosts, workload: Workload, cluster: Cluster, segments: Segments) -> int:
    """Of the fullest node: its share of workers, windows, Ray and objects."""
    documents = ceil(open_documents(workload, cluster, segments))
    filled = min(1.0, max(workload.document_tokens) / max(1, costs.memory_tokens)) if costs.memory_tokens else 0.0
    window = costs.window_bytes * filled
    # the window that is being read stays, whatever the cap
    windows = int(max(window, min(documents * window, cluster.window_cap_bytes)))
    if cluster.in_process or costs.ray is None:
        return costs.process_bytes + windows
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
    """In the whole cluster: segments in flight, and blocks that readers are fetching."""
    if cluster.in_process:
        return 0
    waiting = min(waiting_segments(cluster), segments.total)
    fetched = min(READ_SEGMENTS, segments.total) * cluster.readers * (costs.memory_tokens > 0)
    return waiting * costs.segment_bytes + fetched * costs.block_bytes


def disk_bytes(costs: UnitCosts, workload: Workload, cluster: Cluster, segments: Segments) -> int:
    """Of the memory store at its largest."""
    if not costs.memory_tokens:
        return 0
    tokens = sorted(workload.document_tokens, reverse=True)
    if workload.retention == "window":
        tokens = [min(each, costs.memory_tokens + costs.segment_tokens) for each in tokens]
    if workload.retention != "forever":
        # the longest, and of the one after it what is encoded ahead
        num_open = open_documents(workload, cluster, segments)
        whole = int(num_open)
        last = int(tokens[whole] * (num_open - whole)) if whole < len(tokens) else 0
        tokens = [*tokens[:whole], last]
    return int(sum(tokens) / costs.segment_tokens * costs.block_bytes * costs.store_overhead)


def network_bytes(costs: UnitCosts, cluster: Cluster, segments: Segments) -> dict[str, int]:
    """At most: as if workers, spread evenly, took segments whatever node their data is on, so that they are elsewhere
    with (N - 1)/N, and every reader read every document."""
    elsewhere = (cluster.nodes - 1) / cluster.nodes
    stored = segments.full * (costs.memory_tokens > 0)
    return {
        "encoded segments to readers": int(elsewhere * segments.full * costs.segment_bytes),
        "block to the store": int(elsewhere * stored * costs.block_bytes),
        "blocks from the store": int(elsewhere * stored * costs.block_bytes * cluster.readers),
    }
