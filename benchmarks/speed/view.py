# SPDX-License-Identifier: Apache-2.0
"""The page of `longmem view` over one long document: seconds until something is seen, and bytes that are sent for it.

The job is synthetic: random text, log-probabilities and places, in the tables that a job writes.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from signal import SIGINT
from subprocess import DEVNULL, PIPE, Popen
from tempfile import TemporaryDirectory
from time import perf_counter
from urllib.request import urlopen

import numpy as np

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


def view(num_tokens: int, repeats: int) -> SpeedTable:
    """Time what a person waits for; the ratio is to the start of the server.

    A new server and a new window are used in each round, so that neither holds anything.
    """
    with TemporaryDirectory(prefix="longmem-view-") as name:
        folder = Path(name)
        write_run(folder, num_tokens)
        stored = {path.name: path.stat().st_size for path in folder.iterdir()}
        seconds: dict[str, list[float]] = {}
        sent: dict[str, int] = {}
        for turn in range(repeats + 1):
            for case, took_s, num_bytes in _round(folder, num_tokens):
                if turn:
                    seconds.setdefault(case, []).append(took_s)
                    sent[case] = num_bytes
    lines = [BenchmarkRow(case, Timing(tuple(took)), _note(sent[case])) for case, took in seconds.items()]
    not_run = {} if CHROMIUM and DRIVER else {"in the browser": "no Chromium and chromedriver here"}
    settings = {"tokens": num_tokens, "repeats": repeats, "stored_bytes": stored}
    return SpeedTable(f"longmem view over {num_tokens:,} tokens", lines, settings, not_run)


def _note(num_bytes: int) -> dict[str, str]:
    return {"kB sent": f"{num_bytes / 1000:,.0f}" if num_bytes else ""}


def _round(folder: Path, num_tokens: int) -> Iterator[tuple[str, float, int]]:
    """Yield name, seconds and bytes of each case."""
    began = perf_counter()
    with _served(folder) as url:
        yield "server, from its start to its address", perf_counter() - began, 0
        middle = num_tokens // 2
        for case, query in {
            "answer: page of 2,000 tokens": f"page?document=0&first={middle}&count=2000",
            "answer: one token": f"token?document=0&position={middle + 999}",
            "answer: tokens that gained most": "extremes?document=0&sign=1",
        }.items():
            began = perf_counter()
            with urlopen(url + query) as reply:
                num_bytes = len(reply.read())
            yield case, perf_counter() - began, num_bytes
    if CHROMIUM is None or DRIVER is None:
        return
    with _served(folder) as url, opened_browser() as browser:
        browser.look(1280, 860)
        yield "browser: first paint", *_seen(browser, lambda: browser.open(url), "performance.now() > 0", first_paint)
        browser.open("about:blank")
        yield "browser: text of the first page", *_seen(browser, lambda: browser.open(url), SHOWN)
        jump = f"location.hash = '#d=0&t={middle + 999}'"
        there = "document.querySelector('#text .chosen') && document.querySelector('#panel .where')"
        yield "browser: jump to the middle", *_seen(browser, lambda: browser.run(jump), there)
        lost = "document.querySelectorAll('#panel li').length === 200"
        yield "browser: tokens that lost most", *_seen(browser, lambda: browser.click("#tab-lost"), lost)


def _seen(
    browser: Browser, act: Callable[[], object], condition: str, own: Callable[[Browser], float] | None = None
) -> tuple[float, int]:
    """Return the seconds from an action until a condition holds in the page, and the bytes that it has got by then."""
    before = int(browser.run(SENT))
    began = perf_counter()
    act()
    browser.wait(condition)
    took_s = perf_counter() - began if own is None else own(browser)
    after = int(browser.run(SENT))
    return took_s, after - before if after >= before else after


def first_paint(browser: Browser) -> float:
    """Return the seconds from navigation to the first content that the browser itself reports."""
    found = "performance.getEntriesByName('first-contentful-paint')[0]?.startTime"
    return float(browser.wait(found)) / 1000


@contextmanager
def _served(folder: Path) -> Iterator[str]:
    """Run `longmem view` and yield its address."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [*PROGRAM, "view", str(folder), "--no-open"]
    with Popen(command, stdout=PIPE, stderr=DEVNULL, text=True, env=environment) as server:
        assert server.stdout is not None
        try:
            yield server.stdout.readline().strip()
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
