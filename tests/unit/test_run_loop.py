# SPDX-License-Identifier: Apache-2.0
"""RunLoop on an executor that only keeps a list: what is submitted, reported and released, and in which order."""

from typing import Any

import numpy as np
import pytest

from longmem.errors import NumericError
from longmem.model.source import ModelDescription
from longmem.runtime.executor import AbstractExecutor, Answer, Completion, ExecutorEvent
from longmem.runtime.requests import Request
from longmem.runtime.run_loop import RunLoop
from longmem.runtime.scheduler import Limits, SegmentScheduler
from longmem.runtime.steps import OnStep, ignore_step
from longmem.stages import Stage
from longmem.text.tokenizer import AbstractTokenizer
from longmem.types import DocumentKey, Segment, SegmentInfo

SIZE = 4
KEY = DocumentKey("test", "book")


def segments_of(count: int, key: DocumentKey = KEY) -> list[Segment]:
    tokens = np.arange(SIZE, dtype=np.int32)
    return [Segment(key, index, SIZE * index, tokens, tokens) for index in range(count)]


class ListExecutor(AbstractExecutor):
    """Completes everything that was submitted at the next `wait`; segments in `broken` end with an error."""

    def __init__(self, log: list[Any], broken: tuple[int, ...] = ()) -> None:
        self.log = log
        self.broken = broken
        self.submitted: list[tuple[Stage, Segment]] = []
        self.backlogs: list[tuple[int, int | None]] = []

    def slots(self, _stage: Stage) -> int:
        return 2 - len(self.submitted)

    def set_backlog(self, unscored_segments: int, unsubmitted_segments: int | None) -> None:
        self.backlogs.append((unscored_segments, unsubmitted_segments))

    def submit(self, stage: Stage, segment: Segment) -> None:
        self.submitted.append((stage, segment))

    def wait(self, timeout_s: float) -> list[Completion]:
        assert timeout_s == 0.5
        done, self.submitted = self.submitted, []
        errors = [NumericError("planted") if segment.index in self.broken else None for _, segment in done]
        return [Completion(*task, None, error, 0.0) for task, error in zip(done, errors, strict=True)]

    def events(self) -> list[ExecutorEvent]:
        return [ExecutorEvent("retry", "planted")]

    def describe(self) -> ModelDescription:
        raise AssertionError("a loop asks for no model")

    def tokenizer(self) -> AbstractTokenizer:
        raise AssertionError("a loop tokenises nothing")

    def ask(self, request: Request, on_step: OnStep = ignore_step) -> int:
        raise AssertionError(f"a loop asks nothing: {request}")

    def answers(self) -> list[Answer]:
        raise AssertionError("a loop asks nothing")

    def stored(self, key: DocumentKey) -> list[SegmentInfo]:
        raise AssertionError(f"a loop looks nothing up: {key}")

    def trim(self, key: DocumentKey, first_segment: int) -> None:
        raise AssertionError(f"a loop removes nothing: {key} below {first_segment}")

    def delete(self, key: DocumentKey) -> None:
        raise AssertionError(f"a loop removes nothing: {key}")

    def close(self) -> None:
        pass

    def release(self, segment: Segment) -> None:
        self.log.append(("release", segment.index))


def loop_of(executor: Any, all_admitted: bool = True) -> tuple[RunLoop, SegmentScheduler]:
    scheduler = SegmentScheduler(Limits(8, 2**20), 1, SIZE, 2 * SIZE, write=True)
    log = executor.log
    loop = RunLoop(
        executor,
        scheduler,
        on_completed=lambda each: log.append((each.stage, each.segment.index, each.error is None)),
        on_document_done=lambda key, failed: log.append((key, failed)),
        on_event=lambda event: log.append(event.kind),
        all_admitted=lambda: all_admitted,
        on_released=lambda segment: log.append(("released", segment.index)),
    )
    return loop, scheduler


def run(loop: RunLoop, scheduler: SegmentScheduler) -> None:
    for _ in range(20):
        if not scheduler.active:
            return
        loop.turn(0.5)
    pytest.fail("the loop does not end")


def test_every_stage_of_every_segment_is_reported_before_its_data_are_released() -> None:
    log: list[Any] = []
    loop, scheduler = loop_of(ListExecutor(log))
    assert scheduler.add_document(segments_of(3), set(), set())
    run(loop, scheduler)
    stages = [each for each in log if each[0] in ("encode", "put", "score")]
    assert sorted(stages) == sorted((stage, index, True) for stage in ("encode", "put", "score") for index in range(3))
    for index in range(3):
        release = log.index(("release", index))
        assert log[release + 1] == ("released", index)
        assert {stage for stage, of, *_ in log[:release] if of == index} >= {"encode", "put", "score"}
    assert log[-1] == (KEY, False)
    assert log[-2] == "retry", "events are told before documents that are done"


def test_an_error_ends_its_document_and_no_other() -> None:
    log: list[Any] = []
    loop, scheduler = loop_of(ListExecutor(log, broken=(1,)))
    other = DocumentKey("test", "other")
    assert scheduler.add_document(segments_of(3), set(), set())
    assert scheduler.add_document(segments_of(1, other), set(), set())
    run(loop, scheduler)
    assert ("encode", 1, False) in log
    assert [each for each in log if each in ((KEY, True), (other, False))] == [(KEY, True), (other, False)]


@pytest.mark.parametrize("all_admitted", [True, False])
def test_the_backlog_is_known_when_all_documents_are(all_admitted: bool) -> None:
    executor = ListExecutor([])
    loop, scheduler = loop_of(executor, all_admitted)
    assert scheduler.add_document(segments_of(4), set(), set())
    loop.submit()
    assert executor.backlogs == [(0, 3 if all_admitted else None), (0, 2 if all_admitted else None)]


def test_a_cancelled_document_starts_nothing_more() -> None:
    log: list[Any] = []
    executor = ListExecutor(log)
    loop, scheduler = loop_of(executor)
    assert scheduler.add_document(segments_of(5), set(), set())
    loop.submit()
    started = list(executor.submitted)
    loop.cancel(KEY)
    run(loop, scheduler)
    assert [each[:2] for each in log if each[0] == "encode"] == [(stage, segment.index) for stage, segment in started]
    assert log[-1] == (KEY, True)
    assert {index for kind, index in (each for each in log if each[0] == "release")} == {0, 1}
