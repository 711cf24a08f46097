# SPDX-License-Identifier: Apache-2.0
"""Single objects of a bucket in addition to the tables of a store, and a check of conditional writes.

Two writers of one table agree on its next version by creating the same object *unless it exists*. A server that ignores
this condition acknowledges both and keeps one, and the blocks of the other are lost silently. Such a server is
rejected.
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cached_property
from secrets import token_hex
from typing import Any

from longmem.errors import StoreError

INSTALL = 'pip install "longmem[objectstore]"'


class ObjectFiles:
    """Small objects below one URI.

    Every method raises StoreError when the server does not answer, or when `obstore` (extra `objectstore`) is not
    installed.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri

    def names(self, prefix: str) -> list[str]:
        """Return the names of objects that begin with `prefix`."""
        with self._translated() as obstore:
            return [each["path"] for page in obstore.list(self._store, prefix) for each in page]

    def create(self, name: str) -> None:
        """Create an empty object; an existing one is replaced by an empty one."""
        with self._translated() as obstore:
            obstore.put(self._store, name, b"")

    def remove(self, name: str) -> None:
        """Remove an object; a missing one is no error."""
        with self._translated() as obstore, suppress(FileNotFoundError):
            obstore.delete(self._store, name)

    def check_conditional_writes(self) -> None:
        """Create one object twice. Raises StoreError unless the server rejects the second creation."""
        name = f".longmem-self-test-{token_hex(8)}"
        with self._translated() as obstore:
            from obstore.exceptions import AlreadyExistsError, BaseError, PreconditionError

            obstore.put(self._store, name, b"first", mode="create")
            try:
                obstore.put(self._store, name, b"second", mode="create")
            except (AlreadyExistsError, PreconditionError):
                return
            finally:
                # a remaining object costs a few bytes and is never read
                with suppress(BaseError):
                    obstore.delete(self._store, name)
        raise StoreError(
            f"{self.uri} accepted two creations of one object (it ignores If-None-Match: *), so that a store there "
            "would lose blocks silently whenever two writers meet; nothing was stored: use a server with conditional "
            "writes (AWS S3, Google Cloud Storage, Azure Blob, MinIO, Ceph, …; on some, bucket versioning must be "
            "off), or a local folder"
        )

    @cached_property
    def _store(self) -> Any:
        from obstore.store import from_url

        return from_url(self.uri)

    @contextmanager
    def _translated(self) -> Iterator[Any]:
        try:
            import obstore
            from obstore.exceptions import BaseError
        except ImportError as error:
            raise StoreError(
                f"{self.uri}: to record which writes were acknowledged, and to check the bucket for conditional "
                f"writes, longmem needs obstore: {INSTALL}"
            ) from error
        try:
            yield obstore
        except (BaseError, ValueError) as error:
            if isinstance(error, StoreError):
                raise
            raise StoreError(
                f"{self.uri} cannot be used: {error}; check its name, its credentials (AWS_…, GOOGLE_…), its endpoint"
            ) from error
