# SPDX-License-Identifier: Apache-2.0
"""Tokenised text on disk, written once and read through a memory map.

train.bin     start token, document, start token, document, …    uint16, or uint32 for a vocabulary beyond 65,536
train.json    numbers of tokens, documents and text bytes; written last, so a corpus without it is incomplete
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from jaxtyping import UInt
from tokenizers import Tokenizer

from longmem.errors import DocumentError, OutputError
from longmem.pretraining.tokenizer import START_ID, token_parts
from longmem.text.documents import DocumentInput, UnreadableDocument, find_documents, read_documents
from longmem.wording import reason_of


@dataclass(frozen=True)
class CorpusFacts:
    """Content of the JSON file."""

    dtype: str
    tokens: int
    documents: int
    text_bytes: int
    """UTF-8 bytes of the complete documents."""


@dataclass(frozen=True)
class Corpus:
    """A tokenised corpus: memory-mapped token ids and their description."""

    tokens: UInt[np.ndarray, " tokens"]
    facts: CorpusFacts


def read_texts(inputs: Sequence[DocumentInput], role: str) -> Iterator[str]:
    """Yield the texts of all documents. Raises ConfigError, or DocumentError for the first unreadable document."""
    for document in read_documents(find_documents(inputs)):
        if isinstance(document, UnreadableDocument):
            raise DocumentError(f"{role} data: {document.error}")
        yield document.text


def write_corpus(
    folder: Path, name: str, texts: Iterator[str], tokenizer: Tokenizer, limit_tokens: int | None = None
) -> None:
    """Tokenise texts into `name`.bin, at most `limit_tokens` tokens of each. Raises OutputError."""
    dtype = "uint16" if tokenizer.get_vocab_size() <= 2**16 else "uint32"
    tokens = documents = text_bytes = 0
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.json").unlink(missing_ok=True)
        with (folder / f"{name}.bin").open("wb") as file:
            for text in texts:
                documents += 1
                text_bytes += len(text.encode("utf-8"))
                for part in _parts(tokenizer, text, limit_tokens):
                    tokens += len(part)
                    file.write(part.astype(dtype).tobytes())
        facts = CorpusFacts(dtype, tokens, documents, text_bytes)
        part_file = folder / f".{name}.json.part"
        part_file.write_text(json.dumps(asdict(facts)) + "\n", encoding="utf-8")
        part_file.replace(folder / f"{name}.json")
    except OSError as error:
        raise OutputError(f"cannot write {folder}: {error}; repair that and run again with --resume") from error


def open_corpus(folder: Path, name: str) -> Corpus | None:
    """Return a complete corpus with memory-mapped tokens, or None if it is incomplete.

    Raises OutputError when it is damaged.
    """
    path = folder / f"{name}.json"
    if not path.exists():
        return None
    try:
        facts = CorpusFacts(**json.loads(path.read_text(encoding="utf-8")))
        tokens = np.memmap(folder / f"{name}.bin", dtype=facts.dtype, mode="r")
    except (OSError, ValueError, TypeError) as error:
        raise OutputError(f"cannot read {path}: {reason_of(error)}; delete it to tokenise again") from error
    if len(tokens) != facts.tokens:
        raise OutputError(
            f"{folder / name}.bin has {len(tokens):,} tokens, expected {facts.tokens:,}; delete {path} to tokenise "
            "again"
        )
    return Corpus(tokens, facts)


def _parts(tokenizer: Tokenizer, text: str, limit_tokens: int | None) -> Iterator[np.ndarray]:
    left = limit_tokens
    first = True
    for part in token_parts(tokenizer, text):
        # no second start token for a text that begins with one
        if first and part[:1].tolist() != [START_ID]:
            yield np.asarray([START_ID])
        first = False
        yield part[:left]
        if left is not None:
            left -= min(left, len(part))
            if not left:
                return
