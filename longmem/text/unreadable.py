# SPDX-License-Identifier: Apache-2.0
"""Placeholder for a document that cannot be read."""

from dataclasses import dataclass

from longmem.errors import DocumentError


@dataclass(frozen=True)
class UnreadableDocument:
    """A document that could not be read, with the error, which names the source."""

    id: str
    source: str
    error: DocumentError


def unreadable(name: str, source: str, message: str) -> UnreadableDocument:
    """Return an UnreadableDocument with valid Unicode texts, because a file name can hold any bytes."""
    name, source, message = (text.encode("utf-8", "replace").decode("utf-8") for text in (name, source, message))
    return UnreadableDocument(name, source, DocumentError(message))
