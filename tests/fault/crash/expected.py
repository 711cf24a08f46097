# SPDX-License-Identifier: Apache-2.0
"""Expected state of a store, kept in a file outside it: one JSON line before each operation, one after.

An operation without an answer may or may not have happened. So each document has a set of *possible* contents; an
answer narrows it, and an inspection of the quiet store (`seen`) fixes it. Then

    acknowledged = in every possible content  ⊆  visible  ⊆  in some possible content = sent
"""

import json
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import RLock
from typing import Any

from tests.fault.crash.blocks import Content

Contents = frozenset[Content]
NOTHING: Contents = frozenset()


class Violation(AssertionError):
    """Broken promise of the store."""


@dataclass(frozen=True)
class Operation:
    """One call of a writer."""

    id: int
    kind: str
    """Kind: put, fork, delete or trim."""
    document: str
    segment: int = 0
    """Segment of a put; first segment that a trim keeps."""
    version: int = 0
    checksum: str = ""
    target: str = ""
    """Target document of a fork."""

    @property
    def content(self) -> Content:
        return Content(self.segment, self.document, self.version)

    @property
    def changes(self) -> str:
        """Document that the operation changes."""
        return self.target if self.kind == "fork" else self.document


class Expected:
    """State accumulated from the file's lines."""

    def __init__(self) -> None:
        self.num_sent = 0
        self.num_acked = 0
        self.last_id = 0
        self._forget()

    def _forget(self) -> None:
        self.possible: dict[str, set[Contents]] = defaultdict(lambda: {NOTHING})
        self.removals: Counter[str] = Counter()
        """Number of deletes and trims sent, by document."""
        self.removing: set[str] = set()
        """Documents with a delete or trim that may still be in progress: sent, with no answer and no `seen` since."""
        self.ever_sent: dict[str, set[Content]] = defaultdict(set)
        self.checksums: dict[Content, str] = {}
        self._open: dict[int, tuple[Operation, set[Contents]]] = {}

    def acknowledged(self, document: str) -> Contents:
        return frozenset.intersection(*self.possible[document])

    def sent(self, document: str) -> Contents:
        return frozenset().union(*self.possible[document])

    def apply(self, line: dict[str, Any]) -> None:
        """Apply one line. Raises Violation when an answer contradicts every possible content."""
        state = line["state"]
        if state == "sent":
            self._send(Operation(**line["operation"]))
        elif state == "acked":
            self._acknowledge(int(line["id"]), line["answer"])
        elif state == "seen":
            contents = {Content(*where): checksum for *where, checksum in line["contents"]}
            self.possible[line["document"]] = {frozenset(contents)}
            self.removing.discard(line["document"])
            self.ever_sent[line["document"]] |= set(contents)
            self.checksums |= contents
        else:
            assert state == "failed", f"unknown state {state!r}"

    def _send(self, operation: Operation) -> None:
        document = operation.changes
        self.last_id = max(self.last_id, operation.id)
        before = set(self.possible[document])
        self.num_sent += 1
        self._open[operation.id] = (operation, before)
        if operation.kind == "put":
            self.checksums[operation.content] = operation.checksum
            self.ever_sent[document].add(operation.content)
        elif operation.kind == "fork":
            self.ever_sent[document] |= self.sent(operation.document)
        else:
            self.removals[document] += 1
            self.removing.add(document)
        self.possible[document] = before | {self._after(operation, contents) for contents in before}

    def _acknowledge(self, number: int, answer: dict[str, Any]) -> None:
        operation, before = self._open.pop(number)
        self.num_acked += 1
        self.removing.discard(operation.changes)
        if answer.get("refused"):
            # a fork repeated after a crash: its target already exists
            after = {contents for contents in before if contents}
        else:
            after = {self._after(operation, each) for each in before if self._agrees(operation, each, answer)}
        if not after:
            raise Violation(f"{operation} was answered {answer}, possible before it: {_shown(before)}")
        self.possible[operation.changes] = after

    def _after(self, operation: Operation, before: Contents) -> Contents:
        if operation.kind == "put":
            return before | {operation.content}
        if operation.kind == "fork":
            return before or self.acknowledged(operation.document)
        if operation.kind == "trim":
            return frozenset(each for each in before if each.segment >= operation.segment)
        return NOTHING

    def _agrees(self, operation: Operation, before: Contents, answer: dict[str, Any]) -> bool:
        if operation.kind == "put":
            return bool(answer["duplicate"]) == (operation.content in before)
        if operation.kind == "fork":
            return not before and answer["count"] == len(self.acknowledged(operation.document))
        return bool(answer["count"] == len(before) - len(self._after(operation, before)))


class ExpectedFile(Expected):
    """Writing side of the file, shared by the threads of the parent. Continues an existing file."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self._lock = RLock()
        path.touch()
        for line in path.read_text(encoding="utf-8").splitlines():
            self.apply(json.loads(line))
        self._next = self.last_id

    def next_id(self) -> int:
        with self._lock:
            self._next += 1
            return self._next

    def record_sent(self, operation: Operation) -> None:
        self._record({"state": "sent", "operation": asdict(operation)})

    def record_acked(self, operation: Operation, answer: dict[str, Any]) -> None:
        self._record({"state": "acked", "id": operation.id, "answer": answer})

    def record_failed(self, operation: Operation, error: str) -> None:
        """Record an error that leaves open whether the operation happened."""
        self._record({"state": "failed", "id": operation.id, "error": error})

    def record_seen(self, document: str, contents: Iterable[Content]) -> None:
        listed = [[each.segment, each.origin, each.version, self.checksums[each]] for each in sorted(contents)]
        self._record({"state": "seen", "document": document, "contents": listed})

    def forget_past(self) -> None:
        """Start a new file with the current state, so that a run of days needs no more memory than one of minutes.

        Every document must have been seen since its last operation. The old file is kept next to the new one until the
        next call.
        """
        now = {document: self.acknowledged(document) for document in self.possible}
        assert all(len(each) == 1 for each in self.possible.values()), "a document was not seen"
        checksums = {content: self.checksums[content] for contents in now.values() for content in contents}
        self.path.replace(self.path.with_suffix(".old.jsonl"))
        self.path.touch()
        self._forget()
        self.checksums |= checksums
        for document, contents in now.items():
            self.record_seen(document, contents)

    def _record(self, line: dict[str, Any]) -> None:
        with self._lock:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
            self.apply(line)


class ExpectedReader(Expected):
    """Reading side of the file, for another process or the checker."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._file = path.open("rb")
        self._rest = b""

    def catch_up(self) -> None:
        *lines, self._rest = (self._rest + self._file.read()).split(b"\n")
        for line in lines:
            self.apply(json.loads(line))

    def close(self) -> None:
        self._file.close()


def _shown(possible: set[Contents]) -> str:
    return " or ".join(str(sorted((each.segment, each.version) for each in contents)) for contents in possible)
