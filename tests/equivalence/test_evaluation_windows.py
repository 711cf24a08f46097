# SPDX-License-Identifier: Apache-2.0
"""A job with `--window`: equal bytes in process, on Ray, on many workers and resumed, and the numbers of Python."""

import json
from collections.abc import Callable
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from rich.console import Console

import pipelines.perplexity.job
from actors.config import ClusterShape
from longmem.errors import ConfigError, DocumentError
from longmem.model.source import ModelSource
from longmem.runtime.executor import AbstractExecutor, Answer
from longmem.runtime.inline_executor import InlineExecutor
from longmem.runtime.scheduler import Limits
from longmem.scoring.evaluation_window import num_windows
from longmem.store.config import MemoryStore
from longmem.store.in_memory import InMemoryStore
from longmem.testing import small_longmem
from longmem.text.documents import UnreadableDocument
from longmem.types import Document
from pipelines.job.prefetch import DocumentFeed
from pipelines.job.state import JobState
from pipelines.perplexity.console import print_result
from pipelines.perplexity.job import PerplexityJob, run_job
from pipelines.perplexity.journal import Journal
from pipelines.perplexity.records import start_record
from pipelines.perplexity.windows import WindowRun, WindowShape, WindowTotals

pytest_plugins = ["tests.ray_cluster"]

TABLES = ("documents.parquet", "segments.parquet", "tokens.parquet")
LENGTHS = {"a-short": 5, "b-long": 420, "c-border": 64}
"""Text lengths in characters, which are tokens; segments have 32."""
WINDOW, STRIDE = 48, 20
Job = Callable[..., PerplexityJob]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> ModelSource:
    folder = tmp_path_factory.mktemp("models")
    small_longmem(folder, "gpt2").save_pretrained(folder / "model")
    return ModelSource(str(folder / "model"))


@pytest.fixture(scope="module")
def books(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("books")
    for seed, (name, length) in enumerate(LENGTHS.items()):
        (folder / f"{name}.txt").write_text(random_text(length, seed))
    return folder


def random_text(length: int, seed: int) -> str:
    return "".join(np.random.default_rng([length, seed]).choice(list("abcdefgh .,"), length))


@pytest.fixture(scope="module")
def job(source: ModelSource, books: Path) -> Job:
    """Return a factory `job(out, encoders=…, …)`; without workers the job runs in this process."""

    def make(out: Path, *, resume: bool = False, **workers: int) -> PerplexityJob:
        return PerplexityJob(
            inputs=(str(books),),
            out=out,
            model=source,
            cluster=ClusterShape(address="local", **workers) if workers else None,
            threads=1,
            limits=Limits(8, 2**30),
            keep_tokens=True,
            window=WINDOW,
            stride=STRIDE,
            resume=resume,
        )

    return make


def run(job: PerplexityJob) -> tuple[dict[str, Any], dict[str, bytes]]:
    summary = run_job(job, Console(file=StringIO()))
    assert summary["failures"] == []
    return summary, {name: (job.out / name).read_bytes() for name in TABLES}


@pytest.fixture(scope="module")
def inline(job: Job, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], dict[str, bytes]]:
    out = tmp_path_factory.mktemp("inline") / "out"
    return out, *run(job(out))


def results(summary: dict[str, Any]) -> dict[str, Any]:
    """Return the figures of a summary that may not depend on where a job runs."""
    names = ("window", "stride", "windows", "nats", "perplexity", "bits_per_byte", "change_to_memory")
    return {name: summary["window"][name] for name in names} | {"all": summary["perplexity"]}


def test_job_says_what_python_says(inline: Any, source: ModelSource, books: Path) -> None:
    out, summary, _ = inline
    model = source.open()
    tokens, segments = (pq.read_table(out / f"{name}.parquet").to_pylist() for name in ("tokens", "segments"))
    for name, length in LENGTHS.items():
        scores = model.score_windows((books / f"{name}.txt").read_text(), WINDOW, STRIDE)
        mine = [row for row in tokens if row["document"] == name]
        assert [row["position"] for row in mine] == list(range(1, length + 1))
        assert [row["logprob_window"] for row in mine] == scores.logprobs.tolist()
        for row in segments:
            if row["document"] == name:
                first = row["start_token"]
                expected = -np.sum(scores.logprobs[first : first + row["num_tokens"]], dtype=np.float64)
                assert row["nll_window"] == pytest.approx(expected, rel=1e-12)
    (documents, nats) = (pq.read_table(out / "documents.parquet").to_pylist(), summary["window"]["nats"])
    assert sum(row["nll_window"] for row in documents) == pytest.approx(nats)
    assert nats == pytest.approx(-sum(row["logprob_window"] for row in tokens), rel=1e-6)
    assert summary["window"]["windows"] == sum(num_windows(n, WINDOW, STRIDE) for n in LENGTHS.values())


def test_job_compares_memory_with_the_windows(inline: Any) -> None:
    _, summary, _ = inline
    window, longmem = summary["window"], summary["nats"]["longmem"]
    tokens = summary["counts"]["tokens"]
    assert window["perplexity"]["token"]["value"] == pytest.approx(np.exp(window["nats"] / tokens))
    change = window["change_to_memory"]
    assert change["value"] == pytest.approx(np.expm1((longmem - window["nats"]) / tokens))
    assert change["low"] < change["value"] < change["high"]
    assert window["busy_s"] > 0
    assert window["memory_busy_s"] == pytest.approx(sum(stage["busy_s"] for stage in summary["stages"].values()))
    # the last windows are shorter: every window but the first reads window - stride tokens again
    assert window["tokens_read"] == sum(
        length + (num_windows(length, WINDOW, STRIDE) - 1) * (WINDOW - STRIDE) for length in LENGTHS.values()
    )


def test_job_shows_the_windows_in_terminal_and_report(inline: Any) -> None:
    out, summary, _ = inline
    console = Console(file=StringIO(), width=100)
    print_result(console, summary, out)
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    header = next(line for line in shown.splitlines() if "with memory" in line)
    assert header.strip().startswith("perplexity")
    assert header.index("with memory") < header.index("window 48, stride 20") < header.index("without memory")
    assert f"{summary['window']['perplexity']['token']['value']:.4g}"[:4] in shown
    assert "with memory, compared with the windows: " in shown
    page = (out / "report.html").read_text("utf-8")
    assert "Window 48, stride 20" in page
    assert "compared with the backbone alone in overlapping windows of 48 tokens, stride 20" in page


@pytest.mark.ray
def test_ray_workers_give_the_same_bytes(ray_cluster: None, inline: Any, job: Job, tmp_path: Path) -> None:
    """Two encoders share the windows. Readers see none; their number is varied in `test_same_numbers.py`."""
    summary, tables = run(job(tmp_path / "out", encoders=2, readers=1, stores=1))
    assert tables == inline[2]
    assert results(summary) == results(inline[1])


class StopsInWindows(InlineExecutor):
    """Executor that raises KeyboardInterrupt after `after` answered requests, the last of which is lost."""

    after: int

    def answers(self) -> list[Answer]:
        answers = super().answers()
        self.after -= len(answers)
        if self.after < 0:
            raise KeyboardInterrupt
        return answers


def stopped(job: PerplexityJob, after: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def opening(job: PerplexityJob, _tell: object) -> AbstractExecutor:
        executor = StopsInWindows(job.model.open(), MemoryStore.open(job.store_uri))
        executor.after = after
        return executor

    with monkeypatch.context() as patch:
        patch.setattr(pipelines.perplexity.job, "open_executor", opening)
        with pytest.raises(KeyboardInterrupt):
            run_job(job, Console(file=StringIO()))
    assert not (job.out / "summary.json").exists()


@pytest.mark.parametrize("after", [[0], [3, 9]], ids=str)
def test_job_stopped_and_resumed_gives_the_same_bytes(
    after: list[int], inline: Any, job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    for number, stop in enumerate(after):
        stopped(job(out, resume=number > 0), stop, monkeypatch)
        assert in_journal(out) == sum(after[: number + 1])
    summary, tables = run(job(out, resume=True))
    assert tables == inline[2]
    assert results(summary) == results(inline[1])
    assert in_journal(out) == summary["window"]["windows"], "a window was scored twice"
    assert summary["window"]["tokens_read"] == inline[1]["window"]["tokens_read"]


def in_journal(out: Path) -> int:
    return (out / "journal.jsonl").read_bytes().count(b'"kind":"window"')


def test_job_without_windows_knows_nothing_of_them(inline: Any, job: Job, tmp_path: Path) -> None:
    plain = replace(job(tmp_path / "out"), window=None, stride=None)
    summary, tables = run(plain)
    assert "window" not in summary
    assert "window" not in json.loads((plain.out / "job.json").read_text())["identity"]
    assert b"window" not in (plain.out / "slices.json").read_bytes()
    (out, _, _), name = inline, "segments.parquet"
    assert pq.read_table(plain.out / name) == pq.read_table(out / name).drop_columns("nll_window")
    assert tables.keys() == set(TABLES)


def test_windows_of_another_shape_are_another_job(inline: Any, job: Job) -> None:
    with pytest.raises(Exception, match="stride"):
        run_job(replace(job(inline[0], resume=True), stride=STRIDE + 1), Console(file=StringIO()))


def test_windows_that_cannot_be_are_refused_before_any_work(job: Job, tmp_path: Path) -> None:
    plain = job(tmp_path / "out")
    with pytest.raises(ConfigError, match="--stride 20 needs --window"):
        replace(plain, window=None)
    with pytest.raises(ConfigError, match="the stride must be from 1 to the evaluation window of 48 tokens, got 49"):
        replace(plain, stride=49)
    assert replace(plain, window=900, stride=None).window_shape == WindowShape(900, 512)
    assert replace(plain, stride=None).window_shape == WindowShape(48, 48)
    with pytest.raises(ConfigError, match=r"must be at most 128 tokens for backbone .*, got 129"):
        run_job(replace(plain, window=129), Console(file=StringIO()))
    # the folder is free for the corrected command
    assert run(replace(plain, window=128))[0]["window"]["window"] == 128


def test_a_document_without_its_windows_fails_alone(source: ModelSource, tmp_path: Path) -> None:
    """Check texts that changed or went away since memory scored them, and one whose window is not finite."""
    model = source.open()
    texts = {name: random_text(15, seed) for seed, name in enumerate(("good", "new", "gone"))}
    documents = [Document(name, text, f"{name}.txt") for name, text in {**texts, "broken": "z" * 100}.items()]
    with torch.no_grad():
        model.backbone.model.transformer.wpe.weight[20] = torch.nan
    size = model.config.segment_tokens
    totals = WindowTotals()
    state = JobState("1", "perplexity", tmp_path)
    with Journal(tmp_path / "journal.jsonl") as journal, InlineExecutor(model, InMemoryStore()) as executor:
        feed = DocumentFeed(iter(documents), model.tokenizer, size, "", lambda _: True)
        while (prepared := feed.next()) is not None:
            record = start_record(prepared.document, prepared.order, prepared.segments, 0)  # type: ignore[arg-type]
            journal.add(replace(record, status="scored"))
            state.document_ended(record.document, None, kept=False)
        feed.close()
        run = WindowRun(
            executor,
            journal,
            state,
            WindowShape(32, 8),
            totals,
            segment_tokens=size,
            keep_tokens=False,
        )
        error = DocumentError("cannot be read")
        later = [
            documents[0],
            replace(documents[1], text=documents[1].text + "!"),
            UnreadableDocument("gone", "gone.txt", error),
            documents[3],
        ]
        again = DocumentFeed(iter(later), model.tokenizer, size, "", run.needs_work)
        run.run(again)
        again.close()
        states = {name: record.status for name, record in journal.documents.items()}
        assert states == {"good": "scored", "new": "failed", "gone": "failed", "broken": "failed"}
        assert "new.txt has changed since the job began" in str(journal.documents["new"].error)
        assert "broken evaluation window 0" in str(journal.documents["broken"].error)
        assert totals.windows == len(journal.windows_of("good")) == num_windows(15, 32, 8)
    snapshot = state.snapshot("running")
    assert (snapshot.scored_documents, snapshot.failed_documents) == (1, 3)
    assert sorted(failure.split(":")[0] for failure in snapshot.recent_failures) == ["broken", "gone", "new"]
