# SPDX-License-Identifier: Apache-2.0
"""Numbers of the segments of a document that a writer knows to be stored."""

from collections.abc import Iterable


class KnownSegments:
    """A set of segment numbers. It takes constant memory while each new number continues the run of the others."""

    def __init__(self, segments: Iterable[int] = ()) -> None:
        self._run = range(0)
        """Consecutive numbers around the first one."""
        self._others: set[int] = set()
        for segment in segments:
            self.add(segment)

    def __contains__(self, segment: int) -> bool:
        return segment in self._run or segment in self._others

    def add(self, segment: int) -> None:
        if not self._run:
            self._run = range(segment, segment + 1)
        elif segment not in self._run:
            self._others.add(segment)
            start, end = self._run.start, self._run.stop
            while end in self._others:
                self._others.remove(end)
                end += 1
            while start - 1 in self._others:
                start -= 1
                self._others.remove(start)
            self._run = range(start, end)
