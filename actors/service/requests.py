# SPDX-License-Identifier: Apache-2.0
"""Requests that one worker answers: the score of a text that follows a document, and generated text.

The request's own tokens stay in that worker, as in `LongMem.score` and `LongMem.generate`; nothing is written.
"""

from dataclasses import dataclass

from longmem.errors import MissingBlockError
from longmem.memory.window_cache import WindowCache
from longmem.model.longmem import LongMem
from longmem.runtime.requests import Request
from longmem.scoring.generate import Sampling
from longmem.scoring.text import TextScores
from longmem.store.document import DocumentMemory
from longmem.store.source import AbstractDocumentSource
from longmem.types import DocumentKey


@dataclass(frozen=True)
class ScoreRequest(Request):
    """Score a text that follows a stored document, or nothing."""

    text: str
    after: DocumentKey | None

    def answer(self, model: LongMem, windows: WindowCache) -> TextScores:
        """Return the scores. Raises what `score_text` raises, and MissingBlockError if the document is not stored."""
        return model.score(self.text, _memory(self.after, windows))

    def __str__(self) -> str:
        return f"score of a text after {self.after or 'nothing'}"


@dataclass(frozen=True)
class GenerateRequest(Request):
    """Continue a prompt that follows a stored document, or nothing."""

    prompt: str
    after: DocumentKey | None
    max_new_tokens: int
    sampling: Sampling

    def answer(self, model: LongMem, windows: WindowCache) -> str:
        """Return the text. Raises what `generate` raises, and MissingBlockError if the document is not stored."""
        memory = _memory(self.after, windows)
        return model.generate(self.prompt, memory, max_new_tokens=self.max_new_tokens, sampling=self.sampling)

    def __str__(self) -> str:
        return f"text generated after {self.after or 'nothing'}"


TextRequest = ScoreRequest | GenerateRequest


def _memory(key: DocumentKey | None, windows: WindowCache) -> DocumentMemory | None:
    if key is None:
        return None
    source = windows.source
    assert isinstance(source, AbstractDocumentSource), f"{source} cannot list the blocks of a document"
    memory = DocumentMemory(source, key)
    if not memory.segments:
        raise MissingBlockError(f"{key} is not stored: write it first, or name a document that is")
    return memory
