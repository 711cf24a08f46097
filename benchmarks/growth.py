# SPDX-License-Identifier: Apache-2.0
"""Does a document cost more the longer it gets? One very long document through the main job, in one process.

Two claims are checked, both against the second 100,000 tokens, when the window is full. Memory: the process never
needs more, while it works on a segment and after it. Time: the last 100,000 take as long per token.
"""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter, process_time
from typing import Any

import psutil
import torch
from rich.console import Console

from longmem.errors import ConfigError
from longmem.model.source import ModelSource
from longmem.runtime.executor import Completion
from longmem.runtime.inline_executor import InlineExecutor
from longmem.runtime.scheduler import SegmentScheduler
from longmem.store.config import MemoryStore
from longmem.synthetic.memory import tokens_of
from longmem.text.documents import find_files, read_documents
from longmem.text.language_reference import language_reference
from longmem.types import Document
from pipelines.job.executors import default_limits, least_in_flight
from pipelines.job.prefetch import DocumentFeed
from pipelines.job.progress import JobProgress
from pipelines.perplexity.journal import Journal
from pipelines.perplexity.run import PerplexityRun

SPAN_TOKENS = 100_000
MAX_SLOWDOWN = 1 / 0.95
MAX_MEMORY_GROWTH = 1.02
FORGET_PEAK = Path("/proc/self/clear_refs")


@dataclass(frozen=True)
class Sample:
    """State of the process when so many tokens were scored."""

    scored_tokens: int
    wall_s: float
    cpu_s: float
    rss_bytes: int
    peak_bytes: int
    """The most that was resident since the sample before."""


class SampledExecutor(InlineExecutor):
    """The ordinary in-process executor, looking at the clock after every scored segment."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._samples = array("d")
        """Fields of one sample after the other: 40 bytes a segment, where objects would take 300."""
        self._process = psutil.Process()
        self._scored_tokens = 0

    def wait(self, timeout_s: float) -> list[Completion]:
        completions = super().wait(timeout_s)
        for completion in completions:
            if completion.stage == "score" and completion.error is None:
                self._scored_tokens += completion.segment.num_tokens
                rss = self._process.memory_info().rss
                peak = _new_peak_bytes()
                self._samples.extend((self._scored_tokens, perf_counter(), process_time(), rss, peak))
        return completions

    @property
    def samples(self) -> list[Sample]:
        """Return a sample for each scored segment."""
        fields = iter(self._samples)
        return [
            Sample(int(tokens), wall_s, cpu_s, int(rss), int(peak))
            for tokens, wall_s, cpu_s, rss, peak in zip(*[fields] * 5, strict=True)
        ]


def _new_peak_bytes() -> int:
    """The most that was resident since the last call, by Linux. Without that, tokenising a long document would be the
    peak of all that follows."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    peak_kib = next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
    FORGET_PEAK.write_text("5", encoding="utf-8")
    return 1024 * peak_kib


def run(tokens: int, inputs: Sequence[str], model: Path, threads: int, console: Console) -> dict[str, Any]:
    """Score one document of `tokens` tokens; returns figures, samples and verdicts. Raises ConfigError where the system
    cannot say what a process needed since it was last asked."""
    if not FORGET_PEAK.exists():
        raise ConfigError(f"growth needs Linux: there is no {FORGET_PEAK} here")
    torch.set_num_threads(threads)
    source = ModelSource(str(model))
    document = long_document(tokens, inputs, source)
    with TemporaryDirectory(prefix="longmem-growth-") as folder:
        executor = SampledExecutor(source.open(), MemoryStore.open(Path(folder) / "memory.lance"))
        with executor, Journal(Path(folder) / "journal.jsonl") as journal, JobProgress(console) as progress:
            described = executor.describe()
            segment_tokens, memory_tokens = described.settings["segment_tokens"], described.settings["memory_tokens"]
            scheduler = SegmentScheduler(
                default_limits(None).for_segments_of(described.segment_bytes, least_in_flight(None)),
                described.segment_bytes,
                segment_tokens,
                memory_tokens,
                write=True,
            )
            job = PerplexityRun(
                executor,
                scheduler,
                journal,
                progress,
                keep_memory=False,
                keep_tokens=False,
                num_unscored_tokens=0,
                admit_below=1,
            )
            tokenizer = source.open_tokenizer()
            feed = DocumentFeed(iter([document]), tokenizer, segment_tokens, "growth", needs_work=lambda _: True)
            job.run(feed)
            feed.close()
    return {"model": described.name, "threads": threads, **_figures(executor.samples, memory_tokens)}


def long_document(tokens: int, inputs: Sequence[str], source: ModelSource) -> Document:
    """Real text, cut to length; repeated where the inputs (or the language reference) are too short."""
    documents = read_documents(find_files(inputs)) if inputs else iter([language_reference()])
    tokenizer = source.open_tokenizer()
    ids: list[int] = []
    for document in documents:
        # one by one, because a tokenizer takes some hundred bytes for each token of a text
        if isinstance(document, Document):
            ids += tokens_of(tokenizer, f"{document.text}\n\n").tolist()
        if len(ids) >= tokens:
            break
    repeated = (ids * (tokens // len(ids) + 1))[:tokens]
    return Document("growth", tokenizer.decode(repeated), "benchmarks.growth")


def _figures(samples: list[Sample], memory_tokens: int) -> dict[str, Any]:
    last = samples[-1].scored_tokens
    second = _span(samples, SPAN_TOKENS, 2 * SPAN_TOKENS)
    final = _span(samples, last - SPAN_TOKENS, last)
    slowdown = final["cpu_s_per_1k_tokens"] / second["cpu_s_per_1k_tokens"]
    full = [sample for sample in samples if SPAN_TOKENS < sample.scored_tokens <= 2 * SPAN_TOKENS]
    later = [sample for sample in samples if sample.scored_tokens > 2 * SPAN_TOKENS]
    rss_second, rss_later = (max(sample.rss_bytes for sample in span) for span in (full, later))
    peak_second, peak_later = (max(sample.peak_bytes for sample in span) for span in (full, later))
    tenth = -(-len(later) // 10)
    first_tenth, last_tenth = (median(each.rss_bytes for each in part) for part in (later[:tenth], later[-tenth:]))
    rss_growth, peak_growth = rss_later / rss_second, peak_later / peak_second
    return {
        "tokens": last,
        "memory_tokens": memory_tokens,
        "second_span": second,
        "last_span": final,
        "slowdown_cpu": slowdown,
        "slowdown_wall": final["wall_s_per_1k_tokens"] / second["wall_s_per_1k_tokens"],
        "rss_bytes_second_span": rss_second,
        "rss_bytes_later": rss_later,
        "rss_growth": rss_growth,
        "peak_bytes_second_span": peak_second,
        "peak_bytes_later": peak_later,
        "peak_growth": peak_growth,
        "rss_median_first_tenth": first_tenth,
        "rss_median_last_tenth": last_tenth,
        "passed": slowdown <= MAX_SLOWDOWN and max(rss_growth, peak_growth) <= MAX_MEMORY_GROWTH,
        "samples": [vars(sample) for sample in samples[:: max(1, len(samples) // 200)]],
    }


def _span(samples: list[Sample], first: int, last: int) -> dict[str, float]:
    """Time per 1,000 tokens from the first to the last sample of an interval of scored tokens."""
    inside = [sample for sample in samples if first <= sample.scored_tokens <= last]
    tokens = inside[-1].scored_tokens - inside[0].scored_tokens
    return {
        "wall_s_per_1k_tokens": 1000 * (inside[-1].wall_s - inside[0].wall_s) / tokens,
        "cpu_s_per_1k_tokens": 1000 * (inside[-1].cpu_s - inside[0].cpu_s) / tokens,
    }
