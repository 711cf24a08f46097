# SPDX-License-Identifier: Apache-2.0
"""Documents of a perplexity job: those of the given files, at most so many, and of each the first tokens."""

import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice

from longmem.errors import DocumentError
from longmem.model.source import ModelSource
from longmem.text.documents import FoundFiles, UnreadableDocument, read_documents
from longmem.text.language_reference import language_reference
from longmem.text.tokenizer import AbstractTokenizer
from longmem.types import Document


@dataclass(frozen=True)
class JobDocuments:
    """Documents in input order, read anew at every call; the Python language reference without files."""

    files: FoundFiles
    limit_documents: int | None
    limit_tokens: int | None
    """Tokens of each document from its start; they need a tokenizer that gives character offsets."""
    model: ModelSource

    def read(self, tokenizer: AbstractTokenizer | None = None) -> Iterator[Document | UnreadableDocument]:
        """Return the documents. `limit_tokens` counts tokens of `tokenizer`, or else opens the model's own."""
        documents = read_documents(self.files) if self.files else iter([language_reference()])
        documents = islice(documents, self.limit_documents)
        if self.limit_tokens is None:
            return documents
        return _beginnings(documents, tokenizer or self.model.open_tokenizer(), self.limit_tokens)

    @property
    def count(self) -> int | None:
        """Number of documents, or None if it is unknown before the files are read."""
        if any(not file.suffix.startswith(".txt") for file in self.files):
            return None
        return min(len(self.files) or 1, self.limit_documents or sys.maxsize)


def _beginnings(
    documents: Iterator[Document | UnreadableDocument], tokenizer: AbstractTokenizer, num_tokens: int
) -> Iterator[Document | UnreadableDocument]:
    for document in documents:
        if isinstance(document, UnreadableDocument):
            yield document
            continue
        try:
            yield replace(document, text=tokenizer.beginning(document.text, num_tokens))
        except DocumentError as error:
            yield UnreadableDocument(document.id, document.source, error)
