# SPDX-License-Identifier: Apache-2.0
"""Token throughput over a sliding window."""

from collections import deque
from collections.abc import Callable

WINDOW_S = 10.0
"""Length of the averaging window in seconds: long enough to be steady, short enough to show a stall."""


class TokenRate:
    """Tokens per wall-clock second over the last `WINDOW_S` seconds. Not thread-safe."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._start = clock()
        self._events: deque[tuple[float, int]] = deque()
        self._sum = 0

    def add(self, tokens: int) -> None:
        now = self._clock()
        # here too: without a display, nothing calls per_second
        self._drop_before(now - WINDOW_S)
        self._events.append((now, tokens))
        self._sum += tokens

    def per_second(self) -> float:
        now = self._clock()
        self._drop_before(now - WINDOW_S)
        elapsed = min(WINDOW_S, now - self._start)
        return self._sum / elapsed if elapsed > 0 else 0.0

    def _drop_before(self, start: float) -> None:
        while self._events and self._events[0][0] <= start:
            self._sum -= self._events.popleft()[1]
