# SPDX-License-Identifier: Apache-2.0
"""Suffix job, from its options to its output folder.

file ─► examples ─► scores at every context length ─► journal ─► items.parquet, summary, report
"""

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import xxhash
from rich.console import Console

from actors.config import ClusterShape
from longmem.errors import ConfigError
from longmem.memory.window_cache import WindowCache
from longmem.model.longmem import LongMem
from longmem.model.source import ModelDescription, ModelSource
from longmem.runtime.executor import AbstractExecutor
from longmem.runtime.requests import Request
from pipelines.job.ask import RequestJob, ask_all, on_service
from pipelines.job.executors import where
from pipelines.job.journal import JOURNAL, AbstractJournal
from pipelines.job.runner import run_to_end
from pipelines.job.service import ServiceChoice
from pipelines.job.spec import JobContext
from pipelines.job.summary import about
from pipelines.suffix.data import SuffixExample, read_examples
from pipelines.suffix.figures import WAYS, chance, figures_by_length, is_correct
from pipelines.suffix.report import write_suffix_report
from pipelines.suffix.scoring import SuffixLengths, SuffixScore, score_example

ITEM_SCHEMA = pa.schema(
    [
        ("example", pa.string()),
        ("work", pa.string()),
        ("label", pa.int64()),
        ("context_tokens", pa.int64()),
        ("local_tokens", pa.int64()),
        ("memory_tokens", pa.int64()),
        ("suffix_tokens", pa.list_(pa.int64())),
        *((f"nll_{way}", pa.list_(pa.float64())) for way in WAYS),
        *((f"correct_{way}", pa.bool_()) for way in WAYS),
    ]
)
"""Columns of items.parquet: one row per example and context length; lists have one entry per candidate."""


@dataclass(frozen=True, kw_only=True)
class SuffixJob:
    """Validated options of the job. Raises ConfigError."""

    input: Path
    out: Path
    model: ModelSource
    lengths: SuffixLengths
    threads: int
    cluster: ClusterShape | None = None
    """Ray cluster and its workers; None runs everything in this process."""
    service: ServiceChoice | None = None
    """Running service whose model and pools replace those given here."""
    split: str | None = None
    """Split of a ChapterBreak file."""
    limit_examples: int | None = None
    resume: bool = False
    command: str = ""

    def __post_init__(self) -> None:
        for name in ("threads", "limit_examples"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"--{name.replace('_', '-')} must be at least 1, got {value}")


class SuffixJournal(AbstractJournal[list[SuffixScore]]):
    """Journal with one line per example: its scores at all context lengths."""

    def __init__(self, path: Path) -> None:
        self.scores: dict[str, list[SuffixScore]] = {}
        super().__init__(path)

    def _encode(self, record: list[SuffixScore]) -> dict[str, Any]:
        return {"scores": [asdict(score) for score in record]}

    def _decode(self, values: dict[str, Any]) -> list[SuffixScore]:
        return [SuffixScore(**score) for score in values["scores"]]

    def _accept(self, record: list[SuffixScore]) -> None:
        self.scores[record[0].example] = record


@dataclass(frozen=True)
class SuffixRequest(Request):
    """Request for the scores of one example at every context length. It reads no stored document."""

    example: SuffixExample
    lengths: SuffixLengths

    def answer(self, model: LongMem, windows: WindowCache) -> list[SuffixScore]:  # noqa: ARG002
        """Return the scores. Raises the errors of `score_example`."""
        return score_example(model, self.example, self.lengths)

    def __str__(self) -> str:
        return f"scores of example {self.example.id}"


def run_suffix(job: SuffixJob, console: Console) -> dict[str, Any]:
    """Run (or resume) a job and return its summary; see `pipelines.job.runner.run`."""
    job = on_service(job)
    return run_to_end(Suffix(job, read_examples(job.input, job.split)[: job.limit_examples]), console)


class Suffix(RequestJob[SuffixJob]):
    """Suffix identification by context length, with memory and without."""

    name = "suffix"

    def __init__(self, spec: SuffixJob, examples: list[SuffixExample]) -> None:
        super().__init__(spec)
        self._examples = examples

    def given(self) -> dict[str, Any]:
        return {
            "job": self.name,
            "examples": xxhash.xxh3_128_hexdigest(repr(self._examples).encode("utf-8")),
            "lengths": asdict(self._spec.lengths),
            "search": self._spec.model.search,
            "threads": self._spec.threads,
        }

    def run(self, context: JobContext[AbstractExecutor]) -> dict[str, Any]:
        spec, slices, start = self._spec, context.slices, time.perf_counter()
        # raises ConfigError before any example is scored
        spec.lengths.local_tokens(context.model.settings["segment_tokens"])
        with SuffixJournal(self.out / JOURNAL) as journal:
            num_resumed = len(journal.scores)
            left = [example for example in self._examples if example.id not in journal.scores]
            context.observer.planned("examples", len(self._examples), num_resumed)

            def answered(_: str, scores: list[SuffixScore], _busy_s: float) -> None:
                journal.add(scores)
                context.observer.advanced()
                # an example takes seconds, and an interruption loses the current one
                slices.record({"wall_s": time.perf_counter() - start})

            requests = ((example.id, SuffixRequest(example, spec.lengths)) for example in left)
            ask_all(context.worker, requests, context.observer, answered)
        flat = [score for example in self._examples for score in journal.scores[example.id]]
        wall_s = slices.total({"wall_s": time.perf_counter() - start})["wall_s"]
        summary = _summary(spec, flat, context.model, num_resumed, wall_s)
        context.folder.write_table("items.parquet", items_table(flat))
        write_suffix_report(self.out, summary)
        return summary


def items_table(scores: list[SuffixScore]) -> pa.Table:
    """Return the rows in the order of the file, by ascending context length."""
    rows = [{**asdict(score), **{f"correct_{way}": is_correct(score, way) for way in WAYS}} for score in scores]
    return pa.Table.from_pylist(rows, schema=ITEM_SCHEMA)


def _summary(
    job: SuffixJob, scores: list[SuffixScore], model: ModelDescription, num_resumed: int, wall_s: float
) -> dict[str, Any]:
    num_examples = len({score.example for score in scores})
    return {
        **about(job.command, model, where(job.cluster, job.threads), bool(num_resumed)),
        "input": job.input.name,
        "split": job.split,
        "suffix_tokens": job.lengths.suffix_tokens,
        "counts": {
            "examples": num_examples,
            "works": len({score.work for score in scores}),
            "resumed_examples": num_resumed,
            "examples_with_candidates_of_unequal_length": len(
                {score.example for score in scores if len(set(score.suffix_tokens)) > 1}
            ),
        },
        "chance": chance(scores),
        "lengths": [asdict(figures) for figures in figures_by_length(scores)],
        "wall_s": wall_s,
    }
