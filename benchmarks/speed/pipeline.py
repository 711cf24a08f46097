# SPDX-License-Identifier: Apache-2.0
"""Cost of memory relative to the models: one segment with a full window against the floor, and whole jobs.

The floor is one forward of the backbone and one of the SideNet without memory. Memory adds the write to the store and
the read back, the reader's copy of the block, the search, gathering and fusion, and the copy head's work.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from rich.console import Console

from actors.config import ClusterShape
from benchmarks.growth import long_document
from benchmarks.speed.real_memory import KEY, RealMemory
from benchmarks.speed.table import BenchmarkRow, SpeedTable
from benchmarks.speed.timing import Timing, take_turns
from longmem.errors import ConfigError
from longmem.memory.window import WindowBuffer
from longmem.model.longmem import LongMem
from longmem.model.source import ModelSource
from longmem.runtime.executor import PUT_SEGMENTS
from longmem.store.base import AbstractMemoryStore
from longmem.store.config import MemoryStore
from longmem.types import KVBlock
from pipelines.job.executors import default_limits
from pipelines.perplexity.job import PerplexityJob, run_job

WRITING = f"to LanceDB and back, {PUT_SEGMENTS} segments at a time, each"
JOB_TOKENS = 120_000
"""Tokens of the timed job, nearly two windows: half of the segments read a full one."""


def segment(memory: RealMemory, title: str, repeats: int) -> SpeedTable:
    """Time one segment of `memory`, stage by stage."""
    model, encoded, last = memory.model, memory.encoded, memory.segment
    keys, state = encoded.block.keys, encoded.state
    with (
        TemporaryDirectory(prefix="longmem-speed-") as folder,
        MemoryStore.open(Path(folder) / "memory.lance") as store,
    ):
        writer, window = _Writer(encoded.block, store), _Window(encoded.block, model)
        cases: dict[str, Callable[[], object]] = {
            "backbone forward (encode)": lambda: model.encode(last),
            "SideNet forward, memory off": lambda: model.score_segment(last, keys, state, None),
            "SideNet forward, full window": lambda: model.score_segment(last, keys, state, memory.view),
            WRITING: writer.next,
            "reader's copy of the block": window.next,
        }
        timings = take_turns(cases, repeats)
        timings[WRITING] = _each_of(timings[WRITING], PUT_SEGMENTS)
    encode, off, full, put, copied = (timings[name] for name in cases)
    floor = _together([encode, off])
    everything = _together([encode, full, put, copied])
    if memory.on_cpu:
        what, added = "CPU time", everything.cpu_median_s / floor.cpu_median_s - 1
    else:
        what, added = "time", everything.median_s / floor.median_s - 1
    lines = [BenchmarkRow("floor: encode + SideNet without memory", floor), BenchmarkRow("all with memory", everything)]
    lines += [BenchmarkRow(name, timing) for name, timing in timings.items()]
    settings = {
        "threads": torch.get_num_threads(),
        "memory_tokens": memory.view.num_tokens,
        "memory_adds": added,
        "search": model.search_engine,
    }
    return SpeedTable(f"{title}: memory adds {added:.0%} to the floor's {what}", lines, settings)


def jobs(
    source: ModelSource,
    inputs: list[str],
    threads: int,
    repeats: int,
    console: Console,
    only: Sequence[str] = (),
    num_tokens: int = JOB_TOKENS,
) -> SpeedTable:
    """Time whole perplexity jobs on one document: in memory, on disk, on Ray. `only` selects names by their parts.

    Start-up is left out. The parallel case runs independent jobs together and shows the throughput of the cores for
    two; its time is that of one job. Raises ConfigError for one of `only` that no name contains.
    """
    cluster = ClusterShape(address="local", encoders=1, readers=1, threads=max(1, threads // 2))
    parallel = f"one thread, LanceDB, {threads} in parallel, each"
    workers = f"in process, {threads} workers of one thread, LanceDB"
    shapes: dict[str, tuple[str | None, ClusterShape | None, int, int]] = {
        "in process, memory://": ("memory://", None, 1, threads),
        "in process, LanceDB": (None, None, 1, threads),
        workers: (None, None, threads, 1),
        "one thread, LanceDB": (None, None, 1, 1),
        parallel: (None, None, 1, 1),
        "Ray, 1 encoder + 1 reader, LanceDB": (None, cluster, 1, cluster.threads),
        "Ray, 1 encoder + 2 readers, LanceDB": (None, replace(cluster, readers=2), 1, cluster.threads),
        "Ray, 2 encoders + 2 readers, LanceDB": (None, replace(cluster, encoders=2, readers=2), 1, cluster.threads),
    }
    for part in only:
        if not any(part in name for name in shapes):
            raise ConfigError(f"--only {part!r}: expected a part of one of these names: {'; '.join(shapes)}")
    chosen = {name: shape for name, shape in shapes.items() if not only or any(part in name for part in only)}
    document = long_document(num_tokens, inputs, source)
    with TemporaryDirectory(prefix="longmem-speed-") as folder:
        text = Path(folder) / "document.txt"
        text.write_text(document.text, encoding="utf-8")
        times: dict[str, list[float]] = {name: [] for name in chosen}
        tokens = 0
        for turn in range(repeats):
            for number, (name, (store, shape, in_process, job_threads)) in enumerate(chosen.items()):
                job = PerplexityJob(
                    inputs=(str(text),),
                    out=Path(folder) / f"{turn}-{number}",
                    model=source,
                    cluster=shape,
                    workers=in_process,
                    threads=job_threads,
                    limits=default_limits(shape.encoders + shape.readers if shape else None, in_process),
                    limits_given=False,
                    store=store,
                )
                summaries = _run_in_parallel(job, threads) if name == parallel else [run_job(job, console)]
                times[name].append(max(summary["wall_s"] for summary in summaries) / len(summaries))
                tokens = summaries[0]["counts"]["tokens"]
    lines = []
    for name, walls in times.items():
        timing = Timing(tuple(walls))
        lines.append(BenchmarkRow(name, timing, {"tokens/s": f"{tokens / timing.median_s:,.0f}"}))
    return SpeedTable(f"perplexity of {tokens:,} tokens", lines, {"threads": threads, "repeats": repeats})


def _run_in_parallel(job: PerplexityJob, count: int) -> list[dict[str, Any]]:
    """Run copies of one job in parallel processes."""
    with ProcessPoolExecutor(count, mp_context=get_context("spawn")) as pool:
        return list(pool.map(_run_quietly, [replace(job, out=Path(f"{job.out}-{number}")) for number in range(count)]))


def _run_quietly(job: PerplexityJob) -> dict[str, Any]:
    return run_job(job, Console(stderr=True, quiet=True))


def _together(parts: list[Timing]) -> Timing:
    """Return the summed time of consecutive stages, round by round."""
    return Timing(
        tuple(map(sum, zip(*(part.wall_s for part in parts), strict=True))),
        tuple(map(sum, zip(*(part.cpu_s for part in parts), strict=True))),
    )


def _each_of(timing: Timing, count: int) -> Timing:
    """Return the time of one of `count` tasks that ran as a batch."""
    return Timing(
        tuple(seconds / count for seconds in timing.wall_s), tuple(seconds / count for seconds in timing.cpu_s)
    )


class _Writer:
    """Writer that puts one block as consecutive segments, like a job in one process, and reads it back like its
    reader."""

    def __init__(self, block: KVBlock, store: AbstractMemoryStore) -> None:
        self._block, self._store, self._segment = block, store, 0

    def next(self) -> None:
        first = self._segment
        self._segment += PUT_SEGMENTS
        self._store.put_all([_moved(self._block, segment) for segment in range(first, self._segment)])
        self._store.read(self._block.key, first, first + 1, ahead=PUT_SEGMENTS - 1)


class _Window:
    """Window buffer that appends one block repeatedly."""

    def __init__(self, block: KVBlock, model: LongMem) -> None:
        self._block, self._segment = block, 0
        self._buffer = WindowBuffer(2 * block.num_tokens, model.backbone.device, model.key_space)

    def next(self) -> None:
        self._buffer.append(_moved(self._block, self._segment))
        self._segment += 1


def _moved(block: KVBlock, segment: int) -> KVBlock:
    start = segment * block.fingerprint.segment_tokens
    return KVBlock(KEY, segment, start, block.tokens, block.keys, block.values, block.fingerprint)
