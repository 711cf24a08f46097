# SPDX-License-Identifier: Apache-2.0
"""Measurement of unit costs in this process, with the real model and a real store in a temporary folder."""

import os
import platform
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from itertools import cycle, islice
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter, process_time

import numpy as np
import psutil

from longmem.memory.window_cache import WindowCache
from longmem.model.longmem import LongMem
from longmem.model.source import ModelDescription, ModelSource, describe
from longmem.retrieval import choose_engine
from longmem.runtime.executor import PUT_SEGMENTS
from longmem.store.base import AbstractMemoryStore
from longmem.store.config import MemoryStore
from longmem.store.source import AbstractBlockSource
from longmem.text.language_reference import language_reference
from longmem.text.segments import cut_segments
from longmem.types import Document, DocumentKey, EncodedSegment, KVBlock, Segment, SegmentScore
from pipelines.job.executors import use_threads
from pipelines.job.summary import LIBRARIES
from pipelines.perplexity.journal import Journal
from pipelines.perplexity.records import score_record, start_record
from pipelines.plan.costs import Cost, CostLine, ScoreCost, UnitCosts
from pipelines.plan.processes import folder_bytes

MIN_REPETITIONS = 3
MAX_REPETITIONS = 15
MIN_PUTS = 4 * (1 + PUT_SEGMENTS)
LEVELS = (0.0, 0.125, 0.25, 0.5, 0.75, 1.0)
"""Fill levels of the window, as shares, at which scoring is measured."""
SINGLE_READS = 2
"""Blocks that are read one by one before each level."""
KEY = DocumentKey("plan", "measured")


def identity_of(model: ModelDescription, source: ModelSource, threads: int) -> dict[str, object]:
    """Return the identity of costs: model, settings, search engine, device and threads."""
    return {
        "fingerprint": asdict(model.fingerprint),
        "sidenet": model.sidenet,
        "settings": model.settings,
        "search": choose_engine(source.search, source.device),
        "device": source.device,
        "threads": threads,
    }


def measure_apart(source: ModelSource, threads: int, budget_s: float) -> UnitCosts:
    """Run `measure_costs` in a separate process and return its result.

    The memory of that process is that of a worker. LanceDB, which is not fork-safe, is not loaded into a process that
    may start Ray later. Raises the errors of `measure_costs`.
    """
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as child:
        return child.submit(measure_costs, source, threads, budget_s).result()


def measure_costs(source: ModelSource, threads: int, budget_s: float) -> UnitCosts:
    """Measure the unit costs of a model in this process and set torch's number of threads.

    Takes about `budget_s`, or longer if the minimum repetitions of slow operations need it. Raises ModelError,
    ConfigError, StoreError (no space in the temporary folder).
    """
    use_threads(threads)
    start = perf_counter()
    model = source.open()
    load_s = perf_counter() - start
    start = perf_counter()
    sequence = model.tokenizer.sequence(language_reference().text)
    tokenise_s = (perf_counter() - start) / len(sequence)
    size, memory = model.config.segment_tokens, model.config.memory_tokens
    segments = [segment for segment in cut_segments(KEY, sequence, size) if segment.num_tokens == size]
    loaded_bytes = psutil.Process().memory_info().rss
    model.encode(segments[0], prepare=True)  # the first forward allocates
    worker_bytes = max(0, psutil.Process().memory_info().rss - loaded_bytes)
    encoded, encode, prepare = _encode(model, segments, budget_s / 4)
    with TemporaryDirectory(prefix="longmem-plan-") as folder, MemoryStore.open(Path(folder) / "memory.lance") as store:
        full = -(-memory // size)
        repetitions = MAX_REPETITIONS if encode.wall_s * 6 * MAX_REPETITIONS < budget_s / 2 else MIN_REPETITIONS
        stored, put, put_more = _put(store, encoded, max(MIN_PUTS, full + repetitions), budget_s / 2)
        overhead = folder_bytes(Path(folder)) / (stored * encoded[0].block.num_bytes)
        process_bytes = psutil.Process().memory_info().rss
        scores = _Scores(model, store, segments, encoded)
        scores.measure(min(full, stored), repetitions)
        if memory:
            scores.fetch_beyond(stored)
        record, record_bytes = _record(scores.last, Path(folder) / "journal.jsonl")
        forget = _Timer()
        with forget.timed():
            store.delete(KEY)
    return UnitCosts(
        identity=identity_of(describe(model), source, threads),
        environment=environment(),
        segment_tokens=size,
        memory_tokens=memory,
        encode=encode,
        prepare=prepare,
        put=put if memory else NOTHING,
        put_more=put_more if memory else NOTHING,
        read=scores.read,
        read_more=scores.read_more,
        score=scores.cost(),
        record=record,
        forget=forget.cost() if memory else NOTHING,
        tokenise_s=tokenise_s,
        load_s=load_s,
        block_bytes=encoded[0].block.num_bytes,
        state_bytes=encoded[0].state.nbytes,
        window_bytes=scores.window_bytes,
        store_overhead=overhead,
        record_bytes=record_bytes,
        process_bytes=process_bytes,
        worker_bytes=worker_bytes,
    )


def environment() -> dict[str, object]:
    """Return a description of the machine and library versions, for which the times hold."""
    return {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "ram_bytes": psutil.virtual_memory().total,
        "load_average_1min": os.getloadavg()[0],
        "python": platform.python_version(),
        "versions": {name: version(name) for name in LIBRARIES},
    }


@dataclass
class _Timer:
    """Timer that collects wall and CPU seconds of repetitions."""

    wall_s: list[float] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)

    @contextmanager
    def timed(self) -> Iterator[None]:
        wall, cpu = perf_counter(), process_time()
        yield
        self.wall_s.append(perf_counter() - wall)
        self.cpu_s.append(process_time() - cpu)

    def cost(self) -> Cost:
        """Return the medians and the relative interquartile range."""
        low, high = np.quantile(self.wall_s, [0.25, 0.75])
        middle = median(self.wall_s)
        return Cost(middle, median(self.cpu_s), float((high - low) / middle) if middle else 0.0, len(self.wall_s))

    def mean_of_medians(self, parts: int = 8) -> Cost:
        """Return the mean of medians of consecutive parts, for costs that grow with repetitions.

        This excludes outliers and keeps the trend.
        """
        wall, cpu = (np.array_split(np.array(times), min(parts, len(times))) for times in (self.wall_s, self.cpu_s))
        spread = np.mean([np.subtract(*np.quantile(part, [0.75, 0.25])) / np.median(part) for part in wall])
        return Cost(
            float(np.mean([np.median(part) for part in wall])),
            float(np.mean([np.median(part) for part in cpu])),
            float(spread),
            len(self.wall_s),
        )


NOTHING = Cost(0.0, 0.0, 0.0, 0)
"""Cost of store operations of a job without memory."""


def _encode(model: LongMem, segments: Sequence[Segment], budget_s: float) -> tuple[list[EncodedSegment], Cost, Cost]:
    """Return encoded segments, the cost of one, and the additional cost of preparing it."""
    timer, prepared, encoded = _Timer(), _Timer(), []
    for segment in islice(cycle(segments), MAX_REPETITIONS):
        with timer.timed():
            encoded.append(model.encode(segment))
        with prepared.timed():
            model.encode(segment, prepare=True)
        if len(encoded) >= MIN_REPETITIONS and sum(timer.wall_s) + sum(prepared.wall_s) > budget_s:
            break
    encode, both = timer.cost(), prepared.cost()
    wall_s, cpu_s = (max(0.0, getattr(both, name) - getattr(encode, name)) for name in ("wall_s", "cpu_s"))
    return encoded, encode, Cost(wall_s, cpu_s, both.spread, both.repetitions)


def _put(
    store: AbstractMemoryStore, encoded: Sequence[EncodedSegment], count: int, budget_s: float
) -> tuple[int, Cost, Cost]:
    """Write the encoded blocks repeatedly as one long document, alternating single blocks and batches.

    Return the number of blocks, the cost of a single one, and that of each further one in a batch.
    """
    alone, together = _Timer(), _Timer()
    stored = 0
    while stored < count and (stored < MIN_PUTS or sum(alone.wall_s) + sum(together.wall_s) <= budget_s):
        for timer, number in ((alone, 1), (together, PUT_SEGMENTS)):
            blocks = [encoded[index % len(encoded)].block for index in range(stored, stored + number)]
            moved = [
                replace(block, segment=stored + index, start_token=(stored + index) * block.num_tokens)
                for index, block in enumerate(blocks)
            ]
            with timer.timed():
                store.put_all(moved)
            stored += number
    # the first put creates the tables
    alone.wall_s.pop(0)
    alone.cpu_s.pop(0)
    one, several = alone.mean_of_medians(), together.mean_of_medians()
    wall_s, cpu_s = (
        max(0.0, getattr(several, name) - getattr(one, name)) / (PUT_SEGMENTS - 1) for name in ("wall_s", "cpu_s")
    )
    return stored, one, Cost(wall_s, cpu_s, several.spread, several.repetitions)


class _OneByOne(AbstractBlockSource):
    """Block source without read-ahead, like a store whose writer is barely ahead of the reader."""

    def __init__(self, store: AbstractMemoryStore) -> None:
        self._store = store

    def read(
        self,
        key: DocumentKey,
        first_segment: int,
        last_segment: int,
        *,
        ahead: int = 0,  # noqa: ARG002 - never read ahead
    ) -> list[KVBlock]:
        return self._store.read(key, first_segment, last_segment)


class _Scores:
    """Measurement of scoring at several fill levels of the window, reading the past like a reader worker."""

    def __init__(
        self,
        model: LongMem,
        store: AbstractMemoryStore,
        segments: Sequence[Segment],
        encoded: Sequence[EncodedSegment],
    ) -> None:
        self._model = model
        self._segments = segments
        self._encoded = encoded
        self._cache = WindowCache(
            _OneByOne(store),
            model.config.segment_tokens,
            model.config.memory_tokens,
            device=model.backbone.device,
            key_space=model.key_space,
        )
        self._levels: dict[int, _Timer] = {}
        self._read = _Timer()
        self._many = _Timer()
        self._many_blocks = 0
        self._fetched = 0
        self.last: tuple[Segment, SegmentScore, EncodedSegment]

    def measure(self, full: int, repetitions: int) -> None:
        """Measure all levels. `full` is the number of segments in a full window, or of stored segments if less."""
        self._score(0, repetitions)
        for share in LEVELS[1:]:
            index = max(1, round(share * full))
            if full and index not in self._levels:
                self._fetch_many(index - SINGLE_READS)
                self._fetch_each(index)
                self._score(index, repetitions)

    def fetch_beyond(self, stored: int) -> None:
        """Continue to read block by block with a full window."""
        self._fetch_each(stored)

    @property
    def window_bytes(self) -> int:
        """Bytes of a full window in memory."""
        return self._cache.num_bytes - self._cache.file_bytes

    @property
    def read(self) -> Cost:
        return self._read.cost() if self._read.wall_s else NOTHING

    @property
    def read_more(self) -> Cost:
        if not self._many_blocks:
            return self.read
        wall, cpu = sum(self._many.wall_s), sum(self._many.cpu_s)
        return Cost(wall / self._many_blocks, cpu / self._many_blocks, 0.0, self._many_blocks)

    def cost(self) -> ScoreCost:
        """Return lines through the levels with memory; fewer than two levels give a constant."""
        size = self._model.config.segment_tokens
        costs = {index * size: timer.cost() for index, timer in self._levels.items()}
        empty = costs.pop(0)
        levels = tuple(costs.items()) or ((0, empty),)
        tokens = np.array([window_tokens for window_tokens, _ in levels], dtype=np.float64)
        lines = [_line(tokens, np.array([getattr(cost, name) for _, cost in levels])) for name in ("wall_s", "cpu_s")]
        measured = np.array([cost.wall_s for _, cost in levels])
        residual = float(np.max(np.abs(lines[0].at(tokens) - measured) / measured))
        return ScoreCost(empty, lines[0], lines[1], residual, levels)

    def _fetch_many(self, index: int) -> None:
        if index > self._fetched:
            with self._many.timed():
                self._cache.view(KEY, index)
            self._many_blocks += index - self._fetched
            self._fetched = index

    def _fetch_each(self, index: int) -> None:
        for step in range(self._fetched + 1, index + 1):
            with self._read.timed():
                self._cache.view(KEY, step)
            self._fetched = step

    def _score(self, index: int, repetitions: int) -> None:
        view = self._cache.view(KEY, index)
        start = index * self._model.config.segment_tokens
        timer = self._levels.setdefault(index, _Timer())
        for number, encoded in enumerate(islice(cycle(self._encoded), repetitions + 1)):
            segment = replace(self._segments[number % len(self._encoded)], index=index, start_token=start)
            with timer.timed():
                score = self._model.score_segment(
                    segment, encoded.block.keys, encoded.state, view, encoded.backbone_logprobs
                )
            self.last = segment, score, encoded
        # the first repetition of a level allocates
        timer.wall_s.pop(0)
        timer.cpu_s.pop(0)


def _line(tokens: np.ndarray, seconds: np.ndarray) -> CostLine:
    """Fit a line by least squares of the relative errors."""
    if len(tokens) < 2:
        return CostLine(float(seconds[0]), 0.0)
    slope, base = np.polyfit(tokens, seconds, 1, w=1 / np.maximum(seconds, 1e-9))
    return CostLine(float(base), float(slope))


def _record(last: tuple[Segment, SegmentScore, EncodedSegment], path: Path) -> tuple[Cost, int]:
    """Return cost and bytes of writing one result."""
    segment, score, encoded = last
    timer = _Timer()
    document = Document(KEY.document, "measured", "longmem plan")
    with Journal(path) as journal:
        journal.add(start_record(document, 0, [segment], 0))
        before = path.stat().st_size
        for index in range(MAX_REPETITIONS):
            with timer.timed():
                record = score_record(replace(segment, index=index), score, encoded.backbone_logprobs, None)
                journal.add(record)
        return timer.cost(), (path.stat().st_size - before) // MAX_REPETITIONS


def _cpu_name() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
