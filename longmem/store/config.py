# SPDX-License-Identifier: Apache-2.0
"""Opens a store by name. LanceDB is imported only for a durable store."""

from dataclasses import dataclass
from pathlib import Path

from longmem.errors import ConfigError
from longmem.store.base import AbstractMemoryStore
from longmem.store.lance.fsync import Durability
from longmem.stored_format import RECENT_BYTES

IN_MEMORY = "memory://"


@dataclass(frozen=True)
class StoreSettings:
    """Settings of a store, sent to the process that opens it. Raises ConfigError."""

    uri: str
    durability: Durability = "process"
    """Failures that an acknowledged block survives: the death of any `process`, or also a `power` cut."""
    max_bytes: int | None = None
    """Limit of payload bytes; a put beyond it raises QuotaError. None means no limit."""

    def __post_init__(self) -> None:
        if self.durability not in ("process", "power"):
            raise ConfigError(f"durability must be process or power, got {self.durability!r}")
        if self.max_bytes is not None and self.max_bytes < 1:
            raise ConfigError(f"a store's limit must be at least 1 byte, got {self.max_bytes}")

    @staticmethod
    def of(store: "StoreSettings | str") -> "StoreSettings":
        """Return settings unchanged, and a URI as default settings."""
        return StoreSettings(store) if isinstance(store, str) else store

    def open(self, recent_bytes: int = RECENT_BYTES) -> AbstractMemoryStore:
        """Open the store.

        `memory://` gives an empty store in the memory of this process. Anything else is a LanceDB folder or URI
        (`s3://…`, `gs://…`), which the first put creates. Of its newest blocks, `recent_bytes` stay in memory.

        Raises StoreError when it cannot be created or read, CorruptionError when its tables are damaged.
        """
        if self.uri == IN_MEMORY:
            from longmem.store.in_memory import InMemoryStore

            return InMemoryStore(self.max_bytes)
        from longmem.store.lance.store import LanceMemoryStore

        return LanceMemoryStore(
            self.uri, durability=self.durability, max_bytes=self.max_bytes, recent_bytes=recent_bytes
        )


class MemoryStore:
    """Entry point of the public API: `with MemoryStore.open("memory.lance") as store: ...`."""

    @staticmethod
    def open(
        uri: str | Path, *, durability: Durability = "process", max_bytes: int | None = None
    ) -> AbstractMemoryStore:
        """Open a store; see `StoreSettings`. Raises ConfigError, StoreError, CorruptionError."""
        return StoreSettings(str(uri), durability, max_bytes).open()
