"""One suffix job from its options to its output folder.

file ─► examples ─► scores of each, at every context length ─► journal ─► items.parquet, summary, report
"""

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import xxhash
from rich.console import Console
from rich.progress import track

from longmem.errors import ConfigError
from longmem.model.source import ModelDescription, ModelSource, describe
from pipelines.job.executors import use_threads
from pipelines.job.folder import JobFolder
from pipelines.job.journal import AbstractJournal
from pipelines.job.requested_model import asked_model
from pipelines.job.summary import about
from pipelines.job.work_slices import Slices
from pipelines.suffix.data import SuffixExample, read_examples
from pipelines.suffix.figures import WAYS, chance, figures_by_length, is_correct
from pipelines.suffix.report import write_suffix_report
from pipelines.suffix.scoring import SuffixLengths, SuffixScore, score_example

RESULTS = "summary.json"

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
"""One row per example and context length; lists have one entry per candidate."""


@dataclass(frozen=True, kw_only=True)
class SuffixJob:
    """What the command line says, checked. Raises ConfigError."""

    input: Path
    out: Path
    model: ModelSource
    lengths: SuffixLengths
    threads: int
    split: str | None = None
    """Part of a ChapterBreak file."""
    limit_examples: int | None = None
    resume: bool = False
    command: str = ""

    def __post_init__(self) -> None:
        for name in ("threads", "limit_examples"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"--{name.replace('_', '-')} must be at least 1, got {value}")


class SuffixJournal(AbstractJournal[list[SuffixScore]]):
    """One line for each example, with its scores at all context lengths."""

    def __init__(self, path: Path) -> None:
        self.scores: dict[str, list[SuffixScore]] = {}
        super().__init__(path)

    def _encode(self, record: list[SuffixScore]) -> dict[str, Any]:
        return {"scores": [asdict(each) for each in record]}

    def _decode(self, values: dict[str, Any]) -> list[SuffixScore]:
        return [SuffixScore(**each) for each in values["scores"]]

    def _accept(self, record: list[SuffixScore]) -> None:
        self.scores[record[0].example] = record


def run_suffix(job: SuffixJob, console: Console) -> dict[str, Any]:
    """Run (or resume) a job in this process; returns its summary: a FinishedSummary where there was nothing left to do,
    and nothing was changed.

    Raises ConfigError, DocumentError, OutputError, ModelError, NumericError; what was scored stays.
    """
    examples = read_examples(job.input, job.split)[: job.limit_examples]
    use_threads(job.threads)
    with JobFolder(job.out, job.resume) as folder:
        asked = {**_given(job, examples), "model": asked_model(job.model)}
        if (finished := folder.finished(RESULTS, asked)) is not None:
            return finished
        model = job.model.open()
        job.lengths.local_tokens(model.config.segment_tokens)
        description = describe(model)
        folder.claim(_identity(job, examples, description), asked)
        if (finished := folder.finished(RESULTS)) is not None:
            return finished
        slices = Slices(job.out)
        with SuffixJournal(job.out / "journal.jsonl") as journal:
            num_resumed, start = len(journal.scores), time.perf_counter()
            left = [example for example in examples if example.id not in journal.scores]
            for example in track(left, "examples", console=console):
                journal.add(score_example(model, example, job.lengths))
                # an example takes seconds, and an interruption takes the present one with it
                slices.record({"wall_s": time.perf_counter() - start})
        flat = [score for example in examples for score in journal.scores[example.id]]
        wall_s = slices.total({"wall_s": time.perf_counter() - start})["wall_s"]
        summary = _summary(job, flat, description, num_resumed, wall_s)
        folder.write_table("items.parquet", items_table(flat))
        write_suffix_report(job.out, summary)
        folder.write_json(RESULTS, summary)
    return summary


def items_table(scores: list[SuffixScore]) -> pa.Table:
    """Rows in the order of the file, by ascending context length."""
    rows = [{**asdict(score), **{f"correct_{way}": is_correct(score, way) for way in WAYS}} for score in scores]
    return pa.Table.from_pylist(rows, schema=ITEM_SCHEMA)


def _identity(job: SuffixJob, examples: list[SuffixExample], model: ModelDescription) -> dict[str, Any]:
    """What decides the results of a job."""
    return {
        **_given(job, examples),
        "model": {**asdict(model.fingerprint), "sidenet": model.sidenet},
        "settings": model.settings,
    }


def _given(job: SuffixJob, examples: list[SuffixExample]) -> dict[str, Any]:
    """The part of a job's identity that the command and its data give."""
    return {
        "job": "suffix",
        "examples": xxhash.xxh3_128_hexdigest(repr(examples).encode("utf-8")),
        "lengths": asdict(job.lengths),
        "search": job.model.search,
        "threads": job.threads,
    }


def _summary(
    job: SuffixJob, scores: list[SuffixScore], model: ModelDescription, num_resumed: int, wall_s: float
) -> dict[str, Any]:
    num_examples = len({score.example for score in scores})
    return {
        **about(job.command, model, {"address": "none", "threads": job.threads}, bool(num_resumed)),
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
        "lengths": [asdict(each) for each in figures_by_length(scores)],
        "wall_s": wall_s,
    }
