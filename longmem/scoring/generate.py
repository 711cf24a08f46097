# SPDX-License-Identifier: Apache-2.0
"""Generation of text with memory, one token at a time: each step reads only the new token.

A prompt is read segment by segment, each reading the memory before it. Where every layer reads the memory, the prompt's
end chooses what is read. When a segment is full its block joins the memory (of this call only) and the local context
starts anew, so that log-probabilities of generated tokens are those that scoring them after the prompt gives.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32, Int32
from torch import Tensor

from longmem.backbone.tokenizer import Tokenizer
from longmem.errors import ConfigError, DocumentError
from longmem.memory.context import FixedMemory, LocalMemory, SegmentMemory, text_key
from longmem.memory.view import MemoryView
from longmem.model.forward import SegmentModel
from longmem.sidenet.reading_model import RowPrompt
from longmem.store.base import check_fingerprint
from longmem.store.document import DocumentMemory
from longmem.types import Segment


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """Choice of the next token, greedy by default. Raises ConfigError."""

    temperature: float = 0.0
    """Divisor of the logits: 0 takes the most probable token, 1 samples from the model's own distribution."""
    top_p: float = 1.0
    """Probability of the smallest set of most probable tokens to sample from."""
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.temperature >= 0:
            raise ConfigError(f"temperature must be at least 0, got {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"top_p must be in (0, 1], got {self.top_p}")


class Decoder:
    """Feeds tokens to the model and returns the logits after the last one; keeps caches of the current segment."""

    def __init__(
        self,
        model: SegmentModel,
        memory: DocumentMemory | None,
        source: SegmentMemory | None = None,
        *,
        prompt: bool = False,
    ) -> None:
        """Read what may be read of `memory`, unless `source` takes its place.

        With `prompt`, the tokens of the first `feed` are a prompt: those in its last segment choose what every layer
        reads there. Otherwise all tokens are read as a document. Raises MissingBlockError, CorruptionError.
        """
        self._model = model
        self._prompt = prompt
        self._key = text_key(memory)
        self._source = source or LocalMemory(model, memory)
        self._segment = 0
        self._start_segment()

    def _start_segment(self) -> None:
        self._backbone_cache: Any = self._model.backbone.new_cache()
        self._sidenet_cache = self._model.sidenet.new_cache()
        self._view: MemoryView | None = self._source.view(self._segment)
        self._tokens: list[int] = []
        self._keys: list[Tensor] = []
        self._values: list[Tensor] = []

    @torch.no_grad()
    def feed(self, tokens: list[int]) -> Float32[Tensor, " vocabulary"]:
        """Read one or more tokens; return the logits of the token after them (with a copy head: log-probabilities)."""
        assert tokens, "there is nothing to feed"
        size = self._model.config.segment_tokens
        logits: Tensor | None = None
        asks, self._prompt = self._prompt, False
        while tokens:
            if len(self._tokens) == size:
                self._finish_segment()
            part, tokens = tokens[: size - len(self._tokens)], tokens[size - len(self._tokens) :]
            logits = self._step(part, len(part) if asks and not tokens else 0)
        assert logits is not None
        return logits

    def _step(self, tokens: list[int], prompt: int) -> Float32[Tensor, " vocabulary"]:
        model, batch = self._model, torch.tensor([tokens])
        output = model.run_backbone(batch, self._backbone_cache)
        before = torch.tensor([self._tokens], dtype=torch.long)
        asks = RowPrompt(prompt, continues=self._segment > 0)
        given = model.sidenet_input(
            batch, output, [self._view], cache=self._sidenet_cache, before=before, prompts=[asks]
        )
        self._tokens += tokens
        self._keys.append(output.keys[0])
        self._values.append(output.values[0])
        read = model.sidenet(given, model.search, self._sidenet_cache)
        logits = model.backbone.logits(read.hidden[0, -1:])
        copies = read.copies[0]
        return (logits if copies is None else copies.rows(slice(-1, None)).mix_logits(logits))[0]

    def _finish_segment(self) -> None:
        tokens = np.asarray(self._tokens, dtype=np.int32)
        start = self._segment * self._model.config.segment_tokens
        segment = Segment(self._key, self._segment, start, tokens, tokens[:0])
        self._source.accept(self._model.block(segment, torch.cat(self._keys), torch.cat(self._values)))
        self._segment += 1
        self._start_segment()


class BackboneDecoder:
    """Backbone alone, which holds everything that it was fed in one context."""

    def __init__(self, model: SegmentModel) -> None:
        self._model = model
        self._cache: Any = model.backbone.new_cache()

    @torch.no_grad()
    def feed(self, tokens: list[int]) -> Float32[Tensor, " vocabulary"]:
        """Read one or more tokens; return the logits of the token after them."""
        model = self._model
        output = model.run_backbone(torch.tensor([tokens]), self._cache)
        return model.backbone.logits(output.hidden[0, -1:])[0]


def generate(
    model: SegmentModel,
    prompt: str,
    memory: DocumentMemory | None = None,
    *,
    max_new_tokens: int = 50,
    sampling: Sampling | None = None,
    written: Callable[[str], None] = lambda _: None,
) -> str:
    """Return the text that follows the prompt, reading `memory` (which is not written) and the prompt's own past.

    `written` receives the text piece by piece, each as soon as later tokens cannot change it. The text ends after
    `max_new_tokens`, or before that at the tokenizer's end token. Raises ConfigError, DocumentError (an empty prompt),
    FingerprintError (a store of another model).
    """
    if memory is not None:
        check_fingerprint(memory.store.fingerprint(), model.fingerprint)
    tokens = model.tokenizer.sequence(prompt).tolist()
    feed = Decoder(model, memory, prompt=True).feed
    return decode(feed, tokens, model.tokenizer, max_new_tokens, sampling or Sampling(), written=written)


def decode(
    feed: Callable[[list[int]], Float32[Tensor, " vocabulary"]],
    tokens: list[int],
    tokenizer: Tokenizer,
    max_new_tokens: int,
    sampling: Sampling,
    until: Sequence[str] = (),
    written: Callable[[str], None] = lambda _: None,
) -> str:
    """Feed a decoder tokens, then what it chooses; return the new text, and pass its pieces to `written`.

    The text ends before the first of the `until` strings in it, before the end token, or after `max_new_tokens`. With
    `until`, the pieces may end with the beginning of such a string. Raises ConfigError.
    """
    if max_new_tokens < 1:
        raise ConfigError(f"max_new_tokens must be at least 1, got {max_new_tokens}")
    random = torch.Generator().manual_seed(sampling.seed)
    new: list[int] = []
    text = ""
    num_written = 0
    while len(new) < max_new_tokens:
        token = choose(feed(tokens), sampling, random)
        if token == tokenizer.end_token:
            break
        new.append(token)
        tokens = [token]
        # as a whole: a character may take several tokens
        text = tokenizer.decode(new)
        if ends := [place for stop in until if (place := text.find(stop)) >= 0]:
            return text[: min(ends)]
        # the bytes of an unfinished character are decoded as U+FFFD
        whole = text.rstrip("\ufffd")
        if len(whole) > num_written:
            written(whole[num_written:])
            num_written = len(whole)
    if len(text) > num_written:
        written(text[num_written:])
    return text


def complete(
    model: SegmentModel, prompt: Int32[np.ndarray, " tokens"], view: MemoryView | None, max_new_tokens: int, until: str
) -> str:
    """Return the most probable text after a prompt within one segment, up to `until`, which is left out.

    Raises DocumentError when the prompt leaves no room for `max_new_tokens` in its segment.
    """
    room = model.config.segment_tokens - len(prompt) + 1
    if room < max_new_tokens:
        raise DocumentError(
            f"a prompt of {len(prompt)} tokens leaves room for {max(0, room)} of {max_new_tokens} new ones in a "
            f"segment of {model.config.segment_tokens}: shorten it, or use longer segments"
        )
    feed = Decoder(model, None, FixedMemory(view), prompt=True).feed
    return decode(feed, prompt.tolist(), model.tokenizer, max_new_tokens, Sampling(), [until])


def choose(logits: Float32[Tensor, " vocabulary"], sampling: Sampling, random: torch.Generator) -> int:
    """Return one token, chosen from the next-token logits."""
    if sampling.temperature == 0:
        return int(logits.argmax())
    probabilities, order = (logits.cpu() / sampling.temperature).softmax(dim=0).sort(descending=True)
    # keep a token while the mass before it is below top_p: the most probable one always stays
    probabilities[probabilities.cumsum(0) - probabilities >= sampling.top_p] = 0
    return int(order[torch.multinomial(probabilities, 1, generator=random)])
