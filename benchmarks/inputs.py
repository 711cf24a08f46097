# SPDX-License-Identifier: Apache-2.0
"""Books as token sequences, cut to one length for all readers."""

from collections.abc import Sequence

from benchmarks.baselines import base
from longmem.backbone.tokenizer import Tokenizer
from longmem.text.documents import UnreadableDocument, find_files, read_documents


def read_sequences(
    inputs: Sequence[str], tokenizer: Tokenizer, limit_tokens: int | None = None
) -> dict[str, base.Sequence]:
    """Return every document's first `limit_tokens` tokens, by its id.

    Raises ConfigError for an input that does not exist. Raises DocumentError for one that cannot be read: a table over
    fewer books than requested would not be comparable.
    """
    sequences = {}
    for document in read_documents(find_files(inputs)):
        if isinstance(document, UnreadableDocument):
            raise document.error
        sequences[document.id] = tokenizer.sequence(document.text)[:limit_tokens]
    return sequences
