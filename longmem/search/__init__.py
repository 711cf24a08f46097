"""Search engines for chunk keys, by name."""

from longmem.errors import ConfigError
from longmem.search.base import AbstractChunkSearch, ChunkHits

SEARCH_ENGINES = ("torch", "faiss")

__all__ = ["SEARCH_ENGINES", "AbstractChunkSearch", "ChunkHits", "create_search"]


def create_search(name: str) -> AbstractChunkSearch:
    """The engine of that name; FAISS is imported only when asked for. Raises ConfigError for an unknown name."""
    if name == "torch":
        from longmem.search.torch_search import TorchSearch

        return TorchSearch()
    if name == "faiss":
        from longmem.search.faiss_search import FaissSearch

        return FaissSearch()
    raise ConfigError(f"search engine must be one of {', '.join(SEARCH_ENGINES)}, got {name!r}")
