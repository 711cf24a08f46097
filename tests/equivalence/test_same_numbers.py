# SPDX-License-Identifier: Apache-2.0
"""Results do not depend on where and in which order a job runs, and every token is scored exactly once."""

import random
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from rich.console import Console

import pipelines.perplexity.job
from actors.config import ClusterShape
from longmem.model.longmem import LongMem
from longmem.model.source import ModelSource
from longmem.retrieval.ivf_search import IvfSearch
from longmem.runtime.executor import STAGES, AbstractExecutor, Completion, EncodeReceipt, Stage
from longmem.runtime.inline_executor import InlineExecutor
from longmem.runtime.scheduler import Limits, SegmentScheduler
from longmem.scoring.text import score_text
from longmem.store.config import MemoryStore
from longmem.store.in_memory import InMemoryStore
from longmem.testing import small_longmem
from longmem.text.segments import cut_segments
from longmem.types import DocumentKey, Segment, SegmentScore
from pipelines.perplexity.job import PerplexityJob, run_job
from tests.inputs import DEFAULT_FORM, FORMS_OF_DOCUMENTS, form_of_size

pytest_plugins = ["tests.ray_cluster"]

MODELS: dict[str, dict[str, Any]] = {**FORMS_OF_DOCUMENTS, "untrained": {**DEFAULT_FORM, "unsettled": False}}
"""Settings of each model: every form, and a SideNet that is the backbone, whose layers do not run."""
TABLES = ("documents.parquet", "segments.parquet", "tokens.parquet", "readings.parquet", "passages.parquet")
LENGTHS = {"a-short": 7, "b-long": 600, "c-border": 64}
"""Text lengths in tokens; segments have 32, and the start token makes each sequence one longer."""


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Save a folder for each model."""
    folder = tmp_path_factory.mktemp("models")
    for name, of_model in MODELS.items():
        small_longmem(folder, **of_model).save_pretrained(folder / name)
    return {name: folder / name for name in MODELS}


def source_of(checkpoints: dict[str, Path], form: str, **settings: Any) -> ModelSource:
    """Return the source of a saved model; one pass is not saved."""
    return ModelSource(str(checkpoints[form]), settings=settings | ({"one_pass": True} if form == "one pass" else {}))


@pytest.fixture(scope="module")
def books(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("books")
    for seed, (name, length) in enumerate(LENGTHS.items()):
        (folder / f"{name}.txt").write_text(random_text(length, seed))
    return folder


def random_text(length: int, seed: int) -> str:
    return "".join(np.random.default_rng([length, seed]).choice(list("abcdefgh .,"), length))


Job = Callable[..., PerplexityJob]


@pytest.fixture(scope="module")
def job(checkpoints: dict[str, Path], books: Path) -> Job:
    """Return a factory `job(out, encoders=…, …)`; without workers the job runs in this process."""

    def make(out: Path, *, form: str = "default", resume: bool = False, **workers: int) -> PerplexityJob:
        return PerplexityJob(
            inputs=(str(books),),
            out=out,
            model=source_of(checkpoints, form),
            cluster=ClusterShape(address="local", **workers) if workers else None,
            threads=1,
            limits=Limits(8, 2**30),
            keep_tokens=True,
            resume=resume,
        )

    return make


def run(job: PerplexityJob) -> dict[str, bytes]:
    """Run a job that succeeds and return the bytes of every table."""
    summary = run_job(job, Console(file=StringIO()))
    assert summary["failures"] == []
    return tables(job.out)


def tables(out: Path) -> dict[str, bytes]:
    return {name: (out / name).read_bytes() for name in TABLES}


@pytest.fixture(scope="module")
def inline(job: Job, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, bytes]]:
    """Return, for each model, the results of one sequential process without interruptions."""
    return {form: run(job(tmp_path_factory.mktemp("inline") / "out", form=form)) for form in MODELS}


@pytest.fixture(scope="module")
def expected(inline: dict[str, dict[str, bytes]]) -> dict[str, bytes]:
    return inline["default"]


# --- whole jobs -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS_OF_DOCUMENTS)
def test_the_job_says_what_the_plain_loop_says(
    form: str, inline: dict[str, dict[str, bytes]], checkpoints: dict[str, Path], books: Path, tmp_path: Path
) -> None:
    model = source_of(checkpoints, form).open()
    (tmp_path / "tokens.parquet").write_bytes(inline[form]["tokens.parquet"])
    table = pq.read_table(tmp_path / "tokens.parquet").to_pydict()
    for name in LENGTHS:
        with InMemoryStore() as store:
            scores = score_text(model, (books / f"{name}.txt").read_text(), store.document(name))
        own = [index for index, document in enumerate(table["document"]) if document == name]
        assert [table["logprob_longmem"][index] for index in own] == scores.logprobs.tolist()
        alone = [None] * len(own) if scores.backbone_logprobs is None else scores.backbone_logprobs.tolist()
        assert [table["logprob_backbone"][index] for index in own] == alone
        # exactly once: every token of the text, at its position
        assert [table["position"][index] for index in own] == list(range(1, LENGTHS[name] + 1))
        assert [table["token"][index] for index in own] == model.tokenizer.sequence(
            (books / f"{name}.txt").read_text()
        )[1:].tolist()


@pytest.mark.parametrize("form", MODELS)
def test_workers_in_one_process_give_the_same_bytes(
    form: str, inline: dict[str, dict[str, bytes]], job: Job, tmp_path: Path
) -> None:
    assert run(replace(job(tmp_path / "out", form=form), workers=3)) == inline[form]


@pytest.mark.ray
@pytest.mark.parametrize(
    ("form", "encoders", "readers", "stores"),
    [("default", 2, 2, 2), ("all layers", 1, 1, 1), ("one pass", 2, 1, 1), ("untrained", 1, 1, 1)],
)
def test_ray_workers_give_the_same_bytes(
    ray_cluster: None,
    inline: dict[str, dict[str, bytes]],
    job: Job,
    tmp_path: Path,
    form: str,
    encoders: int,
    readers: int,
    stores: int,
) -> None:
    """Compare several workers of each kind in one form only, because starting one takes four seconds.

    Encoders read the memory in one pass, so there are two of them. Several stores in one pass are compared below, and
    `tests/fault/test_workers_die.py` compares the paper's form.
    """
    assert run(job(tmp_path / "out", form=form, encoders=encoders, readers=readers, stores=stores)) == inline[form]


class Interrupted(InlineExecutor):
    """Executor that raises KeyboardInterrupt after `after` completions, which are lost."""

    after: int

    def wait(self, timeout_s: float) -> list[Completion]:
        completions = super().wait(timeout_s)
        self.after -= 1
        if self.after < 0:
            raise KeyboardInterrupt
        return completions


def interrupted(job: PerplexityJob, after: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run until the simulated Ctrl-C."""

    def opening(job: PerplexityJob, _tell: object) -> AbstractExecutor:
        executor = Interrupted(job.model.open(), MemoryStore.open(job.store_uri))
        executor.after = after
        return executor

    with monkeypatch.context() as patch:
        patch.setattr(pipelines.perplexity.job, "open_executor", opening)
        with pytest.raises(KeyboardInterrupt):
            run_job(job, Console(file=StringIO()))
    assert not (job.out / "tokens.parquet").exists()


@pytest.mark.parametrize("form", ["default", "one pass"])
@pytest.mark.parametrize("after", [[1], [30], [4, 16, 22]], ids=str)
def test_a_job_that_was_stopped_and_resumed_gives_the_same_bytes(
    after: list[int],
    form: str,
    inline: dict[str, dict[str, bytes]],
    job: Job,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "out"
    for number, stop in enumerate(after):
        interrupted(job(out, form=form, resume=number > 0), stop, monkeypatch)
    kept = segments_in_journal(out)
    assert run(job(out, form=form, resume=True)) == inline[form]
    # previously scored segments are not scored again
    total = pq.read_metadata(out / "segments.parquet").num_rows
    assert segments_in_journal(out) == total
    assert kept < total
    assert kept > 0 or after == [1]


# --- how long the memory is kept --------------------------------------------------------------------------------

WINDOW_SEGMENTS = 3


@pytest.fixture(scope="module", params=["default", "one pass"])
def short_window(request: pytest.FixtureRequest, job: Job, checkpoints: dict[str, Path]) -> Job:
    """Return a factory of jobs whose windows are much shorter than the longest text."""
    source = source_of(checkpoints, request.param, memory_tokens=WINDOW_SEGMENTS * 32)
    return lambda *args, retention="document", durability="process", **kwargs: replace(
        job(*args, **kwargs), model=source, retention=retention, durability=durability
    )


@pytest.fixture(scope="module")
def with_short_window(short_window: Job, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    return run(short_window(tmp_path_factory.mktemp("inline") / "out"))


class Watched(InlineExecutor):
    """Executor that counts the written blocks and the peak number of blocks in the store."""

    most: int = 0
    written: int = 0

    def wait(self, timeout_s: float) -> list[Completion]:
        completions = super().wait(timeout_s)
        for each in completions:
            self.most = max(self.most, len(self.stored(each.segment.key)))
            self.written += each.stage == "put"
        return completions


@pytest.mark.parametrize("retention", ["window", "forever"])
def test_retention_changes_no_byte(
    retention: str,
    with_short_window: dict[str, bytes],
    short_window: Job,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Compare results; with `window`, storage is bounded by the window for documents of any length, and so can the
    quota be."""
    opened: list[Watched] = []

    def opening(job: PerplexityJob, _tell: object) -> AbstractExecutor:
        opened.append(Watched(job.model.open(), job.store_settings.open()))
        return opened[-1]

    monkeypatch.setattr(pipelines.perplexity.job, "open_executor", opening)
    monkeypatch.setattr(pipelines.perplexity.job, "TRIM_EVERY", 2)
    assert run(short_window(tmp_path / "out", retention=retention)) == with_short_window
    num_segments = -(-LENGTHS["b-long"] // 32)
    if retention == "forever":
        assert opened[0].most == num_segments
        return
    bound = WINDOW_SEGMENTS + 2 + Limits(8, 1).max_in_flight_segments
    assert opened[0].most <= bound < num_segments


def test_a_resumed_job_does_not_write_again_what_no_window_reaches(
    with_short_window: dict[str, bytes], short_window: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipelines.perplexity.job, "TRIM_EVERY", 2)
    out = tmp_path / "out"
    # in the middle of the long text
    interrupted(short_window(out, retention="window"), 45, monkeypatch)
    scored = segments_in_journal(out)
    opened: list[Watched] = []

    def opening(job: PerplexityJob, _tell: object) -> AbstractExecutor:
        opened.append(Watched(job.model.open(), job.store_settings.open()))
        return opened[-1]

    monkeypatch.setattr(pipelines.perplexity.job, "open_executor", opening)
    assert run(short_window(out, resume=True, retention="window")) == with_short_window
    total = pq.read_metadata(out / "segments.parquet").num_rows
    assert 5 < scored < total
    assert opened[0].written <= total - scored


@pytest.mark.ray
def test_ray_workers_trim_and_wait_for_the_disk(
    ray_cluster: None, with_short_window: dict[str, bytes], short_window: Job, tmp_path: Path
) -> None:
    one = short_window(tmp_path / "out", encoders=1, readers=1, stores=2, retention="window", durability="power")
    assert run(one) == with_short_window


def segments_in_journal(out: Path) -> int:
    return (out / "journal.jsonl").read_bytes().count(b'"kind":"segment"')


# --- any schedule -----------------------------------------------------------------------------------------------


class Workers(InlineExecutor):
    """Executor that simulates many workers: a task begins, ends and is reported at arbitrary times."""

    def __init__(self, model: LongMem, slots: dict[Stage, int], choices: random.Random) -> None:
        super().__init__(model, InMemoryStore())
        self._free = slots
        self._choices = choices
        self._waiting: list[tuple[Stage, Segment]] = []
        self._ended: list[Completion] = []

    def slots(self, stage: Stage) -> int:
        busy = sum(each == stage for each, _ in self._waiting) + sum(each.stage == stage for each in self._ended)
        return self._free[stage] - busy

    def submit(self, stage: Stage, segment: Segment) -> None:
        assert self.slots(stage) > 0, f"{stage} was submitted beyond its slots"
        self._waiting.append((stage, segment))

    def wait(self, timeout_s: float) -> list[Completion]:
        for _ in range(self._choices.randint(1, 3)):
            if self._waiting:
                chosen = self._waiting.pop(self._choices.randrange(len(self._waiting)))
                self._ended += self._put([chosen[1]]) if chosen[0] == "put" else [self._task(*chosen)(self._model)]
        self._choices.shuffle(self._ended)
        told = self._choices.randint(0 if self._waiting else min(1, len(self._ended)), len(self._ended))
        completions, self._ended = self._ended[:told], self._ended[told:]
        return completions


def run_all(
    workers: Workers, documents: dict[DocumentKey, list[Segment]], limits: Limits, model: LongMem
) -> tuple[dict[tuple[DocumentKey, int], SegmentScore], dict[tuple[DocumentKey, int], np.ndarray]]:
    """Run all documents at once; fail when a task is submitted or reported twice."""
    config = model.config
    scheduler = SegmentScheduler(
        limits, 1, config.segment_tokens, config.memory_tokens, write=True, one_pass=config.one_pass
    )
    for segments in documents.values():
        scheduler.add_document(segments, set(), set())
    scores: dict[tuple[DocumentKey, int], SegmentScore] = {}
    backbone: dict[tuple[DocumentKey, int], np.ndarray] = {}
    submitted: Counter[tuple[Stage, DocumentKey, int]] = Counter()
    while scheduler.active:
        for stage, segment in scheduler.start(workers.slots):
            submitted[stage, segment.key, segment.index] += 1
            workers.submit(stage, segment)
        for completion in workers.wait(0.0):
            assert completion.error is None, completion.error
            place = (completion.segment.key, completion.segment.index)
            if isinstance(completion.result, EncodeReceipt):
                if completion.result.backbone_logprobs is not None:
                    backbone[place] = completion.result.backbone_logprobs
            elif isinstance(completion.result, SegmentScore):
                assert place not in scores, f"{place} was scored twice"
                scores[place] = completion.result
            for done in scheduler.finish(completion.stage, completion.segment):
                workers.release(done)
        scheduler.remove_finished()
    wanted = [(stage, key, each.index) for key, segments in documents.items() for each in segments for stage in STAGES]
    assert submitted == Counter(wanted)
    return scores, backbone


@pytest.fixture(scope="module")
def model_of(small_model: Callable[..., LongMem]) -> Iterator[Callable[..., LongMem]]:
    """Yield `model_of(probes, **settings)`: exact search, or one that probes `probes` of many small cells."""

    @cache
    def make(probes: int | None = None, **settings: Any) -> LongMem:
        model = small_model("llama", **settings)
        if probes is not None:
            model.search = IvfSearch(probes)
        return model

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("longmem.retrieval.ivf_index.STRETCHES", (12, 24))
        patched.setattr("longmem.retrieval.ivf_index.CELL_CHUNKS", 2)
        yield make


# no shrinking: each example runs a model, and a simpler schedule is not easier to read
@settings(max_examples=14, phases=[Phase.reuse, Phase.generate], suppress_health_check=[HealthCheck.too_slow])
@given(
    choices=st.randoms(use_true_random=False),
    lengths=st.lists(st.integers(1, 90), min_size=1, max_size=3),
    sizes=st.sampled_from([(8, 4, 24), (8, 2, 8), (16, 4, 40), (16, 8, 4096), (32, 4, 0), (8, 8, 48)]),
    slots=st.tuples(*[st.integers(1, 4)] * 3),
    in_flight=st.integers(1, 9),
    form=st.sampled_from(sorted(FORMS_OF_DOCUMENTS)),
    probes=st.sampled_from([None, 1]),
)
def test_no_schedule_changes_a_number(
    model_of: Callable[..., LongMem],
    choices: random.Random,
    lengths: list[int],
    sizes: tuple[int, int, int],
    slots: tuple[int, int, int],
    in_flight: int,
    form: str,
    probes: int | None,
) -> None:
    """Compare results. `sizes` are the tokens of a segment, of a chunk and of the window."""
    segment_tokens, chunk_tokens, memory_tokens = sizes
    windows = {"segment_tokens": segment_tokens, "chunk_tokens": chunk_tokens, "memory_tokens": memory_tokens}
    model = model_of(probes, **form_of_size(form, **windows))
    texts = {DocumentKey("n", str(number)): random_text(length, number) for number, length in enumerate(lengths)}
    documents = {key: cut_segments(key, model.tokenizer.sequence(text), segment_tokens) for key, text in texts.items()}
    with Workers(model, dict(zip(STAGES, slots, strict=True)), choices) as workers:
        scores, backbone = run_all(workers, documents, Limits(in_flight, 2**30), model)
        assert vars(workers)["_encoded"] == {}
    assert sum(len(score.logprobs) for score in scores.values()) == sum(lengths)
    for key, text in texts.items():
        with InMemoryStore() as store:
            plain = score_text(model, text, store.document(key.document))
        for index, one in enumerate(plain.segments):
            score = scores[key, index]
            assert score.retrieval.chunks_digest == one.retrieval.chunks_digest
            assert score.retrieval.memory_tokens == one.retrieval.memory_tokens
            np.testing.assert_array_equal(score.logprobs, one.logprobs, strict=True)
        if model.config.one_pass:
            assert plain.backbone_logprobs is None
            assert backbone == {}
            continue
        found = np.concatenate([backbone[key, index] for index in range(len(documents[key]))])
        np.testing.assert_array_equal(found, plain.backbone_logprobs, strict=True)


def test_cells_change_numbers(model_of: Callable[..., LongMem]) -> None:
    """Check that cells change the numbers; otherwise the test above would compare exact search with itself."""
    text, sizes = random_text(90, 3), {"segment_tokens": 8, "chunk_tokens": 1, "memory_tokens": 64, "top_k": 4}
    scored = []
    for probes in (None, 1):
        with InMemoryStore() as store:
            scored.append(score_text(model_of(probes, **sizes), text, store.document("a")))
    exact, approximate = ([each.retrieval.chunks_digest for each in one.segments] for one in scored)
    assert exact[:2] == approximate[:2], "no stretch is complete yet"
    assert exact != approximate


def test_the_unruly_workers_are_unruly(model_of: Callable[..., LongMem]) -> None:
    """Check that the schedules vary; otherwise the test above would cover a single order."""
    model = model_of(segment_tokens=8, chunk_tokens=4, memory_tokens=24)
    key = DocumentKey("n", "a")
    documents = {key: cut_segments(key, model.tokenizer.sequence(random_text(100, 0)), 8)}
    orders = set()
    for seed in range(3):
        with Workers(model, {"encode": 4, "put": 4, "score": 4}, random.Random(seed)) as workers:
            scores, _ = run_all(workers, documents, Limits(9, 2**30), model)
        orders.add(tuple(scores))
    assert len(orders) == 3
    assert all(order != tuple(sorted(order)) for order in orders)


def test_a_smaller_window_would_be_noticed(
    job: Job, expected: dict[str, bytes], tmp_path: Path, checkpoints: dict[str, Path]
) -> None:
    """Check that the comparisons above can fail: one setting that must change the numbers does."""
    other = replace(
        job(tmp_path / "out"), model=ModelSource(str(checkpoints["default"]), settings={"memory_tokens": 64})
    )
    found = run(other)
    assert found["tokens.parquet"] != expected["tokens.parquet"]
    assert found["segments.parquet"] != expected["segments.parquet"]
