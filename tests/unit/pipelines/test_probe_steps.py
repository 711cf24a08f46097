# SPDX-License-Identifier: Apache-2.0
"""Steps of a probe's requests: what is told while one memory is written and asked."""

from collections.abc import Callable

import pytest

from longmem.model.longmem import LongMem
from longmem.runtime.inline_executor import InlineExecutor
from longmem.runtime.requests import Request
from longmem.store.in_memory import InMemoryStore
from longmem.synthetic.pairs import PairPlan
from longmem.synthetic.passkey import PasskeyPlan
from longmem.text.language_reference import language_reference
from pipelines.probe.job import Plan, ProbeRequest
from tests.inputs import DEFAULT_FORM


@pytest.fixture
def executor(small_model: Callable[..., LongMem]) -> InlineExecutor:
    return InlineExecutor(small_model(**DEFAULT_FORM, segment_tokens=88, memory_tokens=528), InMemoryStore())


def steps_of(executor: InlineExecutor, request: Request) -> list[str]:
    steps: list[str] = []
    executor.ask(request, lambda step: steps.append(str(step)))
    executor.wait(60.0)
    (answer,) = executor.answers()
    assert answer.error is None
    return steps


@pytest.mark.parametrize(
    ("plan", "characters", "name", "segments", "questions"),
    [
        (PasskeyPlan(lengths=(352,), depths=(0.0, 1.0), trials=1, choices=3), None, "352 tokens", 4, 2),
        # three segments of text, and the first one with a start token: the other six are these again
        (PasskeyPlan(lengths=(880,), depths=(0.5,), trials=1, choices=3), 352, "880 tokens", 4, 1),
        (PairPlan(subject="labels", examples=(6,), shots=(0, 1), questions=2, choices=3), None, "6 lines", 2, 4),
    ],
)
def test_segments_then_questions_are_told_one_by_one(
    executor: InlineExecutor, plan: Plan, characters: int | None, name: str, segments: int, questions: int
) -> None:
    request = ProbeRequest(language_reference().text[:characters], plan)
    assert str(request).endswith(f" with {name} in memory")
    encoded = [f"{done} of {segments} segments encoded" for done in range(segments + 1)]
    answered = [f"{done} of {questions} questions answered" for done in range(1, questions + 1)]
    assert steps_of(executor, request) == encoded + answered
