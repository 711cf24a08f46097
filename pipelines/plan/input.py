# SPDX-License-Identifier: Apache-2.0
"""Lengths of a job's documents in tokens."""

from itertools import islice

from longmem.errors import ConfigError
from longmem.model.source import ModelSource
from longmem.text.documents import FoundFiles, UnreadableDocument, read_documents

EXACT_DOCUMENTS = 50
"""Documents that are tokenised; for later ones only bytes are counted, to bound the time of a plan."""


def document_tokens(files: FoundFiles, source: ModelSource, limit: int | None) -> tuple[int, ...]:
    """Return the tokens of every readable document, in order; beyond EXACT_DOCUMENTS estimated from the bytes.

    Raises ConfigError for inputs that hold no readable document.
    """
    tokenizer = source.open_tokenizer()
    lengths: list[int] = []
    tokens = num_bytes = 0
    for document in islice(read_documents(files), limit):
        if isinstance(document, UnreadableDocument) or not document.text:
            continue
        if len(lengths) < EXACT_DOCUMENTS:
            lengths.append(len(tokenizer.sequence(document.text)))
            tokens += lengths[-1]
            num_bytes += document.num_bytes
        else:
            lengths.append(max(1, round(document.num_bytes * tokens / num_bytes)))
    if not lengths:
        raise ConfigError(f"no readable document in {', '.join(file.shown for file in files[:3])}")
    return tuple(lengths)
