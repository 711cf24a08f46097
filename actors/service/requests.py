"""Requests that one worker answers: the score of a text that follows a document, and generated text.

The request's own tokens stay in that worker, as in `LongMem.score` and `LongMem.generate`; nothing is written.
"""

from dataclasses import dataclass

from actors.service.remote_memory import RemoteMemory
from actors.workers.store import RemoteBlockSource
from longmem.errors import MissingBlockError
from longmem.model.longmem import LongMem
from longmem.runtime.requests import Memories, Request
from longmem.scoring.generate import Sampling
from longmem.scoring.text import TextScores
from longmem.store.document import DocumentMemory
from longmem.types import DocumentKey


@dataclass(frozen=True)
class ScoreRequest(Request):
    """Score a text that follows a stored document, or nothing."""

    text: str
    after: DocumentKey | None

    def answer(self, model: LongMem, memories: Memories) -> TextScores:
        """Return the scores. Raises what `score_text` raises, and MissingBlockError if the document is not stored."""
        return model.score(self.text, _memory(self.after, memories))

    def __str__(self) -> str:
        return f"score of a text after {self.after or 'nothing'}"


@dataclass(frozen=True)
class GenerateRequest(Request):
    """Continue a prompt that follows a stored document, or nothing."""

    prompt: str
    after: DocumentKey | None
    max_new_tokens: int
    sampling: Sampling

    def answer(self, model: LongMem, memories: Memories) -> str:
        """Return the text. Raises what `generate` raises, and MissingBlockError if the document is not stored."""
        memory = _memory(self.after, memories)
        return model.generate(self.prompt, memory, max_new_tokens=self.max_new_tokens, sampling=self.sampling)

    def __str__(self) -> str:
        return f"text generated after {self.after or 'nothing'}"


TextRequest = ScoreRequest | GenerateRequest


def _memory(key: DocumentKey | None, memories: Memories) -> DocumentMemory | None:
    if key is None:
        return None
    source = memories.source
    assert isinstance(source, RemoteBlockSource), f"a service's workers read its stores, not {source}"
    memory = DocumentMemory(RemoteMemory(source), key, read_only=True)
    if not memory.segments:
        raise MissingBlockError(f"{key} is not stored: write it first, or name a document that is")
    return memory
