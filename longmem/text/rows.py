# SPDX-License-Identifier: Apache-2.0
"""Turns the fields of a row into a document, or into the reason why it is none."""

from longmem.errors import DocumentError
from longmem.text.naming import given_id
from longmem.text.unreadable import UnreadableDocument, unreadable
from longmem.types import Document


def document_of(
    default_id: str, source: str, text: object, value: object, *, text_name: str = "text", id_name: str = "id"
) -> Document | UnreadableDocument:
    """Return the document with this text and id; `text_name` and `id_name` are their names in messages."""
    try:
        name = given_id(value, id_name) or default_id
    except DocumentError as error:
        return unreadable(default_id, source, f"{source}: {error}")
    if isinstance(text, bytes):
        return decoded(name, source, text)
    if not isinstance(text, str):
        return unreadable(name, source, f"{source} needs a string in `{text_name}`, got {type(text).__name__}")
    return _checked(Document(name, text, source))


def decoded(name: str, source: str, data: bytes) -> Document | UnreadableDocument:
    """Return the document whose text is UTF-8 bytes; binary data is unreadable."""
    if (position := data.find(b"\0")) >= 0:
        return unreadable(name, source, f"{source} is a binary file (a NUL byte at {position}); expected UTF-8 text")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        return unreadable(
            name, source, f"{source} is not valid UTF-8: {error.reason} at byte {error.start}; convert it to UTF-8"
        )
    return _checked(Document(name, text, source))


def _checked(document: Document) -> Document | UnreadableDocument:
    if not document.text.strip():
        return unreadable(document.id, document.source, f"{document.source} is empty: expected some text")
    # JSON may hold lone surrogates and file names any bytes, which tokenizers and tables do not accept
    for what, text in (("text", document.text), ("id", document.id), ("path", document.source)):
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            message = f"{document.source}: the {what} is not valid Unicode: {error.reason} at {error.start}"
            return unreadable(document.id, document.source, message)
    return document
