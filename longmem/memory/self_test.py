"""Refuses object stores that lose blocks silently: those without conditional writes.

Two writers of one table agree on its next version by each creating the same object *unless it exists*. A server that
ignores this condition acknowledges both and keeps one, and the blocks of the other are gone without an error.
"""

from contextlib import suppress
from secrets import token_hex

from longmem.errors import StoreError

INSTALL = 'pip install "longmem[objectstore]"'


def check_conditional_writes(uri: str) -> None:
    """Create one object twice; the second time must be refused. Raises StoreError when it is not, when the place
    cannot be written, or when `obstore` (extra `objectstore`) is not installed to ask it."""
    try:
        import obstore
        from obstore.exceptions import AlreadyExistsError, BaseError, PreconditionError
        from obstore.store import from_url
    except ImportError as error:
        raise StoreError(
            f"{uri}: before the first write to an object store, longmem asks it for conditional writes, and needs "
            f"obstore for that: {INSTALL}"
        ) from error
    name = f".longmem-self-test-{token_hex(8)}"
    try:
        store = from_url(uri)
        obstore.put(store, name, b"first", mode="create")
        try:
            obstore.put(store, name, b"second", mode="create")
        except (AlreadyExistsError, PreconditionError):
            return
        finally:
            # what could not be removed is a few bytes that nobody reads
            with suppress(BaseError):
                obstore.delete(store, name)
    except (BaseError, ValueError) as error:
        raise StoreError(
            f"{uri} cannot be written to: {error}; check its name, its credentials (AWS_…, GOOGLE_…) and its endpoint"
        ) from error
    raise StoreError(
        f"{uri} accepted two creations of one object (it ignores If-None-Match: *), so that a store there would lose "
        "blocks silently whenever two writers meet; nothing was stored: use a server with conditional writes (AWS S3, "
        "Google Cloud Storage, Azure Blob, MinIO, Ceph, …; on some, bucket versioning must be off), or a local folder"
    )
