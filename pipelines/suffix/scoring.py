"""One example at every context length: what its candidates cost with memory, without it, and under the backbone alone.

memory (context_tokens − local)    local context          candidate
──────────────────────────────────┤ the same for all six ├── at most suffix_tokens ──┤
                                   └──────────── one segment ────────────────────────┘
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int32

from longmem.backbone.tokenizer import Tokenizer
from longmem.errors import ConfigError
from longmem.memory.context import ContextMemory
from longmem.model.longmem import LongMem
from longmem.scoring.batch import Item, score_items
from pipelines.suffix.data import SuffixExample


@dataclass(frozen=True, kw_only=True)
class SuffixLengths:
    """How much of an example is read."""

    context_tokens: tuple[int, ...]
    """Tokens of context, ascending; of a longer context the last ones are read."""
    suffix_tokens: int
    """Of a longer candidate the first ones are scored."""

    def __post_init__(self) -> None:
        if not self.context_tokens or min(self.context_tokens) < 1:
            raise ConfigError(f"--context-tokens must be numbers of at least 1, got {list(self.context_tokens)}")
        if list(self.context_tokens) != sorted(set(self.context_tokens)):
            raise ConfigError(f"--context-tokens must ascend, got {list(self.context_tokens)}")
        if self.suffix_tokens < 1:
            raise ConfigError(f"--suffix-tokens must be at least 1, got {self.suffix_tokens}")

    def local_tokens(self, segment_tokens: int) -> int:
        """Tokens of context that stand before a candidate in one segment; the last token is predicted, not read.

        Raises ConfigError when there is no room for any.
        """
        local = segment_tokens + 1 - self.suffix_tokens
        if local < 1:
            raise ConfigError(
                f"--suffix-tokens {self.suffix_tokens} leaves no room for context in a segment of {segment_tokens} "
                f"tokens; give at most {segment_tokens}"
            )
        return local


@dataclass(frozen=True, kw_only=True)
class SuffixScore:
    """One example at one context length: nats of every candidate, in the order of the example's candidates."""

    example: str
    work: str
    label: int
    context_tokens: int
    """As asked for."""
    local_tokens: int
    memory_tokens: int
    """Tokens in the view, the start token included where the context begins in it."""
    suffix_tokens: list[int]
    """Scored tokens of each candidate."""
    nll_memory: list[float]
    nll_no_memory: list[float]
    """The same model with the same local context and an empty memory."""
    nll_backbone: list[float]


def score_example(model: LongMem, example: SuffixExample, lengths: SuffixLengths) -> list[SuffixScore]:
    """One score for each context length, ascending.

    Raises DocumentError when a text gives no tokens, NumericError.
    """
    context = model.tokenizer.sequence(example.context)
    candidates = [plain(model.tokenizer, text)[: lengths.suffix_tokens] for text in example.candidates]
    room = lengths.local_tokens(model.config.segment_tokens)
    memory = ContextMemory(model, context[: len(context) - room] if len(context) > room else context[:0])
    # a context that is no longer than what is read begins with its start token
    num_text = len(context) - (model.tokenizer.start_token is not None)
    read = [len(context) if num_text <= asked else asked for asked in lengths.context_tokens]
    local = [min(num_read, room) for num_read in read]
    views = [memory.view(num_read - num_local) for num_read, num_local in zip(read, local, strict=True)]
    # what to score, by local context and place of the view among the lengths, -1 for none
    place = [-1 if view is None else index for index, view in enumerate(views)]
    ways = dict(zip(zip(local, place, strict=True), views, strict=True)) | {(each, -1): None for each in local}
    # candidate by candidate, so that the backbone reads each once for all its views
    items = [
        Item(f"{example.id} candidate {index}", np.concatenate([context[-num_local:], tokens]), num_local)
        for index, tokens in enumerate(candidates)
        for num_local, _ in ways
    ]
    scores = score_items(model, items, [*ways.values()] * len(candidates))
    scores_of = {way: scores[first :: len(ways)] for first, way in enumerate(ways)}
    return [
        SuffixScore(
            example=example.id,
            work=example.work,
            label=example.label,
            context_tokens=context_tokens,
            local_tokens=local[index],
            memory_tokens=0 if (view := views[index]) is None else view.num_tokens,
            suffix_tokens=[len(tokens) for tokens in candidates],
            nll_memory=[-each.longmem.total for each in scores_of[local[index], place[index]]],
            nll_no_memory=[-each.longmem.total for each in scores_of[local[index], -1]],
            nll_backbone=[-each.backbone.total for each in scores_of[local[index], -1]],
        )
        for index, context_tokens in enumerate(lengths.context_tokens)
    ]


def plain(tokenizer: Tokenizer, text: str) -> Int32[np.ndarray, " tokens"]:
    """The tokens of a text that goes on from another one: no start token."""
    return tokenizer.tokens(text)
