"""Single objects of a bucket, beside the tables of a store; and the question whether a bucket keeps its promises.

Two writers of one table agree on its next version by each creating the same object *unless it exists*. A server that
ignores this condition acknowledges both and keeps one, and the blocks of the other are gone without an error: such a
server is refused.
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cached_property
from secrets import token_hex
from typing import Any

from longmem.errors import StoreError

INSTALL = 'pip install "longmem[objectstore]"'


class ObjectFiles:
    """Small objects below one URI. Every method raises StoreError when the place does not answer, or when `obstore`
    (extra `objectstore`) is not installed to ask it."""

    def __init__(self, uri: str) -> None:
        self.uri = uri

    def names(self, prefix: str) -> list[str]:
        """Objects whose name begins so."""
        with self._translated() as obstore:
            return [each["path"] for page in obstore.list(self._store, prefix) for each in page]

    def create(self, name: str) -> None:
        """Make an empty object; one that is there stays."""
        with self._translated() as obstore:
            obstore.put(self._store, name, b"")

    def remove(self, name: str) -> None:
        """Remove an object; it is no error when it is gone."""
        with self._translated() as obstore, suppress(FileNotFoundError):
            obstore.delete(self._store, name)

    def check_conditional_writes(self) -> None:
        """Create one object twice; the second time must be refused. Raises StoreError when it is not."""
        name = f".longmem-self-test-{token_hex(8)}"
        with self._translated() as obstore:
            from obstore.exceptions import AlreadyExistsError, BaseError, PreconditionError

            obstore.put(self._store, name, b"first", mode="create")
            try:
                obstore.put(self._store, name, b"second", mode="create")
            except (AlreadyExistsError, PreconditionError):
                return
            finally:
                # what could not be removed is a few bytes that are never read
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
                f"{self.uri}: for what a store in a bucket keeps beside its tables (which writes were acknowledged), "
                f"and to ask the bucket for conditional writes, longmem needs obstore: {INSTALL}"
            ) from error
        try:
            yield obstore
        except (BaseError, ValueError) as error:
            if isinstance(error, StoreError):
                raise
            raise StoreError(
                f"{self.uri} cannot be used: {error}; check its name, its credentials (AWS_…, GOOGLE_…), its endpoint"
            ) from error
