"""Opening a store by name. LanceDB is loaded only when a store on disk is asked for."""

from pathlib import Path

from longmem.memory.store import AbstractMemoryStore

IN_MEMORY = "memory://"


class MemoryStore:
    """Where users begin: `with MemoryStore.open("memory.lance") as store: ...`."""

    @staticmethod
    def open(uri: str | Path) -> AbstractMemoryStore:
        """`memory://` gives an empty store that lives as long as the process; anything else is a LanceDB folder or
        URI (`s3://…`), created when absent.

        Raises StoreError when it cannot be created or read, CorruptionError when its tables are damaged.
        """
        if str(uri) == IN_MEMORY:
            from longmem.memory.in_memory import InMemoryStore

            return InMemoryStore()
        from longmem.memory.lance_store import LanceMemoryStore

        return LanceMemoryStore(str(uri))
