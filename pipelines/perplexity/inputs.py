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
from longmem.types import Document


@dataclass(frozen=True)
class JobDocuments:
    """Documents in input order, read anew by every iteration; the Python language reference without files."""

    files: FoundFiles
    limit_documents: int | None
    limit_tokens: int | None
    model: ModelSource
    """Model whose tokenizer counts the tokens of `limit_tokens`; it must give character offsets."""

    def __iter__(self) -> Iterator[Document | UnreadableDocument]:
        documents = read_documents(self.files) if self.files else iter([language_reference()])
        documents = islice(documents, self.limit_documents)
        return documents if self.limit_tokens is None else self._beginnings(documents, self.limit_tokens)

    def _beginnings(
        self, documents: Iterator[Document | UnreadableDocument], num_tokens: int
    ) -> Iterator[Document | UnreadableDocument]:
        tokenizer = self.model.open_tokenizer()
        for document in documents:
            if isinstance(document, UnreadableDocument):
                yield document
                continue
            try:
                yield replace(document, text=tokenizer.beginning(document.text, num_tokens))
            except DocumentError as error:
                yield UnreadableDocument(document.id, document.source, error)

    @property
    def count(self) -> int | None:
        """Number of documents, or None if it is unknown before the files are read."""
        if any(not file.suffix.startswith(".txt") for file in self.files):
            return None
        return min(len(self.files) or 1, self.limit_documents or sys.maxsize)
