# SPDX-License-Identifier: Apache-2.0
"""Limit on the payload bytes of a store, counted from its catalogue.

A separate counter would drift (other writers, deletes, crashes). The catalogue is therefore counted again whenever the
puts since the last count have used an eighth of the remaining bytes: rarely in a store with much space, at every put
near the limit. Each other writer can exceed the limit by one commit.
"""

from collections.abc import Callable

from longmem.errors import ConfigError, QuotaError

_SHARE = 8
"""Fraction of the remaining bytes, as 1/_SHARE, that puts may use before the next count."""


class Quota:
    """Byte limit of a store; `count` returns the stored bytes. Not thread-safe: the store's lock protects it."""

    def __init__(self, max_bytes: int | None, count: Callable[[], int], uri: str) -> None:
        if max_bytes is not None and max_bytes < 1:
            raise ConfigError(f"a store's limit must be at least 1 byte, got {max_bytes}")
        self._max_bytes = max_bytes
        self._count = count
        self._uri = uri
        self._counted: int | None = None
        self._since = 0

    def check(self, num_bytes: int) -> None:
        """Raise QuotaError unless `num_bytes` may be added."""
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
        """Record that `num_bytes` were stored."""
        self._since += num_bytes

    def freed(self) -> None:
        """Record that blocks were removed; the next `check` counts again."""
        self._counted = None
