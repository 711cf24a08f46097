# SPDX-License-Identifier: Apache-2.0
"""The concurrency logic of a job, driven without workers: tasks finish in any order, and some fail.

`Driver` is a tiny executor. Hypothesis chooses which of the running tasks ends next, and the driver checks the
invariants after every step.
"""

from collections import Counter
from dataclasses import dataclass, field, replace
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longmem.runtime.executor import STAGES, Stage
from longmem.runtime.scheduler import Limits, SegmentScheduler
from longmem.text.segments import cut_segments
from longmem.types import DocumentKey, Segment

SEGMENT_BYTES = 100
SegmentId = tuple[DocumentKey, int]


@dataclass(frozen=True)
class Book:
    """A document to admit, and its scripted fate."""

    num_tokens: int
    scored: frozenset[int] = frozenset()
    stored: frozenset[int] = frozenset()
    fails_at: tuple[Stage, int] | None = None
    admit_after: int = 0
    """Completions of the job before this document is admitted."""

    def num_segments(self, segment_tokens: int) -> int:
        return -(-self.num_tokens // segment_tokens)


@dataclass(frozen=True)
class Job:
    books: tuple[Book, ...]
    segment_tokens: int
    memory_tokens: int
    limits: Limits
    slots: dict[Stage, int]
    write: bool
    seed: int
    keep: bool = True
    """False if blocks are removed as soon as no segment needs them."""
    one_pass: bool = False
    """True if encoding reads the memory."""

    def past_of(self, segment: int) -> set[int]:
        """Return the segments that one may read: the rule as documented, not as the scheduler computes it."""
        start = segment * self.segment_tokens
        return {token // self.segment_tokens for token in range(max(0, start - self.memory_tokens), start)}

    def to_encode(self, wanted: set[int], stored: frozenset[int]) -> set[int]:
        """Return segments to encode for those of `wanted`: in one pass also what they read and is not stored."""
        while self.one_pass and (past := set().union(*map(self.past_of, wanted)) - stored - wanted):
            wanted = wanted | past
        return wanted


@dataclass
class Driver:
    """Driver that runs a job to its end and records all steps."""

    job: Job
    started: dict[Stage, Counter[SegmentId]] = field(default_factory=lambda: {stage: Counter() for stage in STAGES})
    released: Counter[SegmentId] = field(default_factory=Counter)
    ended: dict[DocumentKey, bool] = field(default_factory=dict)
    encoded: set[SegmentId] = field(default_factory=set)
    stored: set[SegmentId] = field(default_factory=set)
    written: set[SegmentId] = field(default_factory=set)
    """Segments that were stored at any time, also those removed since."""
    failed: set[DocumentKey] = field(default_factory=set)
    max_in_flight: int = 0

    def __post_init__(self) -> None:
        job = self.job
        self.scheduler = SegmentScheduler(
            job.limits, SEGMENT_BYTES, job.segment_tokens, job.memory_tokens, job.write, job.keep, job.one_pass
        )
        self.running: list[tuple[Stage, Segment]] = []

    def run(self) -> "Driver":
        job = self.job
        random = Random(job.seed)
        waiting = sorted(enumerate(job.books), key=lambda each: each[1].admit_after)
        # each segment passes at most three stages, so more completions mean that work is repeated
        budget = 3 * sum(book.num_segments(job.segment_tokens) for book in job.books)
        completions = 0
        while waiting or self.scheduler.active:
            while waiting and (waiting[0][1].admit_after <= completions or not self.scheduler.active):
                self.admit(*waiting.pop(0))
            for stage, segment in self.scheduler.start(self.free_slots):
                self.start(stage, segment)
            if self.running:
                self.complete(*self.running.pop(random.randrange(len(self.running))))
                completions += 1
                assert completions <= budget, "tasks are started again and again"
            else:
                assert not self.scheduler.active, "nothing runs, but documents are not done"
            for key, failed in self.scheduler.remove_finished():
                assert key not in self.ended, f"{key} ended twice"
                self.ended[key] = failed
        assert not self.running
        assert (self.scheduler.num_in_flight, self.scheduler.num_waiting) == (0, 0)
        return self

    def admit(self, number: int, book: Book) -> None:
        segments = cut(number, book, self.job.segment_tokens)
        key = segments[0].key
        self.stored |= {(key, index) for index in book.stored}
        self.written |= {(key, index) for index in book.stored}
        if not self.scheduler.add_document(segments, set(book.scored), set(book.stored)):
            self.ended[key] = False

    def free_slots(self, stage: Stage) -> int:
        return self.job.slots[stage] - sum(each == stage for each, _ in self.running)

    def start(self, stage: Stage, segment: Segment) -> None:
        job, segment_id = self.job, (segment.key, segment.index)
        assert self.free_slots(stage) > 0, f"{stage} was started without a slot"
        assert segment.key not in self.failed, f"{segment.key} failed, but {stage} was started"
        self.started[stage][segment_id] += 1
        self.running.append((stage, segment))
        if stage != "encode":
            assert segment_id in self.encoded, f"{stage} before encode"
            assert not self.released[segment_id], f"{stage} after release"
        if stage == "score" or (stage == "encode" and job.one_pass):
            needed = {(segment.key, index) for index in job.past_of(segment.index)}
            assert needed <= self.stored, f"{stage} of segment {segment.index} before its past is stored"
        held = len(self.encoded) - self.released.total() + sum(each == "encode" for each, _ in self.running)
        assert held == self.scheduler.num_in_flight
        assert held * SEGMENT_BYTES == self.scheduler.in_flight_bytes
        bound = min(job.limits.max_in_flight_segments, job.limits.max_in_flight_bytes // SEGMENT_BYTES)
        assert held <= max(1, bound)
        self.max_in_flight = max(self.max_in_flight, held)

    def complete(self, stage: Stage, segment: Segment) -> None:
        book = self.job.books[int(segment.key.document)]
        if book.fails_at == (stage, segment.index):
            self.failed.add(segment.key)
            released = self.scheduler.fail(stage, segment)
        else:
            if stage == "encode":
                self.encoded.add((segment.key, segment.index))
            elif stage == "put":
                self.stored.add((segment.key, segment.index))
                self.written.add((segment.key, segment.index))
            released = self.scheduler.finish(stage, segment)
            if stage == "score" and not self.job.keep:
                self.trim(segment.key)
        for each in released:
            segment_id = (each.key, each.index)
            assert segment_id in self.encoded
            assert not any((each.key, each.index) == (other.key, other.index) for _, other in self.running)
            self.released[segment_id] += 1

    def trim(self, key: DocumentKey) -> None:
        first = self.scheduler.first_needed(key)
        self.stored = {segment_id for segment_id in self.stored if segment_id[0] != key or segment_id[1] >= first}
        if not self.job.one_pass:
            return
        for segment_id in self.encoded - self.written:
            if segment_id[0] == key and self.job.write and not self.released[segment_id]:
                # lost with its worker, it would be encoded again
                past = {(key, index) for index in self.job.past_of(segment_id[1])}
                assert past <= self.stored, (
                    f"what segment {segment_id[1]} was encoded behind is removed before it is stored"
                )

    def of(self, stage: Stage, number: int) -> dict[int, int]:
        """Return how often each segment of a document was started."""
        return {index: count for (key, index), count in self.started[stage].items() if key == key_of(number)}


def key_of(number: int) -> DocumentKey:
    return DocumentKey("default", str(number))


def cut(number: int, book: Book, segment_tokens: int) -> list[Segment]:
    return cut_segments(key_of(number), np.zeros(book.num_tokens, np.int32), segment_tokens)


@st.composite
def jobs(draw: st.DrawFn, resumed: bool = False, failing: bool = False) -> Job:
    chunk = draw(st.integers(1, 4))
    segment_tokens = chunk * draw(st.integers(1, 4))
    # windows shorter than a segment, not a multiple of it, and longer than any document
    memory_tokens = chunk * draw(st.integers(0, 40))
    write = True if memory_tokens else draw(st.booleans())
    books = []
    for _ in range(draw(st.integers(1, 4))):
        num_tokens = draw(st.integers(1, 12 * segment_tokens))
        indices = st.sampled_from(range(-(-num_tokens // segment_tokens)))
        some = st.frozensets(indices)
        books.append(
            Book(
                num_tokens,
                scored=draw(some) if resumed else frozenset(),
                stored=draw(some) if resumed else frozenset(),
                fails_at=draw(st.none() | st.tuples(st.sampled_from(STAGES), indices)) if failing else None,
                admit_after=draw(st.integers(0, 20)),
            )
        )
    return Job(
        tuple(books),
        segment_tokens,
        memory_tokens,
        Limits(draw(st.integers(0, 8)), draw(st.integers(0, 8 * SEGMENT_BYTES))),
        {stage: draw(st.integers(1, 3)) for stage in STAGES},
        write,
        seed=draw(st.integers(0, 2**16)),
        one_pass=draw(st.booleans()),
    )


def once(indices: set[int]) -> dict[int, int]:
    return dict.fromkeys(indices, 1)


@given(job=jobs())
@settings(max_examples=300)
def test_every_segment_passes_every_stage_once(job: Job) -> None:
    driver = Driver(job).run()
    assert driver.ended == {key_of(number): False for number in range(len(job.books))}
    for number, book in enumerate(job.books):
        everything = set(range(book.num_segments(job.segment_tokens)))
        assert driver.of("encode", number) == once(everything)
        assert driver.of("score", number) == once(everything)
        assert driver.of("put", number) == (once(everything) if job.write else {})
    assert driver.released == Counter(dict.fromkeys(driver.encoded, 1))


@given(job=jobs(resumed=True))
@settings(max_examples=300)
def test_a_resumed_job_does_only_what_is_left(job: Job) -> None:
    driver = Driver(job).run()
    assert driver.ended == {key_of(number): False for number in range(len(job.books))}
    for number, book in enumerate(job.books):
        everything = set(range(book.num_segments(job.segment_tokens)))
        to_score = everything - book.scored
        to_store = everything - book.stored if job.write else set()
        assert driver.of("score", number) == once(to_score)
        assert driver.of("put", number) == once(to_store)
        assert driver.of("encode", number) == once(job.to_encode(to_score | to_store, book.stored))
    assert driver.released == Counter(dict.fromkeys(driver.encoded, 1))


@given(job=jobs(resumed=True))
@settings(max_examples=300)
def test_what_is_not_kept_is_stored_only_for_who_will_read_it(job: Job) -> None:
    """Check removal: blocks that no window reaches any more may go at any time; the driver checks this with every
    score."""
    driver = Driver(replace(job, keep=False)).run()
    assert driver.ended == {key_of(number): False for number in range(len(job.books))}
    for number, book in enumerate(job.books):
        everything = set(range(book.num_segments(job.segment_tokens)))
        to_score = everything - book.scored
        assert driver.of("score", number) == once(to_score)
        first = max(0, min(to_score, default=0) * job.segment_tokens - job.memory_tokens) // job.segment_tokens
        to_store = {index for index in everything - book.stored if index >= first} if to_score and job.write else set()
        to_encode = job.to_encode(to_score | to_store, book.stored)
        assert driver.of("encode", number) == once(to_encode)
        # what is encoded is stored, unless it is: a later segment may be encoded behind it
        assert driver.of("put", number) == once(to_encode - book.stored if job.one_pass and job.write else to_store)


@given(job=jobs(resumed=True, failing=True))
@settings(max_examples=300)
def test_a_failing_document_stops_only_itself(job: Job) -> None:
    driver = Driver(job).run()
    assert set(driver.ended) == {key_of(number) for number in range(len(job.books))}
    for number, book in enumerate(job.books):
        failed = key_of(number) in driver.failed
        assert driver.ended[key_of(number)] == failed
        happens = book.fails_at is not None and driver.started[book.fails_at[0]][key_of(number), book.fails_at[1]]
        assert failed == bool(happens)
        everything = set(range(book.num_segments(job.segment_tokens)))
        to_score = everything - book.scored
        if failed:
            # a failing task may be the last of its document, so the bound is the total
            assert set(driver.of("score", number)) <= to_score
        else:
            assert driver.of("score", number) == once(to_score)
    assert driver.released == Counter(dict.fromkeys(driver.encoded, 1)), "a failed document gives its credit back"


def simple(num_segments: int, **changes: object) -> Job:
    values: dict[str, object] = {
        "books": (Book(4 * num_segments),),
        "segment_tokens": 4,
        "memory_tokens": 1000,
        "limits": Limits(8, 8 * SEGMENT_BYTES),
        "slots": dict.fromkeys(STAGES, 2),
        "write": True,
        "seed": 0,
    }
    return Job(**{**values, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize("limits", [Limits(0, 0), Limits(1, SEGMENT_BYTES - 1), Limits(-3, 10**9), Limits(10**9, -1)])
def test_one_segment_may_always_run(limits: Limits) -> None:
    """Check a limit below the size of one segment, which would otherwise block the job."""
    driver = Driver(simple(6, limits=limits)).run()
    assert driver.max_in_flight == 1
    assert driver.of("score", 0) == once(set(range(6)))


@pytest.mark.parametrize("limits", [Limits(3, 10**9), Limits(10**9, 3 * SEGMENT_BYTES), Limits(10**9, 399)])
def test_both_limits_are_used_to_the_full(limits: Limits) -> None:
    driver = Driver(simple(20, limits=limits, slots={"encode": 9, "put": 1, "score": 1})).run()
    assert driver.max_in_flight == 3


def test_one_document_keeps_many_readers_busy() -> None:
    """Check that no segment waits for another one's score."""
    scheduler = SegmentScheduler(Limits(100, 10**9), SEGMENT_BYTES, 4, 1000, write=True)
    scheduler.add_document(cut(0, Book(40), 4), set(), set(range(10)))
    encodes = list(scheduler.start(lambda stage: 10 if stage == "encode" and scheduler.num_waiting else 0))
    assert [segment.index for _, segment in encodes] == list(range(10))
    for stage, segment in reversed(encodes):
        assert scheduler.finish(stage, segment) == []
    assert scheduler.queue_depth("score") == 10
    scores = list(scheduler.start(lambda stage: int(scheduler.queue_depth("score") > 0 and stage == "score")))[:10]
    assert sorted(segment.index for _, segment in scores) == list(range(10))


def test_a_score_waits_for_the_last_missing_block_of_its_window_only() -> None:
    """Check a window of 6 tokens with segments of 4: segment 3 (tokens 12…) reads [6, 12), so segments 1 and 2."""
    scheduler = SegmentScheduler(Limits(100, 10**9), SEGMENT_BYTES, 4, 6, write=True)
    segments = cut(0, Book(16), 4)
    scheduler.add_document(segments, {0, 1, 2}, set())

    def startable(stage: Stage) -> list[int]:
        allowed = {stage: 1}
        return [segment.index for _, segment in scheduler.start(lambda each: allowed.pop(each, 0))]

    for index in range(4):
        assert startable("encode") == [index]
        scheduler.finish("encode", segments[index])
    for index in range(3):
        assert startable("score") == []
        assert startable("put") == [index]
        scheduler.finish("put", segments[index])
    assert startable("score") == [3], "although segment 3 itself is not stored yet"


def test_a_cancelled_document_starts_nothing_more_and_ends_with_what_ran() -> None:
    scheduler = SegmentScheduler(Limits(4, 1000), SEGMENT_BYTES, 4, 8, True)
    first, second = (
        cut_segments(DocumentKey("", name), np.arange(40, dtype=np.int32), 4) for name in ("first", "second")
    )
    scheduler.add_document(first, set(), set())
    started = list(scheduler.start(lambda _stage: 4))
    assert [(stage, segment.index) for stage, segment in started] == [("encode", index) for index in range(4)]
    assert scheduler.finish(*started[0]) == []
    assert scheduler.cancel(first[0].key) == [first[0]]
    assert list(scheduler.start(lambda _stage: 4)) == []
    scheduler.add_document(second, set(), set())
    assert [segment.key.document for _, segment in scheduler.start(lambda _stage: 4)] == ["second"]
    assert [scheduler.finish(*each) for each in started[1:]] == [[segment] for _, segment in started[1:]]
    assert scheduler.remove_finished() == [(first[0].key, True)]
    assert scheduler.num_in_flight == 1


def test_nothing_left_is_not_admitted() -> None:
    scheduler = SegmentScheduler(Limits(1, 1), SEGMENT_BYTES, 4, 8, write=True)
    assert not scheduler.add_document(cut(0, Book(12), 4), {0, 1, 2}, {0, 1, 2})
    assert scheduler.active == []
    no_writing = SegmentScheduler(Limits(1, 1), SEGMENT_BYTES, 4, 0, write=False)
    assert not no_writing.add_document(cut(0, Book(12), 4), {0, 1, 2}, set())


def test_a_document_is_admitted_once() -> None:
    scheduler = SegmentScheduler(Limits(1, 1), SEGMENT_BYTES, 4, 8, write=True)
    scheduler.add_document(cut(0, Book(12), 4), set(), set())
    with pytest.raises(AssertionError, match="admitted twice"):
        scheduler.add_document(cut(0, Book(12), 4), set(), set())


def test_queue_depths_count_what_runs_and_what_could() -> None:
    scheduler = SegmentScheduler(Limits(2, 10**9), SEGMENT_BYTES, 4, 8, write=True)
    segments = cut(0, Book(20), 4)
    scheduler.add_document(segments, set(), set())

    def depths() -> dict[str, int]:
        return {stage: scheduler.queue_depth(stage) for stage in STAGES}

    assert depths() == {"encode": 5, "put": 0, "score": 0}
    assert [(stage, segment.index) for stage, segment in scheduler.start(lambda stage: 1)] == [
        ("encode", 0),
        ("encode", 1),
    ]
    assert depths() == {"encode": 5, "put": 0, "score": 0}
    scheduler.finish("encode", segments[1])
    scheduler.finish("encode", segments[0])
    assert depths() == {"encode": 3, "put": 2, "score": 2}
    assert scheduler.in_flight_bytes == 2 * SEGMENT_BYTES


def test_in_one_pass_documents_are_encoded_side_by_side() -> None:
    """Check admission: a document counts once, however many segments it has left."""
    scheduler = SegmentScheduler(Limits(100, 10**9), SEGMENT_BYTES, 4, 8, write=True, one_pass=True)
    for number in range(3):
        assert scheduler.num_encodable == number
        scheduler.add_document(cut(number, Book(40), 4), set(), set())
    started = []

    def slots(stage: Stage) -> int:
        return 4 - len(started) if stage == "encode" else 0

    for _, segment in scheduler.start(slots):
        started.append((segment.key, segment.index))
    assert started == [(key_of(number), 0) for number in range(3)]
    assert scheduler.num_waiting == 27
