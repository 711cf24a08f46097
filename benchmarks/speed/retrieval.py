# SPDX-License-Identifier: Apache-2.0
"""Exact search: this project's engines, FAISS and the matrix product alone, and the loss of approximate indexes.

The benchmark has two shapes. One has sixteen heads of 64 with Gaussian keys, where no pruning is possible. The other
has the keys of a real text under the reference model, all heads in one search, which is the default form.
"""

from collections.abc import Callable
from typing import Any

import faiss
import numpy as np
import torch
from torch import Tensor

from benchmarks.speed.real_memory import RealMemory
from benchmarks.speed.table import BenchmarkRow, SpeedTable
from benchmarks.speed.timing import take_turns
from longmem.retrieval import create_search
from longmem.retrieval.low_rank_bound import KeySketch

HEADS, HEAD_DIM, NUM_KEYS, NUM_QUERIES, TOP_K = 16, 64, 16_384, 1_024, 16
MIN_BF16_SPEEDUP = 1.5
"""Smallest speed-up of real bfloat16 hardware. Below it the processor emulates bfloat16: its product is no ceiling."""


def gaussian(repeats: int) -> SpeedTable:
    """Time the shape of a GPT-2-medium layer with chunks of four tokens in a window of 65,536."""
    random = torch.Generator().manual_seed(0)
    queries = torch.randn((NUM_QUERIES, HEADS, HEAD_DIM), generator=random)
    keys = torch.randn((HEADS, NUM_KEYS, HEAD_DIM), generator=random)
    title = f"{HEADS} heads × {NUM_KEYS:,} Gaussian keys of {HEAD_DIM}, {NUM_QUERIES:,} queries, top {TOP_K}"
    return _compare(title, queries, keys, TOP_K, None, repeats)


def real(memory: RealMemory, repeats: int) -> SpeedTable:
    """Time the default form of the reference model, in a full window of real text."""
    keys, queries = memory.view.chunk_keys, memory.queries
    top_k = memory.model.config.num_slots
    title = (
        f"{queries.shape[1]} search × {keys.shape[1]:,} keys of {keys.shape[2]} of a real text, {len(queries):,} "
        f"queries, top {top_k}"
    )
    return _compare(title, queries, keys, top_k, memory.view.sketch, repeats)


def on_device(memory: RealMemory, name: str, repeats: int) -> SpeedTable:
    """Time the search of a model on a GPU, by default all heads together, against the matrix products alone."""
    keys, queries = memory.view.chunk_keys, memory.queries
    top_k = memory.model.config.num_slots
    wide, group = keys.float(), queries.shape[1] // len(keys)
    product = torch.empty((len(queries), keys.shape[1]), device=keys.device)
    half = torch.empty_like(product, dtype=torch.bfloat16)

    def searched() -> Tensor:
        return create_search("torch").search(queries, keys, top_k).ids

    def multiply(left: Tensor, right: Tensor, out: Tensor) -> None:
        for head in range(queries.shape[1]):
            torch.mm(left[:, head], right[head // group].T, out=out)

    half_queries, half_keys = queries.bfloat16(), keys.bfloat16()
    cases: dict[str, Callable[[], object]] = {
        "torch (search=torch)": searched,
        "float32 product alone": lambda: multiply(queries, wide, product),
        "bfloat16 product alone": lambda: multiply(half_queries, half_keys, half),
    }
    notes = {"torch (search=torch)": {"recall": f"{_recall(searched(), queries, keys):.4f}"}}
    lines = [BenchmarkRow(label, timing, notes.get(label, {})) for label, timing in take_turns(cases, repeats).items()]
    title = (
        f"{name}: {queries.shape[1]} searches × {keys.shape[1]:,} keys of {keys.shape[2]}, {len(queries):,} queries, "
        f"top {top_k}"
    )
    return SpeedTable(title, lines, {"device": str(keys.device)})


def _compare(
    title: str, queries: Tensor, keys: Tensor, top_k: int, sketch: KeySketch | None, repeats: int
) -> SpeedTable:
    faiss.omp_set_num_threads(torch.get_num_threads())
    by_head = [np.ascontiguousarray(queries[:, head].numpy()) for head in range(len(keys))]
    # this project's engines get keys in the dtype of windows, all others get float32
    wide = keys.float()
    flat = [_filled(faiss.IndexFlatIP(keys.shape[2]), head) for head in wide]
    graph = [_filled(faiss.IndexHNSWFlat(keys.shape[2], 32, faiss.METRIC_INNER_PRODUCT), head) for head in wide]
    product = torch.empty((len(queries), keys.shape[1]))
    half = torch.empty_like(product, dtype=torch.bfloat16)
    half_queries, half_keys = queries.bfloat16(), keys.bfloat16()

    def searched(indexes: list[Any]) -> Tensor:
        found = [index.search(asked, top_k)[1] for index, asked in zip(indexes, by_head, strict=True)]
        return torch.from_numpy(np.stack(found, axis=1))

    def multiply(left: Tensor, right: Tensor, out: Tensor) -> None:
        for head in range(len(keys)):
            torch.mm(left[:, head], right[head].T, out=out)

    cases: dict[str, Callable[[], Tensor | None]] = {
        f"{len(keys)} × IndexFlatIP": lambda: searched(flat),
        "faiss.knn (search=faiss)": lambda: create_search("faiss").search(queries, keys, top_k).ids,
        "torch (search=torch)": lambda: create_search("torch").search(queries, keys, top_k).ids,
        "native (search=native)": lambda: create_search("native").search(queries, keys, top_k, sketch).ids,
        "float32 product alone": lambda: multiply(queries, wide, product),
        f"{len(keys)} × HNSW32, approximate": lambda: searched(graph),
    }
    if sketch is not None:
        cases["native without sketch"] = lambda: create_search("native").search(queries, keys, top_k).ids
    not_run = {}
    if _bf16_speedup() >= MIN_BF16_SPEEDUP:
        cases["bfloat16 product alone"] = lambda: multiply(half_queries, half_keys, half)
    else:
        not_run["bfloat16 product alone"] = "this processor emulates bfloat16"
    recalls = {name: _recall(found, queries, keys) for name, case in cases.items() if (found := case()) is not None}
    timings = take_turns(cases, repeats)
    return SpeedTable(
        title,
        [
            BenchmarkRow(name, timing, {"recall": f"{recalls[name]:.4f}"} if name in recalls else {})
            for name, timing in timings.items()
        ],
        {"threads": torch.get_num_threads(), "sketch_width": sketch.basis.width if sketch else None},
        not_run,
    )


def _filled(index: Any, keys: Tensor) -> Any:
    index.add(np.ascontiguousarray(keys.numpy()))
    return index


def _recall(found: Tensor, queries: Tensor, keys: Tensor) -> float:
    """Return the share of the found chunks that are among the best in double precision.

    Chunks with equal scores (equal text) are interchangeable.
    """
    shares, group = [], queries.shape[1] // len(keys)
    for head in range(queries.shape[1]):
        of_head = keys[head // group].double()
        scores = queries[:, head].double() @ of_head.T
        worst = scores.topk(found.shape[2], dim=1).values[:, -1:]
        rounding = 1e-12 * queries[:, head].double().norm(dim=1, keepdim=True) * of_head.norm(dim=1).max()
        shares.append((scores.gather(1, found[:, head]) >= worst - rounding).double().mean())
    return float(torch.stack(shares).mean())


def _bf16_speedup() -> float:
    matrix = torch.ones((512, 512))
    half = matrix.bfloat16()
    timings = take_turns({"float32": lambda: matrix @ matrix, "bfloat16": lambda: half @ half})
    return timings["float32"].median_s / timings["bfloat16"].median_s
