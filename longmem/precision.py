"""Which type to compute in: bfloat16 where this machine is really faster with it and perplexity stays what it is.

Both are measured, because neither follows from what a processor says it supports: some emulate bfloat16, and models
differ in what its eight bits do to them.
"""

from dataclasses import dataclass, replace
from time import perf_counter

import numpy as np
import torch
from torch import nn

from longmem.backbone.fast_linear import use_fast_linear
from longmem.config import Dtype
from longmem.model_source import ModelSource
from longmem.scoring import score_segments
from longmem.text.language_reference import language_reference
from longmem.types import Document

MIN_SPEEDUP = 1.5
"""Of matrix products. With less, a whole job gains almost nothing and its numbers change."""
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
class PerplexityChange:
    """Of a text's first tokens by computing in bfloat16."""

    document: str
    num_tokens: int
    relative: float
    """Perplexity in bfloat16 over that in float32, less 1."""
    margin: float
    """Half of the 95% interval of `relative`, from segments as independent draws; infinite for fewer than two."""

    @property
    def is_small(self) -> bool:
        """As far as one can see."""
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
    change: PerplexityChange | None
    """None where speed had decided already."""

    def __str__(self) -> str:
        speed = f"matrix products in bfloat16 are {self.speedup:.2f} times as fast here"
        if self.change is None:
            return f"computing in {self.dtype}: {speed}, at least {MIN_SPEEDUP} are wanted"
        change = self.change
        return (
            f"computing in {self.dtype}: {speed} and change the perplexity of the first {change.num_tokens:,} tokens "
            f"of {change.document} by {change.relative:+.3%} ± {change.margin:.3%}, at most {MAX_CHANGE:.1%} is allowed"
        )


def choose_dtype(source: ModelSource, sample: Document | None = None) -> DtypeChoice:
    """Measured here, on the device of `source`, with the sample or the language reference. Raises ModelError and its
    kinds, ConfigError, DocumentError, NumericError."""
    speedup = bfloat16_speedup(source.device)
    if speedup < MIN_SPEEDUP:
        return DtypeChoice("float32", speedup, None)
    change = bfloat16_change(source, sample or language_reference())
    return DtypeChoice("bfloat16" if change.is_small else "float32", speedup, change)


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


def bfloat16_change(source: ModelSource, sample: Document) -> PerplexityChange:
    """Read the sample in both types, side by side, until the change is clear or there are no more tokens."""
    next_look, most = SAMPLE_TOKENS
    sequence = source.open_tokenizer().sequence(sample.text)[: most + 1]
    exact, rounded = (
        score_segments(replace(source, dtype=dtype).open(), sequence) for dtype in ("float32", "bfloat16")
    )
    losses: list[np.ndarray] = []
    for in_float32, in_bfloat16 in zip(exact, rounded, strict=True):
        losses.append(in_float32.logprobs.astype(np.float64) - in_bfloat16.logprobs)
        if sum(map(len, losses)) >= next_look:
            next_look *= 2
            if (change := _change_of(sample.id, losses)).is_clear:
                return change
    return _change_of(sample.id, losses)


def _change_of(document: str, losses: list[np.ndarray]) -> PerplexityChange:
    """`losses`: of each segment, nats that each token loses."""
    of_tokens = np.concatenate(losses)
    if not len(of_tokens):
        return PerplexityChange(document, 0, 0.0, float("inf"))
    means = np.array([loss.mean() for loss in losses if len(loss)])
    margin = INTERVAL * means.std(ddof=1) / len(means) ** 0.5 if len(means) > 1 else float("inf")
    return PerplexityChange(document, len(of_tokens), float(np.expm1(of_tokens.mean())), float(margin))
