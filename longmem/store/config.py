"""Opening a store by name. LanceDB is loaded only when a durable store is asked for."""

from dataclasses import dataclass
from pathlib import Path

from longmem.errors import ConfigError
from longmem.store.base import AbstractMemoryStore
from longmem.store.lance.fsync import Durability

IN_MEMORY = "memory://"


@dataclass(frozen=True)
class StoreSettings:
    """How to open a store; travels to whoever opens it (a worker of a cluster, a command). Raises ConfigError."""

    uri: str
    durability: Durability = "process"
    """What an acknowledged block survives: the death of any `process`, or also a `power` cut."""
    max_bytes: int | None = None
    """Payload bytes that the store may hold; a put beyond them is refused with QuotaError."""

    def __post_init__(self) -> None:
        if self.durability not in ("process", "power"):
            raise ConfigError(f"durability must be process or power, got {self.durability!r}")
        if self.max_bytes is not None and self.max_bytes < 1:
            raise ConfigError(f"a store's limit must be at least 1 byte, got {self.max_bytes}")

    @staticmethod
    def of(store: "StoreSettings | str") -> "StoreSettings":
        """A bare URI with default settings; settings as they are."""
        return StoreSettings(store) if isinstance(store, str) else store

    def open(self) -> AbstractMemoryStore:
        """`memory://` gives an empty store that lives as long as the process; anything else is a LanceDB folder or
        URI (`s3://…`, `gs://…`), created by the first put.

        Raises StoreError when it cannot be created or read, CorruptionError when its tables are damaged.
        """
        if self.uri == IN_MEMORY:
            from longmem.store.in_memory import InMemoryStore

            return InMemoryStore(self.max_bytes)
        from longmem.store.lance.store import LanceMemoryStore

        return LanceMemoryStore(self.uri, durability=self.durability, max_bytes=self.max_bytes)


class MemoryStore:
    """Where users begin: `with MemoryStore.open("memory.lance") as store: ...`."""

    @staticmethod
    def open(
        uri: str | Path, *, durability: Durability = "process", max_bytes: int | None = None
    ) -> AbstractMemoryStore:
        """A store by its name; see `StoreSettings`. Raises ConfigError, StoreError, CorruptionError."""
        return StoreSettings(str(uri), durability, max_bytes).open()
