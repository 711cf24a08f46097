# SPDX-License-Identifier: Apache-2.0
"""Connections of LanceDB, and limits of what it keeps in the memory of this process.

LanceDB is imported with the first connection: it is a quarter of the start of a job, and a new store connects at its
first put.
"""

from datetime import timedelta
from functools import cache
from types import ModuleType
from typing import Any

from longmem.system.heap import limit_heaps
from longmem.system.imports import lazily_validated

INDEX_CACHE_BYTES = 8 * 2**20
METADATA_CACHE_BYTES = 4 * 2**20
"""Cache sizes in bytes. LanceDB's default is 7 GiB per connection, but most files are read once.

Each commit adds about 150 KiB of metadata, by the number of fragments that compactions leave. Most of it is never read
again: a job fills the cache soon and keeps it full. 16 MiB would make a put 5% faster.
"""


def connect(uri: str, session: Any) -> Any:
    """Return a connection that sees the commits of all processes."""
    return import_library().connect(uri, read_consistency_interval=timedelta(0), session=session)


@cache
def shared_session() -> Any:
    """Return the session that all databases of the process share as a metadata cache."""
    return new_session()


def new_session() -> Any:
    """Return a session with empty caches."""
    return import_library().Session(
        index_cache_size_bytes=INDEX_CACHE_BYTES, metadata_cache_size_bytes=METADATA_CACHE_BYTES
    )


@cache
def import_library() -> ModuleType:
    """Return LanceDB, imported at the first call."""
    limit_heaps()  # before the import, which starts threads
    with lazily_validated("lance_namespace_urllib3_client"):
        import lancedb

    return lancedb
