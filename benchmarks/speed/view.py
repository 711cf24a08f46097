# SPDX-License-Identifier: Apache-2.0
"""The page of `longmem view` over one long document: seconds until something is seen, and bytes that are sent for it.

The job is synthetic: random text, log-probabilities and places, in the tables that a job writes.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from signal import SIGINT
from statistics import median
from subprocess import DEVNULL, PIPE, Popen
from tempfile import TemporaryDirectory
from time import perf_counter
from urllib.request import urlopen

import numpy as np
from psutil import Process

from benchmarks.browser import CHROMIUM, DRIVER, Browser, opened_browser
from benchmarks.speed.startup import PROGRAM, ROOT
from benchmarks.speed.table import BenchmarkRow, SpeedTable
from benchmarks.speed.timing import Timing
from longmem.text.segments import cut_passages, cut_segments
from longmem.types import PLACES, DocumentKey, TokenReadings
from pipelines.job.output import write_json, write_table
from pipelines.perplexity.records import SegmentRecord, TokenScores
from pipelines.perplexity.tables import GROUP_ROWS, segments_table, tables_of_tokens

SEGMENT_TOKENS = 1024
WORD_LENGTHS = (2, 8)
SHOWN = "document.querySelectorAll('#text [data-at]').length >= 1000"
SENT = """
const entries = [...performance.getEntriesByType("navigation"), ...performance.getEntriesByType("resource")];
return entries.reduce((sum, each) => sum + each.encodedBodySize, 0);
"""


@dataclass(frozen=True)
class Measured:
    """One wait of a person."""

    case: str
    wall_s: float
    server_cpu_s: float
    """CPU seconds of the server meanwhile."""
    num_bytes: int = 0
    """Bytes that the page got, or those of the answer."""


def view(num_tokens: int, repeats: int) -> SpeedTable:
    """Time what a person waits for; the ratio is to the start of the server.

    A new server and a new window are used in each round, so that neither holds anything.
    """
    with TemporaryDirectory(prefix="longmem-view-") as name:
        folder = Path(name)
        write_run(folder, num_tokens)
        stored = {path.name: path.stat().st_size for path in folder.iterdir()}
        measured: dict[str, list[Measured]] = {}
        for turn in range(repeats + 1):
            for each in _round(folder, num_tokens):
                if turn:
                    measured.setdefault(each.case, []).append(each)
    lines = [
        BenchmarkRow(case, Timing(tuple(each.wall_s for each in rounds)), _notes(rounds))
        for case, rounds in measured.items()
    ]
    not_run = {} if CHROMIUM and DRIVER else {"in the browser": "no Chromium and chromedriver here"}
    settings = {"tokens": num_tokens, "repeats": repeats, "stored_bytes": stored}
    return SpeedTable(f"longmem view over {num_tokens:,} tokens", lines, settings, not_run)


def _notes(rounds: list[Measured]) -> dict[str, str]:
    sent = rounds[-1].num_bytes
    cpu_ms = 1000 * median(each.server_cpu_s for each in rounds)
    return {"server CPU ms": f"{cpu_ms:,.0f}", "kB sent": f"{sent / 1000:,.0f}" if sent else ""}


def _round(folder: Path, num_tokens: int) -> Iterator[Measured]:
    """Yield the cases in the order in which a person meets them."""
    began = perf_counter()
    with _served(folder) as (url, server):
        yield Measured("server, from its start to its address", perf_counter() - began, _cpu_s(server))
        middle = num_tokens // 2
        for case, query in {
            "answer: page of 2,000 tokens": f"page?document=0&first={middle}&count=2000",
            "answer: one token": f"token?document=0&position={middle + 999}",
            "answer: tokens that gained most": "extremes?document=0&sign=1",
        }.items():
            before, began = _cpu_s(server), perf_counter()
            with urlopen(url + query) as reply:
                num_bytes = len(reply.read())
            yield Measured(case, perf_counter() - began, _cpu_s(server) - before, num_bytes)
    if CHROMIUM is None or DRIVER is None:
        return
    with _served(folder) as (url, server), opened_browser() as browser:
        browser.look(1280, 860)

        def seen(case: str, act: Callable[[], object], condition: str) -> Measured:
            """Measure from an action until a condition holds in the page, and the bytes that it has got by then."""
            bytes_before, cpu_before, began = int(browser.run(SENT)), _cpu_s(server), perf_counter()
            act()
            browser.wait(condition)
            wall_s, bytes_after = perf_counter() - began, int(browser.run(SENT))
            num_bytes = bytes_after - bytes_before if bytes_after >= bytes_before else bytes_after
            return Measured(case, wall_s, _cpu_s(server) - cpu_before, num_bytes)

        first = seen("browser: text of the first page", lambda: browser.open(url), SHOWN)
        yield replace(first, case="browser: first paint", wall_s=first_paint(browser))
        yield first
        jump = f"location.hash = '#d=0&t={middle + 999}'"
        there = "document.querySelector('#text .chosen') && document.querySelector('#panel .where')"
        yield seen("browser: jump to the middle", lambda: browser.run(jump), there)
        lost = "document.querySelectorAll('#panel li').length === 200"
        yield seen("browser: tokens that lost most", lambda: browser.click("#tab-lost"), lost)


def _cpu_s(server: Process) -> float:
    used = server.cpu_times()
    return float(used.user + used.system)


def first_paint(browser: Browser) -> float:
    """Return the seconds from navigation to the first content that the browser itself reports."""
    found = "performance.getEntriesByName('first-contentful-paint')[0]?.startTime"
    return float(browser.wait(found)) / 1000


@contextmanager
def _served(folder: Path) -> Iterator[tuple[str, Process]]:
    """Run `longmem view` and yield its address and process."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [*PROGRAM, "view", str(folder), "--no-open"]
    with Popen(command, stdout=PIPE, stderr=DEVNULL, text=True, env=environment) as server:
        assert server.stdout is not None
        try:
            yield server.stdout.readline().strip(), Process(server.pid)
        finally:
            server.send_signal(SIGINT)


def write_run(folder: Path, num_tokens: int) -> None:
    """Write the tables of a job over one document of random words."""
    random = np.random.default_rng(0)
    lengths = random.integers(*WORD_LENGTHS, num_tokens)
    letters = random.choice(list("etaoinshrdlu"), int(lengths.sum()))
    ends = lengths.cumsum()
    letters[ends - lengths] = " "
    letters[(ends - lengths)[::200]] = "\n"
    spans = np.stack([ends - lengths, ends], axis=1).astype(np.int32)
    spans = np.concatenate([np.zeros((1, 2), np.int32), spans])
    segments = cut_segments(DocumentKey("", "long"), np.arange(len(spans), dtype=np.int32), SEGMENT_TOKENS)
    records = []
    for segment, passage in zip(segments, cut_passages("".join(letters), spans, segments), strict=True):
        count, memory = len(segment.targets), segment.start_token
        own, change, copied = -random.exponential(4, count), random.laplace(0.2, 0.6, count), random.random(count)
        backbone, longmem = own.astype(np.float32), np.minimum(own + change, 0).astype(np.float32)
        weights = -np.sort(-random.dirichlet([0.5] * (PLACES + 1), count)[:, :PLACES])
        readings = TokenReadings(
            copy_share=(copied**3).astype(np.float32),
            uncopied=backbone,
            copied=copied.astype(np.float32),
            places=random.integers(1, memory, (count, PLACES), np.int32) if memory else _no_places(count),
            weights=weights.astype(np.float32) if memory else np.zeros((count, PLACES), np.float32),
            runs=random.integers(0, 17, (count, PLACES), np.uint8),
            blocks=np.empty((0, 2), np.int32),
        )
        records.append(
            SegmentRecord(
                document="long",
                segment=segment.index,
                start_token=segment.start_token,
                num_tokens=count,
                nll_longmem=-float(longmem.sum(dtype=np.float64)),
                nll_backbone=-float(backbone.sum(dtype=np.float64)),
                memory_tokens=memory,
                gate_mean=0.0,
                copy_mean=0.2,
                distance_mean=0.0,
                empty_slots=0,
                distance_histogram=[],
                chunks_digest="",
                tokens=TokenScores(
                    targets=segment.targets,
                    logprobs_longmem=longmem,
                    logprobs_backbone=backbone,
                    readings=readings,
                    passage=passage,
                ),
            )
        )
    for name, table in {"segments": segments_table(records), **tables_of_tokens(records, None, print)}.items():
        write_table(folder / f"{name}.parquet", table, GROUP_ROWS.get(name))
    settings = {"copy_head": True, "memory_layers": "one"}
    write_json(folder / "summary.json", {"model": {"name": "synthetic"}, "perplexity": {}, "settings": settings})


def _no_places(count: int) -> np.ndarray:
    return np.full((count, PLACES), -1, np.int32)
