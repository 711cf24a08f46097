# SPDX-License-Identifier: Apache-2.0
"""Selection of the compute dtype: bfloat16 where this machine is measurably faster and perplexity is unchanged.

Both are measured, because neither follows from the processor's feature flags: some processors emulate bfloat16, and
models differ in their sensitivity to its eight-bit significand.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from time import perf_counter

import numpy as np
import torch
from torch import nn

from longmem.backbone.fast.linear import use_fast_linear
from longmem.config import Dtype
from longmem.model.source import ModelSource
from longmem.scoring.text import score_segments
from longmem.text.language_reference import language_reference
from longmem.types import Document
from longmem.wording import signed

MIN_SPEEDUP = 1.5
"""Smallest speed-up of matrix products that makes further measurements worthwhile."""
MIN_GAIN = 1.1
"""Smallest speed-up of reading. Below it a job gains almost nothing and its numbers change."""
MAX_CHANGE = 0.001
"""Largest relative change of perplexity with memory."""
SAMPLE_TOKENS = (4096, 16_384)
"""First and largest number of text tokens of the comparison. The number doubles until the change is known precisely
enough. A text similar to the training data needs the first number, which takes seconds for a small model."""
PRODUCT_ROWS = 512
INTERVAL = 1.96
"""Standard errors to each side, for a 95% interval."""


@dataclass(frozen=True)
class DtypeComparison:
    """Effect of computing in bfloat16 on the first tokens of a text."""

    document: str
    num_tokens: int
    relative: float
    """Perplexity in bfloat16 divided by that in float32, minus 1."""
    margin: float
    """Half width of the 95% interval of `relative`, with segments as independent draws; infinite for fewer than two."""
    gain: float
    """Time of reading in float32 divided by that in bfloat16."""

    @property
    def is_small(self) -> bool:
        """True if the measured change of perplexity is below `MAX_CHANGE`."""
        return abs(self.relative) < MAX_CHANGE

    @property
    def is_clear(self) -> bool:
        """True if neither limit, plus or minus `MAX_CHANGE`, is inside the interval."""
        return all(abs(self.relative - end) > self.margin for end in (-MAX_CHANGE, MAX_CHANGE))


@dataclass(frozen=True)
class DtypeChoice:
    """Chosen dtype and the measurements that decided."""

    dtype: Dtype
    speedup: float
    """Time of a float32 matrix product divided by that of a bfloat16 one."""
    reading: DtypeComparison | None
    """Comparison of reading; None where the matrix products were decisive."""

    def __str__(self) -> str:
        speed = f"matrix products in bfloat16 are {self.speedup:.2f} times as fast here"
        if self.reading is None:
            return f"computing in {self.dtype}: {speed}, at least {MIN_SPEEDUP} are wanted"
        reading = self.reading
        return (
            f"computing in {self.dtype}: {speed}, reading the first {reading.num_tokens:,} tokens of "
            f"{reading.document} {reading.gain:.2f} times (at least {MIN_GAIN} are wanted); their perplexity changes "
            f"by {signed(reading.relative, '+.3%')} ± {reading.margin:.3%} (at most {MAX_CHANGE:.1%} is allowed)"
        )


def choose_dtype(
    source: ModelSource, sample: Document | None = None, on_read: Callable[[int, int], None] = lambda _new, _most: None
) -> DtypeChoice:
    """Choose by measurement on the device of `source`, with the sample or the language reference.

    `on_read` is that of `compare_reading`, which is called only where products are fast enough.

    Raises ModelError and its kinds, ConfigError, DocumentError, NumericError.
    """
    speedup = bfloat16_speedup(source.device)
    if speedup < MIN_SPEEDUP:
        return DtypeChoice("float32", speedup, None)
    reading = compare_reading(source, sample or language_reference(), on_read)
    is_better = reading.is_small and reading.gain >= MIN_GAIN
    return DtypeChoice("bfloat16" if is_better else "float32", speedup, reading)


def bfloat16_speedup(device: str = "cpu") -> float:
    """Return the time of a float32 product divided by that of a bfloat16 one: best of several, with torch's thread
    count."""

    def best_s(dtype: torch.dtype) -> float:
        layer = nn.Linear(PRODUCT_ROWS, PRODUCT_ROWS, bias=False, dtype=dtype, device=device)
        use_fast_linear(layer)
        rows = torch.ones((PRODUCT_ROWS, PRODUCT_ROWS), dtype=dtype, device=device)
        times = []
        for _ in range(6):
            start = perf_counter()
            # transferring one number waits for the GPU
            layer(rows)[0, 0].item()
            times.append(perf_counter() - start)
        return min(times)

    with torch.no_grad():
        return best_s(torch.float32) / best_s(torch.bfloat16)


def compare_reading(
    source: ModelSource, sample: Document, on_read: Callable[[int, int], None] = lambda _new, _most: None
) -> DtypeComparison:
    """Read the sample in both dtypes, interleaved, until the change is clear or no tokens are left.

    `on_read` receives the number of tokens that were newly read in both, first 0, and the number to read at most.
    """
    next_look, most = SAMPLE_TOKENS
    sequence = source.open_tokenizer().sequence(sample.text)[: most + 1]
    on_read(0, len(sequence) - 1)
    exact, rounded = (_Reading(replace(source, dtype=dtype), sequence) for dtype in ("float32", "bfloat16"))
    losses: list[np.ndarray] = []
    for in_float32, in_bfloat16 in zip(exact, rounded, strict=True):
        losses.append(in_float32.astype(np.float64) - in_bfloat16)
        on_read(len(losses[-1]), len(sequence) - 1)
        if sum(map(len, losses)) >= next_look:
            next_look *= 2
            if _compared(sample.id, losses, exact, rounded).is_clear:
                break
    return _compared(sample.id, losses, exact, rounded)


class _Reading:
    """Log-probabilities of each segment, and the time they took."""

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
    """Compare both readings. `losses` holds, for each segment, the nats that each token loses."""
    of_tokens = np.concatenate(losses)
    means = np.array([loss.mean() for loss in losses if len(loss)])
    return DtypeComparison(
        document=document,
        num_tokens=len(of_tokens),
        relative=float(np.expm1(of_tokens.mean())) if len(of_tokens) else 0.0,
        margin=float(INTERVAL * means.std(ddof=1) / len(means) ** 0.5) if len(means) > 1 else float("inf"),
        gain=float(np.median(exact.took_s) / np.median(rounded.took_s)),
    )
