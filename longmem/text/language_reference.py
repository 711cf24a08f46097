# SPDX-License-Identifier: Apache-2.0
"""The Python language reference that ships with CPython: a real long document on every machine."""

from pydoc_data.topics import topics

from longmem.types import Document

LANGUAGE_REFERENCE_ID = "python-language-reference"


def language_reference() -> Document:
    """Return all topics of `help()`, in alphabetical order, as one document (about 700 kB, by version)."""
    text = "\n\n".join(topics[name].strip() for name in sorted(topics))
    return Document(LANGUAGE_REFERENCE_ID, text, source="pydoc_data.topics")
