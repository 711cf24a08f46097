"""Books as token sequences, cut to the same length for everything that reads them."""

from collections.abc import Sequence

from benchmarks.baselines import base
from longmem.backbone.tokenizer import Tokenizer
from longmem.text.documents import UnreadableDocument, find_files, read_documents


def read_sequences(
    inputs: Sequence[str], tokenizer: Tokenizer, limit_tokens: int | None = None
) -> dict[str, base.Sequence]:
    """Every document's first `limit_tokens` tokens, by its id.

    Raises ConfigError for an input that does not exist, DocumentError for one that cannot be read: a table over fewer
    books than were asked for would be another table.
    """
    sequences = {}
    for document in read_documents(find_files(inputs)):
        if isinstance(document, UnreadableDocument):
            raise document.error
        sequences[document.id] = tokenizer.sequence(document.text)[:limit_tokens]
    return sequences
