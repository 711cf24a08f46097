# SPDX-License-Identifier: Apache-2.0
"""Suffix job, from its options to its output folder.

file ─► examples ─► scores at every context length ─► journal ─► tables, summary, report
"""

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import xxhash
from rich.console import Console

from actors.config import ClusterShape
from longmem.errors import ConfigError
from longmem.memory.window_cache import WindowCache
from longmem.model.longmem import LongMem
from longmem.model.source import ModelDescription, ModelSource
from longmem.runtime.executor import AbstractExecutor
from longmem.runtime.requests import Request
from longmem.types import TokenReadings
from pipelines.job.ask import RequestJob, ask_all, on_service
from pipelines.job.executors import where
from pipelines.job.inputs import check_spans
from pipelines.job.journal import JOURNAL, AbstractJournal, packed, unpacked
from pipelines.job.runner import run_to_end
from pipelines.job.service import ServiceChoice
from pipelines.job.spec import JobContext
from pipelines.job.summary import about
from pipelines.suffix.data import SuffixExample, read_examples
from pipelines.suffix.figures import chance, figures_by_length
from pipelines.suffix.scoring import CandidateReadings, SuffixLengths, SuffixScore, score_example
from pipelines.suffix.tables import GROUP_ROWS, items_table, readings_table, texts_table


@dataclass(frozen=True, kw_only=True)
class SuffixJob:
    """Validated options of the job. Raises ConfigError."""

    input: Path
    out: Path
    model: ModelSource
    lengths: SuffixLengths
    threads: int
    """Torch threads of each worker."""
    workers: int = 1
    """Workers of a job in this process."""
    cluster: ClusterShape | None = None
    """Ray cluster and its workers; None runs everything in this process."""
    service: ServiceChoice | None = None
    """Running service whose model and pools replace those given here."""
    split: str | None = None
    """Split of a ChapterBreak file."""
    limit_examples: int | None = None
    resume: bool = False
    command: str = ""
    keep_tokens: bool = False
    """True to write what each token of every candidate read."""

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
        return {"scores": [_values_of(score) for score in record]}

    def _decode(self, values: dict[str, Any]) -> list[SuffixScore]:
        return [_score_of(score) for score in values["scores"]]

    def _accept(self, record: list[SuffixScore]) -> None:
        self.scores[record[0].example] = record


def _values_of(score: SuffixScore) -> dict[str, Any]:
    kept = score.readings
    return {**vars(score), "readings": None if kept is None else list(map(packed, kept))}


def _score_of(values: dict[str, Any]) -> SuffixScore:
    if "nll_alone" not in values:
        raise ConfigError(
            "the journal is of an earlier version of longmem, which did not score candidates without a context: score "
            "the examples again, with another --out"
        )
    # absent in journals of earlier versions
    kept = values.get("readings")
    return SuffixScore(**{**values, "readings": None if kept is None else list(map(_readings_of, kept))})


def _readings_of(values: dict[str, Any]) -> CandidateReadings:
    fields = unpacked(values)
    return CandidateReadings(**{**fields, "readings": TokenReadings(**fields["readings"])})


@dataclass(frozen=True)
class SuffixRequest(Request):
    """Request for the scores of one example at every context length. It reads no stored document."""

    example: SuffixExample
    lengths: SuffixLengths
    keep_readings: bool = False

    def answer(self, model: LongMem, windows: WindowCache) -> list[SuffixScore]:  # noqa: ARG002
        """Return the scores. Raises the errors of `score_example`."""
        return score_example(model, self.example, self.lengths, self.keep_readings)

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
            # absent without, as in jobs of earlier versions
            **({"keep_tokens": True} if self._spec.keep_tokens else {}),
        }

    def run(self, context: JobContext[AbstractExecutor]) -> dict[str, Any]:
        spec, slices, start = self._spec, context.slices, time.perf_counter()
        # raises ConfigError before any example is scored
        spec.lengths.local_tokens(context.model.settings["segment_tokens"])
        if spec.keep_tokens:
            check_spans(context.model, "--tokens")
        with SuffixJournal(self.out / JOURNAL) as journal:
            num_resumed = len(journal.scores)
            left = [example for example in self._examples if example.id not in journal.scores]
            context.observer.planned("examples", len(self._examples), num_resumed)

            def answered(_: str, scores: list[SuffixScore], _busy_s: float) -> None:
                journal.add(scores)
                context.observer.advanced()
                # an example takes seconds, and an interruption loses the current one
                slices.record({"wall_s": time.perf_counter() - start})

            requests = ((example.id, SuffixRequest(example, spec.lengths, spec.keep_tokens)) for example in left)
            ask_all(context.worker, requests, context.observer, answered)
        flat = [score for example in self._examples for score in journal.scores[example.id]]
        wall_s = slices.total({"wall_s": time.perf_counter() - start})["wall_s"]
        summary = _summary(spec, flat, context.model, num_resumed, wall_s)
        context.folder.write_table("items.parquet", items_table(flat))
        if spec.keep_tokens:
            tables = {
                "readings": readings_table(flat),
                "texts": texts_table(self._examples, spec.model.open_tokenizer(), spec.lengths),
            }
            for name, table in tables.items():
                context.folder.write_table(f"{name}.parquet", table, GROUP_ROWS[name])
        # only now: it loads matplotlib
        from pipelines.suffix.report import write_suffix_report

        write_suffix_report(self.out, summary)
        return summary


def _summary(
    job: SuffixJob, scores: list[SuffixScore], model: ModelDescription, num_resumed: int, wall_s: float
) -> dict[str, Any]:
    num_examples = len({score.example for score in scores})
    return {
        **about(job.command, model, where(job.cluster, job.workers, job.threads), bool(num_resumed)),
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
