# SPDX-License-Identifier: Apache-2.0
"""The rule of what a segment may read. Readers, the scheduler and training compute it here and nowhere else.

    document   ├── 0 ──┼── 1 ──┼── 2 ──┼── 3 ──┼── 4 ──┼── 5 ──┤   segments
                           ├─── memory_tokens ─┤
                         start                end = first token of segment 4, which reads [start, end)

The interval slides with the reader. It never reaches the reader's own segment, so that no token reads itself or
anything behind it, and it is empty for the first segment of a document.
"""

from dataclasses import dataclass

from longmem.config import LongMemConfig


@dataclass(frozen=True)
class SlidingWindow:
    """Positions, and the segments that hold them, in front of a reader. Intervals are half-open ranges."""

    memory_tokens: int
    """Positions that a reader sees at most; 0 for a model without memory."""
    segment_tokens: int

    @staticmethod
    def of(config: LongMemConfig) -> "SlidingWindow":
        """Return the window of a model."""
        return SlidingWindow(config.memory_tokens, config.segment_tokens)

    def before(self, end: int, oldest: int = 0) -> range:
        """Return the positions that a reader at `end` may read: the newest `memory_tokens` in front of it.

        `oldest` is the first position that exists, or that is held. The range is empty where there is nothing to read.
        """
        return range(max(oldest, end - self.memory_tokens), end)

    def before_segment(self, index: int) -> range:
        """Return the positions that a segment of a document may read."""
        return self.before(index * self.segment_tokens)

    def segments(self, positions: range) -> range:
        """Return the segments in which the positions lie; the first one may hold older positions too."""
        return range(positions.start // self.segment_tokens, -(-positions.stop // self.segment_tokens))

    def segments_before(self, index: int) -> range:
        """Return the segments that a segment of the same document reads."""
        return self.segments(self.before_segment(index))
