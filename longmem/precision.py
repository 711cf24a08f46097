"""Which type to compute in: bfloat16 where this machine is really faster with it and perplexity stays what it is.

Both are measured, because neither follows from what a processor says it supports: some emulate bfloat16, and models
differ in what its eight bits do to them.
"""

from dataclasses import dataclass, replace
from time import perf_counter

import torch

from longmem.config import Dtype
from longmem.model_source import ModelSource
from longmem.scoring import score_sequence
from longmem.text.language_reference import language_reference

MIN_SPEEDUP = 1.5
"""Of matrix products. With less, a whole job gains almost nothing and its numbers change."""
MAX_DIFFERENCE = 0.001
"""Relative, of perplexity with memory."""
SAMPLE_TOKENS = 4096
"""Of the language reference; eight segments of the default length, seconds for a small model."""
PRODUCT_ROWS = 512


@dataclass(frozen=True)
class DtypeChoice:
    """What was chosen, and the figures that decided."""

    dtype: Dtype
    speedup: float
    """Time of a float32 matrix product over that of a bfloat16 one."""
    difference: float | None
    """Perplexity in bfloat16 over that in float32, less 1; None where speed had decided already."""

    def __str__(self) -> str:
        speed = f"matrix products in bfloat16 are {self.speedup:.2f} times as fast here"
        if self.difference is None:
            return f"computing in {self.dtype}: {speed}, at least {MIN_SPEEDUP} are wanted"
        changes = f"change the perplexity of {SAMPLE_TOKENS:,} tokens by {self.difference:+.3%}"
        return f"computing in {self.dtype}: {speed} and {changes}, at most {MAX_DIFFERENCE:.1%} is allowed"


def choose_dtype(source: ModelSource) -> DtypeChoice:
    """Measured here, on the device of `source`. Raises ModelError and its kinds, ConfigError, NumericError."""
    speedup = bfloat16_speedup(source.device)
    if speedup < MIN_SPEEDUP:
        return DtypeChoice("float32", speedup, None)
    difference = bfloat16_difference(source)
    return DtypeChoice("bfloat16" if abs(difference) < MAX_DIFFERENCE else "float32", speedup, difference)


def bfloat16_speedup(device: str = "cpu") -> float:
    """Time of a float32 product over that of a bfloat16 one; the best of several, with the threads that torch has."""

    def best_s(dtype: torch.dtype) -> float:
        matrix = torch.ones((PRODUCT_ROWS, PRODUCT_ROWS), dtype=dtype, device=device)
        times = []
        for _ in range(6):
            start = perf_counter()
            # reading one number waits for a GPU
            (matrix @ matrix)[0, 0].item()
            times.append(perf_counter() - start)
        return min(times)

    return best_s(torch.float32) / best_s(torch.bfloat16)


def bfloat16_difference(source: ModelSource) -> float:
    """Perplexity of a sample with memory, in bfloat16 over that in float32, less 1."""
    sequence = source.open_tokenizer().sequence(language_reference().text)[: SAMPLE_TOKENS + 1]
    exact, rounded = (
        score_sequence(replace(source, dtype=dtype).open(), sequence).perplexity for dtype in ("float32", "bfloat16")
    )
    return rounded / exact - 1
