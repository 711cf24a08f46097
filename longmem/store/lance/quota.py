"""A limit on the payload bytes of a store, counted from the store itself.

A counter of one's own drifts (other writers, deletes, crashes) until a store refuses everything or nothing. So the
catalogue is counted again whenever the puts since the last count have used up an eighth of the room there was: seldom
in a store with much room, at every put near the limit. The limit can be exceeded by one commit for each other writer.
"""

from collections.abc import Callable

from longmem.errors import ConfigError, QuotaError

_SHARE = 8


class Quota:
    """`count` asks the store for the bytes it holds. Not thread-safe: the store's lock protects it."""

    def __init__(self, max_bytes: int | None, count: Callable[[], int], uri: str) -> None:
        if max_bytes is not None and max_bytes < 1:
            raise ConfigError(f"a store's limit must be at least 1 byte, got {max_bytes}")
        self._max_bytes = max_bytes
        self._count = count
        self._uri = uri
        self._counted: int | None = None
        self._since = 0

    def check(self, num_bytes: int) -> None:
        """Raises QuotaError unless so many bytes may be added."""
        if self._max_bytes is None:
            return
        if self._counted is None or self._since + num_bytes > (self._max_bytes - self._counted) / _SHARE:
            self._counted, self._since = self._count(), 0
        held = self._counted + self._since
        if held + num_bytes > self._max_bytes:
            raise QuotaError(
                f"{self._uri} holds {held:,} bytes of at most {self._max_bytes:,}, and {num_bytes:,} bytes "
                "were to be added; nothing was stored: delete documents that are no longer needed (`longmem memory "
                "rm`), keep less (`--retention window`), or raise the limit"
            )

    def added(self, num_bytes: int) -> None:
        """A block was stored."""
        self._since += num_bytes

    def freed(self) -> None:
        """Blocks were removed: count anew."""
        self._counted = None
