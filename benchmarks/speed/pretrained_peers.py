# SPDX-License-Identifier: Apache-2.0
"""Methods to read a long text with one pretrained backbone, side by side: perplexity and speed of the same tokens.

Each method first takes the same history. Then the segments after it are scored, each by every method in turn, so that
other load on the machine affects all of them equally. Overlapping windows need no history beyond their own tokens.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from time import perf_counter, process_time

import numpy as np
import torch
from rich.console import Console

from benchmarks.baselines import base
from benchmarks.baselines.infllm import Asking, InfLLM, InfLLMSizes
from benchmarks.paired import Chosen, compare_scores
from benchmarks.speed.every_layer import torch_attention
from benchmarks.speed.table import BenchmarkRow, SpeedTable
from benchmarks.speed.timing import Timing
from longmem.backbone.fast.attention import ATTENTION
from longmem.errors import ConfigError
from longmem.memory.context import LocalMemory, text_key
from longmem.model.checkpoint import new_reading_model
from longmem.model.longmem import LongMem
from longmem.scoring.evaluation_window import EvaluationWindow
from longmem.scoring.metrics import Interval
from longmem.scoring.window_scores import score_window
from longmem.text.segments import cut_segments
from longmem.types import Segment

PIECE_TOKENS = 512
"""Targets that the bootstrap of an interval draws together."""
MOST_WINDOWS = 2
"""Windows of a segment that are scored where the stride is short; they are spread evenly over it."""
NOT_RUN = {
    "memorizing-transformers-pytorch": (
        "it cannot hold these weights: its layers have no rotary positions, no grouped KV heads and no gated MLP; "
        "`python -m benchmarks peers` compares its speed at equal sizes"
    )
}


class AbstractPeer(ABC):
    """Method that scores the segments of one sequence in order."""

    def __init__(self, name: str) -> None:
        self.name = name

    def targets(self, count: int) -> Chosen:
        """Return which of a segment's `count` targets are scored."""
        return np.ones(count, np.bool_)

    @abstractmethod
    def take_history(self, sequence: base.Sequence) -> None:
        """Read the tokens in front of the first scored segment."""

    @abstractmethod
    def score(self, sequence: base.Sequence, start: int, end: int) -> base.LogProbs:
        """Return log-probabilities of the chosen targets after tokens `start` to `end - 1` of the sequence."""


class LongMemPeer(AbstractPeer):
    """LongMem as a job runs it: each segment is encoded, then read with the memory, or in one pass."""

    def __init__(self, name: str, model: LongMem) -> None:
        super().__init__(name)
        self._model = model
        self._memory = LocalMemory(model)

    def take_history(self, sequence: base.Sequence) -> None:
        for segment in self._segments(sequence):
            past = partial(self._memory.view, segment.index)
            self._memory.accept(self._model.encode_in_document(segment, past).block)

    def score(self, sequence: base.Sequence, start: int, end: int) -> base.LogProbs:
        size = self._model.config.segment_tokens
        return np.concatenate(
            [self._score(each) for each in self._segments(sequence[: end + 1])[start // size : end // size]]
        )

    def _score(self, segment: Segment) -> base.LogProbs:
        past = partial(self._memory.view, segment.index)
        encoded = self._model.encode_in_document(segment, past)
        score = self._model.score_segment(segment, encoded.block.keys, encoded.state, past(), encoded.backbone_logprobs)
        self._memory.accept(encoded.block)
        return score.logprobs

    def _segments(self, sequence: base.Sequence) -> list[Segment]:
        return cut_segments(text_key(None), sequence, self._model.config.segment_tokens)


class WindowPeer(AbstractPeer):
    """Overlapping windows of the backbone alone, as published work evaluates it."""

    def __init__(self, name: str, model: LongMem, window: int, stride: int, *, plain: bool) -> None:
        """`plain` attends with torch, as plain transformers does."""
        super().__init__(name)
        self._model = model
        self._window = window
        self._stride = stride
        self._plain = plain

    def take_history(self, sequence: base.Sequence) -> None:
        assert len(sequence) >= self._window - self._stride, "a whole window in front of the first scored stride"

    def targets(self, count: int) -> Chosen:
        chosen = np.zeros(count, np.bool_)
        for first in self._strides(count):
            chosen[first : first + self._stride] = True
        return chosen

    def score(self, sequence: base.Sequence, start: int, end: int) -> base.LogProbs:
        attention: AbstractContextManager[None] = torch_attention(self._model) if self._plain else nullcontext()
        with attention:
            return np.concatenate(
                [self._stride_logprobs(sequence, start + each) for each in self._strides(end - start)]
            )

    def _stride_logprobs(self, sequence: base.Sequence, first: int) -> base.LogProbs:
        end = first + self._stride
        window = EvaluationWindow(
            0, end - self._window, sequence[end - self._window : end], sequence[first + 1 : end + 1]
        )
        return score_window(self._model, window, "text")

    def _strides(self, count: int) -> Iterator[int]:
        """Yield the first target of each scored window."""
        number = count // self._stride
        taken = min(number, MOST_WINDOWS)
        for index in range(taken):
            yield (2 * index + 1) * number // (2 * taken) * self._stride


class InfLLMPeer(AbstractPeer):
    """InfLLM; `history` is another one's, whose history is taken over instead of read again."""

    def __init__(
        self, name: str, model: LongMem, sizes: InfLLMSizes, asking: Asking, history: "InfLLMPeer | None" = None
    ) -> None:
        super().__init__(name)
        self._baseline = InfLLM(model.backbone, sizes, asking)
        self.history = history
        self.context = self._baseline.new_context()

    def take_history(self, sequence: base.Sequence) -> None:
        if self.history is None:
            self._baseline.read(self.context, torch.from_numpy(sequence.astype(np.int64)))
        else:
            self.context = [layer.fork() for layer in self.history.context]

    def score(self, sequence: base.Sequence, start: int, end: int) -> base.LogProbs:
        tokens = torch.from_numpy(sequence[start : end + 1].astype(np.int64))
        return self._baseline.score(self.context, tokens[:-1], tokens[1:])


def in_one_pass(model: LongMem, segment_tokens: int, near_tokens: int) -> LongMem:
    """Return the model in one pass with other sizes; both share the backbone."""
    config = replace(model.config, one_pass=True, segment_tokens=segment_tokens, near_tokens=near_tokens)
    reader = new_reading_model(model.backbone, model.tokenizer, config)
    reader.load_state_dict(model.sidenet.state_dict())
    return LongMem(model.backbone, reader, model.tokenizer, config)


def lineup(
    model: LongMem, windows: Sequence[tuple[int, int]], sizes: InfLLMSizes, short: tuple[int, int]
) -> list[AbstractPeer]:
    """Return all peers: LongMem in one pass with `short` tokens of a segment and of the near past, then with the
    model's, then in two passes, then the others."""
    config = model.config
    shown = f"InfLLM, {sizes.local_tokens:,} local tokens, {sizes.read_blocks} blocks of {sizes.block_tokens}"
    causal = InfLLMPeer(f"{shown}, chosen by the chunk before", model, sizes, "before")
    peers: list[AbstractPeer] = [
        LongMemPeer(f"LongMem, one pass, segments of {short[0]:,}, near past {short[1]:,}", in_one_pass(model, *short)),
        LongMemPeer("LongMem, one pass", in_one_pass(model, config.segment_tokens, config.near_tokens)),
        LongMemPeer("LongMem, two passes", model),
    ]
    for window, stride in windows:
        name = f"window of {window:,}, stride {stride:,}"
        peers.append(WindowPeer(f"plain transformers, {name}", model, window, stride, plain=True))
        if model.backbone.model.config._attn_implementation == ATTENTION and model.config.segment_tokens == stride:
            peers.append(WindowPeer("the same, with attention in C", model, window, stride, plain=False))
    return [*peers, causal, InfLLMPeer(f"{shown}, chosen by the chunk itself", model, sizes, "chunk", causal)]


def selected(peers: Sequence[AbstractPeer], only: Sequence[str]) -> list[AbstractPeer]:
    """Return the peers whose names have one of the parts; all without parts.

    Raises ConfigError for a part of no name, and where LongMem, all others, or a history that is taken over are left
    out.
    """
    names = "; ".join(peer.name for peer in peers)
    for part in only:
        if not any(part in peer.name for peer in peers):
            raise ConfigError(f"--only {part!r}: expected a part of one of these names: {names}")
    chosen = [peer for peer in peers if not only or any(part in peer.name for part in only)]
    if len({isinstance(peer, LongMemPeer) for peer in chosen}) != 2:
        raise ConfigError(f"--only: expected a row of LongMem and another one, of: {names}")
    for peer in chosen:
        if isinstance(peer, InfLLMPeer) and peer.history is not None and peer.history not in chosen:
            raise ConfigError(f"--only: {peer.name!r} takes over the history of {peer.history.name!r}; give both")
    return chosen


def pretrained_peers(
    model: LongMem,
    sequence: base.Sequence,
    history_tokens: int,
    num_segments: int,
    peers: Sequence[AbstractPeer],
    console: Console,
) -> SpeedTable:
    """Score `num_segments` segments after `history_tokens` tokens of a sequence, in turns; the console says each."""
    size = model.config.segment_tokens
    assert history_tokens % size == 0, "the history is whole segments"
    assert len(sequence) > history_tokens + num_segments * size, "the sequence is long enough"
    history_s = {}
    for peer in peers:
        begun = process_time()
        peer.take_history(sequence[:history_tokens])
        history_s[peer.name] = process_time() - begun
        console.print(f"history of {history_tokens:,} tokens: {history_s[peer.name]:,.1f} s of CPU, {peer.name}")
    times: dict[str, list[tuple[float, float]]] = {peer.name: [] for peer in peers}
    scores: dict[str, list[base.LogProbs]] = {peer.name: [] for peer in peers}
    for start in range(history_tokens, history_tokens + num_segments * size, size):
        for peer in peers:
            wall_s, cpu_s = perf_counter(), process_time()
            scored = peer.score(sequence, start, start + size)
            share = size / len(scored)
            times[peer.name].append((share * (perf_counter() - wall_s), share * (process_time() - cpu_s)))
            scores[peer.name].append(scored)
            nats = -float(scored.mean(dtype=np.float64))
            console.print(
                f"from token {start:,}: {times[peer.name][-1][1]:,.1f} s of CPU, {nats:.4f} nats, {peer.name}"
            )
    own = scores[peers[0].name]
    lines, figures = [], {}
    for peer in peers:
        chosen = peer.targets(size)
        # LongMem's targets that this peer scores too
        found = compare_scores([part[chosen] for part in own], scores[peer.name], PIECE_TOKENS)
        timing = Timing(*zip(*times[peer.name], strict=True))
        notes = {
            "tokens/s of CPU": f"{size / timing.cpu_median_s:,.0f}",
            "perplexity": f"{found.token.backbone.value:.2f}",
            "LongMem, same tokens": f"{found.token.longmem.value:.2f}",
            "LongMem against it": "" if peer is peers[0] else _percent(found.change),
            "history, CPU s": f"{history_s[peer.name]:,.0f}",
        }
        lines.append(BenchmarkRow(peer.name, timing, notes))
        figures[peer.name] = {
            "perplexity": found.token.backbone.value,
            "longmem_perplexity": found.token.longmem.value,
            "change": [found.change.value, found.change.low, found.change.high],
            "scored_tokens": int(chosen.sum()) * num_segments,
            "tokens_per_cpu_s": size / timing.cpu_median_s,
            "history_cpu_s": history_s[peer.name],
        }
    speeds = [each["tokens_per_cpu_s"] for each in figures.values()]
    best = max(speed for peer, speed in zip(peers, speeds, strict=True) if not isinstance(peer, LongMemPeer))
    title = (
        f"{model.backbone.name}: {num_segments * size:,} tokens scored after {history_tokens:,}; times are of "
        f"{size:,} tokens"
    )
    settings = {"threads": torch.get_num_threads(), "dtype": str(model.backbone.dtype), "peers": figures}
    return SpeedTable(title, lines, settings | {"speed_against_best": speeds[0] / best}, NOT_RUN)


def _percent(change: Interval) -> str:
    assert change.value is not None, "some targets were scored"
    inside = "" if change.low is None or change.high is None else f" ({change.low:+.1%} to {change.high:+.1%})"
    return f"{change.value:+.1%}{inside}"
