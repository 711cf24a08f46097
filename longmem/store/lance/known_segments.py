# SPDX-License-Identifier: Apache-2.0
"""Numbers of the segments of a document that a writer knows to be stored."""

from collections.abc import Iterable


class KnownSegments:
    """A set of segment numbers whose size in memory is constant while they are added in order, without gaps."""

    def __init__(self, segments: Iterable[int] = ()) -> None:
        self._run = range(0)
        """Consecutive numbers, which begin with the first one that was added."""
        self._others: set[int] = set()
        for segment in sorted(segments):
            self.add(segment)

    def __contains__(self, segment: int) -> bool:
        return segment in self._run or segment in self._others

    def add(self, segment: int) -> None:
        if not self._run:
            self._run = range(segment, segment + 1)
        elif segment == self._run.stop:
            end = segment + 1
            while end in self._others:
                self._others.remove(end)
                end += 1
            self._run = range(self._run.start, end)
        elif segment not in self._run:
            self._others.add(segment)
