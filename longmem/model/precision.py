"""Which type to compute in: bfloat16 where this machine is really faster with it and perplexity stays what it is.

Both are measured, because neither follows from what a processor says it supports: some emulate bfloat16, and models
differ in what its eight bits do to them.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from time import perf_counter

import numpy as np
import torch
from torch import nn

from longmem.backbone.fast_linear import use_fast_linear
from longmem.config import Dtype
from longmem.model.source import ModelSource
from longmem.scoring.text import score_segments
from longmem.text.language_reference import language_reference
from longmem.types import Document

MIN_SPEEDUP = 1.5
"""Of matrix products. With less, nothing else is worth measuring."""
MIN_GAIN = 1.1
"""Of reading. With less, a job gains almost nothing and its numbers change."""
MAX_CHANGE = 0.001
"""Relative, of perplexity with memory."""
SAMPLE_TOKENS = (4096, 32_768)
"""Of the text: after so many, and each time that they have doubled, it is asked whether the change is known well
enough; at most so many. A text like those that the model was trained on takes the first number, seconds for a small
model."""
PRODUCT_ROWS = 512
INTERVAL = 1.96
"""Standard errors to each side, for 95%."""


@dataclass(frozen=True)
class DtypeComparison:
    """What computing in bfloat16 does to a text's first tokens."""

    document: str
    num_tokens: int
    relative: float
    """Perplexity in bfloat16 over that in float32, less 1."""
    margin: float
    """Half of the 95% interval of `relative`, from segments as independent draws; infinite for fewer than two."""
    gain: float
    """Time of reading in float32 over that in bfloat16."""

    @property
    def is_small(self) -> bool:
        """Whether perplexity changes little, as far as one can see."""
        return abs(self.relative) < MAX_CHANGE

    @property
    def is_clear(self) -> bool:
        """Neither end of what is small is in the interval."""
        return all(abs(self.relative - end) > self.margin for end in (-MAX_CHANGE, MAX_CHANGE))


@dataclass(frozen=True)
class DtypeChoice:
    """What was chosen, and the figures that decided."""

    dtype: Dtype
    speedup: float
    """Time of a float32 matrix product over that of a bfloat16 one."""
    reading: DtypeComparison | None
    """None where products had decided already."""

    def __str__(self) -> str:
        speed = f"matrix products in bfloat16 are {self.speedup:.2f} times as fast here"
        if self.reading is None:
            return f"computing in {self.dtype}: {speed}, at least {MIN_SPEEDUP} are wanted"
        reading = self.reading
        return (
            f"computing in {self.dtype}: {speed}, reading the first {reading.num_tokens:,} tokens of "
            f"{reading.document} {reading.gain:.2f} times (at least {MIN_GAIN} are wanted); their perplexity changes "
            f"by {reading.relative:+.3%} ± {reading.margin:.3%} (at most {MAX_CHANGE:.1%} is allowed)"
        )


def choose_dtype(source: ModelSource, sample: Document | None = None) -> DtypeChoice:
    """Measured here, on the device of `source`, with the sample or the language reference. Raises ModelError and its
    kinds, ConfigError, DocumentError, NumericError."""
    speedup = bfloat16_speedup(source.device)
    if speedup < MIN_SPEEDUP:
        return DtypeChoice("float32", speedup, None)
    reading = compare_reading(source, sample or language_reference())
    is_better = reading.is_small and reading.gain >= MIN_GAIN
    return DtypeChoice("bfloat16" if is_better else "float32", speedup, reading)


def bfloat16_speedup(device: str = "cpu") -> float:
    """Time of a float32 product over that of a bfloat16 one; the best of several, with the threads that torch has."""

    def best_s(dtype: torch.dtype) -> float:
        layer = nn.Linear(PRODUCT_ROWS, PRODUCT_ROWS, bias=False, dtype=dtype, device=device)
        use_fast_linear(layer)
        rows = torch.ones((PRODUCT_ROWS, PRODUCT_ROWS), dtype=dtype, device=device)
        times = []
        for _ in range(6):
            start = perf_counter()
            # reading one number waits for a GPU
            layer(rows)[0, 0].item()
            times.append(perf_counter() - start)
        return min(times)

    with torch.no_grad():
        return best_s(torch.float32) / best_s(torch.bfloat16)


def compare_reading(source: ModelSource, sample: Document) -> DtypeComparison:
    """Read the sample in both types, side by side, until the change is clear or there are no more tokens."""
    next_look, most = SAMPLE_TOKENS
    sequence = source.open_tokenizer().sequence(sample.text)[: most + 1]
    exact, rounded = (_Reading(replace(source, dtype=dtype), sequence) for dtype in ("float32", "bfloat16"))
    losses: list[np.ndarray] = []
    for in_float32, in_bfloat16 in zip(exact, rounded, strict=True):
        losses.append(in_float32.astype(np.float64) - in_bfloat16)
        if sum(map(len, losses)) >= next_look:
            next_look *= 2
            if _compared(sample.id, losses, exact, rounded).is_clear:
                break
    return _compared(sample.id, losses, exact, rounded)


class _Reading:
    """Log-probabilities, segment by segment, and how long they took."""

    def __init__(self, source: ModelSource, sequence: np.ndarray) -> None:
        self._segments = score_segments(source.open(), sequence)
        self.took_s: list[float] = []

    def __iter__(self) -> Iterator[np.ndarray]:
        start = perf_counter()
        for score in self._segments:
            self.took_s.append(perf_counter() - start)
            yield score.logprobs
            start = perf_counter()


def _compared(document: str, losses: list[np.ndarray], exact: _Reading, rounded: _Reading) -> DtypeComparison:
    """`losses`: of each segment, nats that each token loses."""
    of_tokens = np.concatenate(losses)
    means = np.array([loss.mean() for loss in losses if len(loss)])
    return DtypeComparison(
        document=document,
        num_tokens=len(of_tokens),
        relative=float(np.expm1(of_tokens.mean())) if len(of_tokens) else 0.0,
        margin=float(INTERVAL * means.std(ddof=1) / len(means) ** 0.5) if len(means) > 1 else float("inf"),
        gain=float(np.median(exact.took_s) / np.median(rounded.took_s)),
    )
