# SPDX-License-Identifier: Apache-2.0
"""Contract of AbstractExecutor on every executor: in this process, and on Ray with pools of one worker and of two."""

from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np
import psutil
import pytest

from longmem.errors import (
    ConflictError,
    DocumentError,
    FingerprintError,
    MissingBlockError,
    NumericError,
    StoreError,
)
from longmem.memory.context import windows_of
from longmem.model.longmem import LongMem
from longmem.model.source import ModelSource, describe
from longmem.runtime.executor import STAGES, AbstractExecutor, Completion, EncodeReceipt, Stage
from longmem.runtime.inline_executor import InlineExecutor
from longmem.runtime.requests import ItemsRequest, Request
from longmem.runtime.scheduler import Limits, SegmentScheduler
from longmem.scoring.batch import Item, score_items
from longmem.scoring.text import TextScores, score_text
from longmem.store.config import MemoryStore
from longmem.store.in_memory import InMemoryStore
from longmem.testing import small_longmem
from longmem.text.segments import cut_segments
from longmem.types import DocumentKey, PutReceipt, Segment, SegmentScore
from tests.inputs import DEFAULT_FORM
from tests.poison import POISON, NanSource

pytest_plugins = ["tests.ray_cluster"]

RAY = "ray-2+1"
"""Two encoders on two stores, and one reader: starting workers is most of the time of these tests."""

TEXTS = {
    "long": "Call me Ishmael. Some years ago, never mind how long precisely, having little money. " * 3,
    "short": "It is a way I have.",
    "one segment": "x" * 31,
    "border": "It was the best of times, it was the worst of times, it was the age of wisdom"[:64],
}
PATIENCE_S = 60.0


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    small_longmem(folder, **{**DEFAULT_FORM, "chunk_tokens": 4}).save_pretrained(folder / "checkpoint")
    return folder / "checkpoint"


@pytest.fixture(scope="module")
def source(checkpoint: Path) -> ModelSource:
    return NanSource(str(checkpoint))


@pytest.fixture(scope="module")
def model(source: ModelSource) -> LongMem:
    return source.open()


@pytest.fixture(scope="module")
def expected(model: LongMem) -> dict[str, TextScores]:
    """Return the scores of every text by the plain loop."""
    with InMemoryStore() as store:
        return {name: score_text(model, text, store.document(name)) for name, text in TEXTS.items()}


@pytest.fixture(scope="module", params=["inline", "threads", pytest.param(RAY, marks=pytest.mark.ray)])
def opened(request: pytest.FixtureRequest) -> Callable[..., AbstractExecutor]:
    """Return a factory `opened(source, store_uri, encoders=2, stores=2)` that starts an executor of the kind under
    test."""
    if request.param != RAY:
        workers = 1 if request.param == "inline" else 2
        return lambda source, uri, **_pools: InlineExecutor(source.open(), MemoryStore.open(uri), workers=workers)
    request.getfixturevalue("ray_cluster")
    from actors.config import ClusterShape
    from actors.executor.ray_executor import RayExecutor

    def start(source: ModelSource, uri: str, encoders: int = 2, stores: int = 2) -> AbstractExecutor:
        return RayExecutor(source, uri, ClusterShape(address="local", encoders=encoders, readers=1, stores=stores))

    return start


@pytest.fixture(scope="module")
def executor(
    opened: Callable[..., AbstractExecutor],
    source: ModelSource,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[AbstractExecutor]:
    """Share one executor between all tests of a kind, because Ray workers take seconds to start; documents differ."""
    running = opened(source, str(tmp_path_factory.mktemp("store") / "memory.lance"))
    yield running
    running.close()
    running.close()


def test_stores_on_ray_import_what_a_put_needs_before_the_first(executor: AbstractExecutor) -> None:
    """Look at the libraries that their processes have mapped. This is the first test: nothing was put."""
    executor.expect_puts()
    if isinstance(executor, InlineExecutor):
        return
    stores = vars(executor)["_workers"].stores
    for number in range(20):
        # of both shards; a delete comes after what is expected, and needs no library in a store without tables
        assert executor.delete(DocumentKey("contract", f"none-{number}")) is None
    for store in stores.workers:
        assert any("_lancedb" in mapped.path for mapped in psutil.Process(store.info.pid).memory_maps())


@pytest.fixture
def key(request: pytest.FixtureRequest) -> DocumentKey:
    return DocumentKey("contract", request.node.name)


def cut(model: LongMem, key: DocumentKey, text: str) -> list[Segment]:
    return cut_segments(key, model.tokenizer.sequence(text), model.config.segment_tokens)


@dataclass
class Run:
    """Tasks that a run of the driver submitted, and their completions."""

    submitted: Counter[tuple[Stage, DocumentKey, int]] = field(default_factory=Counter)
    completed: Counter[tuple[Stage, DocumentKey, int]] = field(default_factory=Counter)
    encoded: dict[tuple[DocumentKey, int], EncodeReceipt] = field(default_factory=dict)
    scores: dict[tuple[DocumentKey, int], SegmentScore] = field(default_factory=dict)
    puts: list[PutReceipt] = field(default_factory=list)
    errors: dict[DocumentKey, Exception] = field(default_factory=dict)

    def assert_equals(self, key: DocumentKey, expected: TextScores) -> None:
        indices = range(len(expected.segments))
        scores = [self.scores[key, index] for index in indices]
        logprobs = np.concatenate([score.logprobs for score in scores])
        backbone = np.concatenate([self.encoded[key, index].backbone_logprobs for index in indices])
        np.testing.assert_array_equal(logprobs, expected.logprobs, strict=True)
        np.testing.assert_array_equal(backbone, expected.backbone_logprobs, strict=True)
        for score, one in zip(scores, expected.segments, strict=True):
            assert score.retrieval.chunks_digest == one.retrieval.chunks_digest
            assert score.retrieval.memory_tokens == one.retrieval.memory_tokens
            assert score.retrieval.gate_mean == one.retrieval.gate_mean
            assert score.retrieval.copy_mean == one.retrieval.copy_mean


def drive(executor: AbstractExecutor, model: LongMem, documents: list[list[Segment]]) -> Run:
    """Run the smallest job: every document through encode, put and score, in the order of the scheduler."""
    config = model.config
    scheduler = SegmentScheduler(Limits(8, 2**30), 1, config.segment_tokens, config.memory_tokens, write=True)
    for segments in documents:
        assert scheduler.add_document(segments, set(), set())
    run = Run()
    deadline = monotonic() + PATIENCE_S
    while scheduler.active:
        assert monotonic() < deadline, f"stuck: {run.submitted - run.completed} never came back"
        for stage, segment in scheduler.start(executor.slots):
            before = executor.slots(stage)
            executor.submit(stage, segment)
            assert executor.slots(stage) == before - 1 >= 0
            run.submitted[stage, segment.key, segment.index] += 1
        for completion in executor.wait(1.0):
            stage, segment = completion.stage, completion.segment
            run.completed[stage, segment.key, segment.index] += 1
            if completion.error is not None:
                assert completion.result is None
                run.errors[segment.key] = completion.error
                released = scheduler.fail(stage, segment)
            else:
                keep(run, completion)
                released = scheduler.finish(stage, segment)
            for done in released:
                executor.release(done)
        scheduler.remove_finished()
    return run


def keep(run: Run, completion: Completion) -> None:
    place, result = (completion.segment.key, completion.segment.index), completion.result
    assert completion.busy_s > 0
    if isinstance(result, EncodeReceipt):
        run.encoded[place] = result
    elif isinstance(result, PutReceipt):
        run.puts.append(result)
    else:
        assert isinstance(result, SegmentScore)
        assert (result.key, result.segment) == place
        run.scores[place] = result


def run_one(executor: AbstractExecutor, stage: Stage, segment: Segment) -> Completion:
    """Run one task alone."""
    executor.submit(stage, segment)
    (completion,) = executor.wait(PATIENCE_S)
    assert (completion.stage, completion.segment.index) == (stage, segment.index)
    return completion


# --- the numbers ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TEXTS)
def test_a_document_gets_the_numbers_of_the_plain_loop(
    executor: AbstractExecutor, model: LongMem, expected: dict[str, TextScores], key: DocumentKey, name: str
) -> None:
    segments = cut(model, key, TEXTS[name])
    run = drive(executor, model, [segments])
    assert run.errors == {}
    run.assert_equals(key, expected[name])
    assert [receipt.duplicate for receipt in run.puts] == [False] * len(segments)


def test_memory_matters_here(expected: dict[str, TextScores]) -> None:
    """Check that the memory affects the scores; otherwise the tests above would pass with any memory."""
    long = expected["long"]
    assert len({score.retrieval.chunks_digest for score in long.segments}) == len(long.segments)
    assert np.abs(long.logprobs - long.backbone_logprobs).max() > 0.1


def test_documents_at_once_do_not_meet(
    executor: AbstractExecutor, model: LongMem, expected: dict[str, TextScores]
) -> None:
    keys = {name: DocumentKey("at once", name) for name in TEXTS}
    run = drive(executor, model, [cut(model, key, TEXTS[name]) for name, key in keys.items()])
    assert run.errors == {}
    for name, key in keys.items():
        run.assert_equals(key, expected[name])


def test_written_before_read_again(
    executor: AbstractExecutor, model: LongMem, expected: dict[str, TextScores], key: DocumentKey
) -> None:
    segments = cut(model, key, TEXTS["long"])
    drive(executor, model, [segments])
    again = drive(executor, model, [segments])
    assert [receipt.duplicate for receipt in again.puts] == [True] * len(segments)
    again.assert_equals(key, expected["long"])


def test_describe_says_what_the_model_is(executor: AbstractExecutor, model: LongMem) -> None:
    assert executor.describe() == describe(model)


# --- tasks ------------------------------------------------------------------------------------------------------


def test_its_tokenizer_is_that_of_the_model(executor: AbstractExecutor, model: LongMem) -> None:
    tokenizer = executor.tokenizer()
    assert (tokenizer.start_token, tokenizer.gives_spans) == (model.tokenizer.start_token, True)
    assert executor.describe().start_token == model.tokenizer.start_token
    for text in (*TEXTS.values(), "naïve 🐳", "\n\n"):
        assert tokenizer.sequence(text).tolist() == model.tokenizer.sequence(text).tolist()
        for ours, theirs in zip(
            tokenizer.sequence_with_spans(text), model.tokenizer.sequence_with_spans(text), strict=True
        ):
            assert ours.tolist() == theirs.tolist()
        assert tokenizer.beginning(text, 5) == model.tokenizer.beginning(text, 5)
    for unusable in (tokenizer.sequence, tokenizer.sequence_with_spans):
        with pytest.raises(DocumentError, match="gives no tokens"):
            unusable("")
    tokenizer.stop()


def test_every_task_completes_exactly_once(executor: AbstractExecutor, model: LongMem) -> None:
    documents = [cut(model, DocumentKey("once", str(index)), TEXTS["long"]) for index in range(2)]
    run = drive(executor, model, documents)
    wanted = {(stage, s.key, s.index) for stage in STAGES for segments in documents for s in segments}
    assert run.submitted == run.completed == Counter(wanted)
    assert executor.wait(0.0) == []


def test_waiting_for_nothing_returns_at_once(executor: AbstractExecutor) -> None:
    start = monotonic()
    assert executor.wait(5.0) == []
    assert monotonic() - start < 1.0


def test_slots_are_taken_and_given_back(executor: AbstractExecutor, model: LongMem, key: DocumentKey) -> None:
    segments = cut(model, key, TEXTS["long"])
    free = {stage: executor.slots(stage) for stage in STAGES}
    assert min(free.values()) >= 1
    assert free["encode"] < len(segments)
    for left in reversed(range(free["encode"])):
        executor.submit("encode", segments[left])
        assert executor.slots("encode") == left
    assert {stage: executor.slots(stage) for stage in ("put", "score")} == {s: free[s] for s in ("put", "score")}
    done = 0
    while done < free["encode"]:
        completions = executor.wait(PATIENCE_S)
        assert completions
        done += len(completions)
        assert executor.slots("encode") == done
    for segment in segments:
        executor.release(segment)


def test_release_frees_what_was_encoded(executor: AbstractExecutor, model: LongMem, key: DocumentKey) -> None:
    first, second = cut(model, key, TEXTS["long"])[:2]
    for segment in (first, second):
        receipt = run_one(executor, "encode", segment).result
        assert isinstance(receipt, EncodeReceipt)
        # the pools' backlog decides whether an encoder prepares a segment
        assert receipt.num_bytes in [model.encode(segment, prepare=prepare).num_bytes for prepare in (False, True)]
    executor.release(first)
    executor.release(first)
    with pytest.raises(KeyError):
        run_one(executor, "put", first)
    assert run_one(executor, "put", second).error is None
    executor.release(second)
    assert vars(executor)["_encoded"] == {}


def test_a_finished_run_holds_nothing(executor: AbstractExecutor, model: LongMem, key: DocumentKey) -> None:
    drive(executor, model, [cut(model, key, TEXTS["long"])])
    assert vars(executor)["_encoded"] == {}


# --- the store behind -------------------------------------------------------------------------------------------


def test_stored_and_forget(executor: AbstractExecutor, model: LongMem, key: DocumentKey) -> None:
    other = DocumentKey("other", key.document)
    assert executor.stored(key) == []
    executor.delete(key)
    segments = cut(model, key, TEXTS["long"])
    drive(executor, model, [segments, cut(model, other, TEXTS["short"])])
    infos = executor.stored(key)
    assert [(info.key, info.segment, info.start_token, info.num_tokens) for info in infos] == [
        (key, s.index, s.start_token, s.num_tokens) for s in segments
    ]
    assert [info.tokens_checksum for info in infos] == [s.tokens_checksum() for s in segments]
    executor.trim(key, 1)
    executor.trim(key, 1)
    assert [info.segment for info in executor.stored(key)] == [s.index for s in segments[1:]]
    executor.delete(key)
    assert executor.stored(key) == []
    assert len(executor.stored(other)) == 1


# --- requests ---------------------------------------------------------------------------------------------------


def items_of(model: LongMem) -> list[Item]:
    texts = ("Call me", "having little money", "years ago, never mind", "x", "Some years ago, never", "purse purse")
    return [Item(text, model.tokenizer.sequence(text), 1) for text in texts]


def ask_all(executor: AbstractExecutor, requests: list[Request]) -> list[Any]:
    """Return answers in the order of the requests; at most as many run at a time as there are slots."""
    waiting, running, results = deque(enumerate(requests)), {}, {}
    deadline = monotonic() + PATIENCE_S
    while waiting or running:
        assert monotonic() < deadline, f"never answered: {running}"
        while waiting and executor.slots("encode") > 0:
            index, request = waiting.popleft()
            running[executor.ask(request)] = index
        assert executor.wait(1.0) == []
        for answer in executor.answers():
            results[running.pop(answer.number)] = answer
    assert executor.answers() == []
    return [results[index] for index in range(len(requests))]


@pytest.mark.parametrize("batch", [1, 4, 6])
def test_items_get_the_same_scores_in_any_order_and_batch(
    executor: AbstractExecutor, model: LongMem, key: DocumentKey, batch: int
) -> None:
    drive(executor, model, [cut(model, key, TEXTS["long"])])
    last = executor.stored(key)[-1]
    items = items_of(model)
    with InMemoryStore() as store:
        score_text(model, TEXTS["long"], store.document("long"))
        view = windows_of(model, store).whole(store.document("long").segments[-1])
    after, alone = (
        {item.name: score_items(model, [item], [each])[0].longmem.logprobs for item in items} for each in (view, None)
    )
    assert max(np.abs(after[name] - alone[name]).max() for name in after) > 0.01
    for order in (items, items[::-1]):
        parts = [tuple(order[first : first + batch]) for first in range(0, len(order), batch)]
        requests: list[Request] = [ItemsRequest(memory, part) for part in parts for memory in (last, None)]
        answers = ask_all(executor, requests)
        assert [answer.error for answer in answers] == [None] * len(requests)
        assert all(answer.busy_s > 0 for answer in answers)
        for request, answer in zip(requests, answers, strict=True):
            expected = after if request.memory else alone
            for score in answer.result:
                np.testing.assert_allclose(score.longmem.logprobs, expected[score.name], atol=1e-5)


def test_a_request_that_fails_says_why_and_others_are_answered(executor: AbstractExecutor, model: LongMem) -> None:
    long = Item("long", np.zeros(100, dtype=np.int32), 1)
    good = tuple(items_of(model))
    failed, answered = ask_all(executor, [ItemsRequest(None, (long,)), ItemsRequest(None, good)])
    assert type(failed.error) is DocumentError
    assert "item long: 99 tokens are read" in str(failed.error)
    assert [score.name for score in answered.result] == [item.name for item in good]


def test_requests_take_the_slots_of_encoding(executor: AbstractExecutor, model: LongMem) -> None:
    free = executor.slots("encode")
    executor.ask(ItemsRequest(None, tuple(items_of(model))))
    assert executor.slots("encode") == free - 1
    while not executor.answers():
        executor.wait(1.0)
    assert executor.slots("encode") == free


# --- errors -----------------------------------------------------------------------------------------------------


@contextmanager
def still_works(executor: AbstractExecutor, model: LongMem, expected: dict[str, TextScores]) -> Iterator[None]:
    """Check that an error of one task leaves the workers intact."""
    yield
    key = DocumentKey("still works", str(monotonic()))
    drive(executor, model, [cut(model, key, TEXTS["long"])]).assert_equals(key, expected["long"])


def test_nan_weights_are_a_numeric_error(
    executor: AbstractExecutor, model: LongMem, expected: dict[str, TextScores], key: DocumentKey
) -> None:
    other = DocumentKey("healthy", key.document)
    text = TEXTS["long"][:100] + POISON + TEXTS["long"][100:]
    with still_works(executor, model, expected):
        run = drive(executor, model, [cut(model, key, text), cut(model, other, TEXTS["long"])])
    assert {key: type(error) for key, error in run.errors.items()} == {key: NumericError}
    assert "finite" in str(run.errors[key])
    run.assert_equals(other, expected["long"])


def test_other_tokens_are_a_conflict(
    executor: AbstractExecutor, model: LongMem, expected: dict[str, TextScores], key: DocumentKey
) -> None:
    drive(executor, model, [cut(model, key, TEXTS["long"])])
    before = executor.stored(key)
    other = cut(model, key, TEXTS["border"])[0]
    with still_works(executor, model, expected):
        assert run_one(executor, "encode", other).error is None
        error = run_one(executor, "put", other).error
        executor.release(other)
    assert type(error) is ConflictError
    assert "already holds other tokens" in str(error)
    assert executor.stored(key) == before


def test_a_past_that_is_not_stored_is_missing(
    executor: AbstractExecutor, model: LongMem, expected: dict[str, TextScores], key: DocumentKey
) -> None:
    segments = cut(model, key, TEXTS["long"])
    assert run_one(executor, "encode", segments[2]).error is None
    with still_works(executor, model, expected):
        error = run_one(executor, "score", segments[2]).error
        executor.release(segments[2])
    assert type(error) is MissingBlockError
    assert "segments [0, 1] of [0, 2) are not stored" in str(error)
    # the failed read must not leave a partial window
    drive(executor, model, [segments]).assert_equals(key, expected["long"])


def test_another_models_store_is_refused_at_the_start(
    opened: Callable[..., AbstractExecutor], source: ModelSource, model: LongMem, tmp_path: Path
) -> None:
    uri = str(tmp_path / "memory.lance")
    with MemoryStore.open(uri) as store:
        score_text(ModelSource(source.source, settings={"chunk_tokens": 8}).open(), "a text", store.document("a"))
    with pytest.raises(FingerprintError, match="chunk_tokens: 8 != 4"):
        opened(source, uri, encoders=1, stores=1)
    with MemoryStore.open(uri) as store:
        assert len(store.documents()) == 1


def test_a_closed_inline_executor_has_closed_its_store(source: ModelSource) -> None:
    store = InMemoryStore()
    with InlineExecutor(source.open(), store) as executor:
        executor.close()
    executor.close()
    with pytest.raises(StoreError, match="closed"):
        executor.stored(DocumentKey("a", "b"))
