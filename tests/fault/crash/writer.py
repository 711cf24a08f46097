# SPDX-License-Identifier: Apache-2.0
"""Parent side of one writer: the lives of its processes, one after the other, each ended by a fault."""

import json
import select
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

from longmem.store.lance.store import LanceMemoryStore
from tests.fault.crash.blocks import make_block
from tests.fault.crash.expected import ExpectedFile, Operation, Violation
from tests.fault.crash.nemesis import Fault, Nemesis

ROOT = Path(__file__).parents[3]
ANSWER_S = 60.0
"""Seconds without an answer after which a writer counts as hung."""
MAX_SEGMENTS = 12
FIRST_SEGMENTS = (0, 250)
"""First segments of documents: the second one crosses from one payload table into the next."""
DOCUMENTS = ("a", "b", "c")
CAN_TRIM = hasattr(LanceMemoryStore, "trim")
HANDS_UP = 0.3
"""Share of unanswered operations that are abandoned instead of repeated."""


@contextmanager
def start_writer(uri: str, fault: Fault | None = None) -> "Iterator[subprocess.Popen[bytes]]":
    """Yield a writer process that has opened the store; it is dead afterwards."""
    arguments = [sys.executable, "-m", "tests.fault.crash.child", uri]
    if fault is not None and fault.step:
        arguments += ["--die-at", fault.step, "--nth", str(fault.nth)]
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT) as child:
        try:
            if answer_of(child) is None:
                raise Violation(f"a writer ended with {child.wait()} while opening the store")
            yield child
        finally:
            if child.poll() is None:
                child.kill()
            child.wait()


def send(child: "subprocess.Popen[bytes]", operation: Operation) -> None:
    assert child.stdin is not None
    child.stdin.write(json.dumps(vars(operation)).encode() + b"\n")
    child.stdin.flush()


def answer_of(child: "subprocess.Popen[bytes]") -> dict[str, Any] | None:
    """Return the next answer; None when the process is dead. Raises Violation on a timeout."""
    assert child.stdout is not None
    if not select.select([child.stdout], [], [], ANSWER_S)[0]:
        raise Violation(f"a writer has not answered for {ANSWER_S:g} s")
    line = child.stdout.readline()
    if not line.endswith(b"\n"):
        return None
    answer: dict[str, Any] = json.loads(line)
    return answer_of(child) if "died_at" in answer else answer


def tell(child: "subprocess.Popen[bytes]", operation: Operation) -> dict[str, Any]:
    """Send an operation to a writer that must live, and wait for the answer."""
    send(child, operation)
    if (answer := answer_of(child)) is None:
        raise Violation(f"a writer ended with {child.wait()} during {operation}")
    return answer


class Writer:
    """One writer of its own documents; runs in a thread of the parent."""

    def __init__(self, name: str, uri: str, expected: ExpectedFile, nemesis: Nemesis, random: Random) -> None:
        self.name = name
        self._uri = uri
        self._expected = expected
        self._nemesis = nemesis
        self._random = random
        self._repeat: Operation | None = None
        self.counts: Counter[str] = Counter()

    def live(self, fault: Fault, stopping: Callable[[], bool]) -> None:
        """Start a process, let it work, and end it with the fault. Raises Violation."""
        with start_writer(self._uri, fault) as child:
            self._work(child, fault, stopping)

    def _work(self, child: "subprocess.Popen[bytes]", fault: Fault, stopping: Callable[[], bool]) -> None:
        for number in range(fault.max_operations):
            if stopping() and not fault.step:
                break
            operation = self._next(fault, number)
            self._expected.record_sent(operation)
            send(child, operation)
            self._nemesis.strike(child, fault, number)
            answer = answer_of(child)
            if answer is None:
                self._nemesis.saw_death(child.wait(), fault)
                self._repeat = operation if self._random.random() > HANDS_UP else None
                self.counts["unanswered"] += 1
                return
            if "error" in answer:
                raise Violation(f"writer {self.name}: {operation} failed: {answer['error']}")
            self._expected.record_acked(operation, answer)
            self._repeat = None
            self.counts[operation.kind] += 1
        self._nemesis.ends(child, fault)

    def _next(self, fault: Fault, number: int) -> Operation:
        if self._repeat is not None:
            return replace(self._repeat, id=self._expected.next_id())
        kind = fault.wanted_kind if number >= fault.operation and fault.wanted_kind else self._choose_kind()
        return self._plan(kind)

    def _choose_kind(self) -> str:
        kinds = {"put": 80, "replay": 6, "fork": 6, "delete": 5, "trim": 5 if CAN_TRIM else 0}
        return self._random.choices(list(kinds), list(kinds.values()))[0]

    def _plan(self, kind: str) -> Operation:
        """Return an operation of that kind, or a put where the documents do not allow it."""
        random, possible = self._random, self._expected.possible
        mine = [f"{self.name}-{document}" for document in DOCUMENTS]
        forks = [f"{document}-fork" for document in mine]
        new = self._expected.next_id()
        # an answered operation has one possible content; a fork or trim of other ones would have too many outcomes
        fixed = [each for each in mine + forks if len(possible[each]) == 1 and self._expected.acknowledged(each)]
        if kind == "fork":
            free = [each for each in mine if each in fixed and possible[f"{each}-fork"] == {frozenset()}]
            if free:
                document = random.choice(free)
                return Operation(new, "fork", document, target=f"{document}-fork")
            kind = "delete"
        if kind == "delete" and fixed:
            return Operation(new, "delete", random.choice(fixed))
        if kind == "trim" and fixed:
            document = random.choice(fixed)
            segments = sorted(each.segment for each in self._expected.acknowledged(document))
            return Operation(new, "trim", document, segment=random.choice(segments) + 1)
        owned = [each for each in fixed if each in mine]
        if kind == "replay" and owned:
            content = random.choice(sorted(self._expected.acknowledged(random.choice(owned))))
            checksum = make_block(content).checksum()
            return Operation(new, "put", content.origin, content.segment, content.version, checksum)
        return self._new_put(new, mine)

    def _new_put(self, new: int, mine: list[str]) -> Operation:
        document = self._random.choice(mine)
        held = {each.segment for each in self._expected.sent(document)}
        if len(held) >= MAX_SEGMENTS:
            return Operation(new, "delete", document)
        first = FIRST_SEGMENTS[DOCUMENTS.index(document.rpartition("-")[2]) % len(FIRST_SEGMENTS)]
        segment = max(held, default=first - 1) + 1
        operation = Operation(new, "put", document, segment, version=new)
        return replace(operation, checksum=make_block(operation.content).checksum())
