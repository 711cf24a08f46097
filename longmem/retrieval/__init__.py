# SPDX-License-Identifier: Apache-2.0
"""Search engines for chunk keys, created by name. Imports torch only with an engine."""

from typing import TYPE_CHECKING

from longmem.errors import ConfigError
from longmem.native.compiler import find_compiler

if TYPE_CHECKING:
    from longmem.retrieval.base import AbstractChunkSearch

SEARCH_ENGINES = ("native", "torch", "faiss", "ivf")


def choose_engine(name: str, device: str) -> str:
    """Resolve `auto` for this machine and device type: `native` on a CPU with a C compiler, else `torch`.

    Any other name is returned unchanged. All engines find the same chunks, up to the rounding of almost equal scores,
    except `ivf`, which is approximate.
    """
    if name != "auto":
        return name
    return "native" if device == "cpu" and find_compiler() is not None else "torch"


def create_search(name: str) -> "AbstractChunkSearch":
    """Create the engine of a name. FAISS is imported, and C code compiled, only if the engine needs it.

    Raises:
        ConfigError: The name is unknown, or the C code of `native` or `ivf` cannot be compiled.
    """
    if name == "native":
        from longmem.retrieval.exact_native import NativeSearch

        return NativeSearch()
    if name == "ivf":
        from longmem.retrieval.ivf_search import IvfSearch

        return IvfSearch()
    if name == "torch":
        from longmem.retrieval.torch_search import TorchSearch

        return TorchSearch()
    if name == "faiss":
        from longmem.retrieval.faiss_search import FaissSearch

        return FaissSearch()
    raise ConfigError(f"search engine must be one of {', '.join(SEARCH_ENGINES)}, got {name!r}")
