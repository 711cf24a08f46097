# SPDX-License-Identifier: Apache-2.0
"""Ablations: one trained model with other reading settings, and untrained models in every form of reading.

Sizes (chunk, memory, top-k, stored format) are settings of reading, so one trained model serves all of them. Forms have
their own parameters, so each is a new, untrained SideNet on one common backbone. They show the gain before training.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import exp
from pathlib import Path
from time import perf_counter
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from benchmarks.baselines.base import Sequence as Tokens
from longmem.config import PAPER_FORM, Dtype
from longmem.model.folders import BACKBONE_FOLDER
from longmem.model.source import ModelSource
from longmem.training.validation import validate

SIZES: dict[str, list[int] | list[str]] = {
    "chunk_tokens": [1, 2, 4, 8, 16],
    "memory_tokens": [4_096, 8_192, 16_384, 32_768, 65_536],
    "top_k": [16, 32, 64, 128],
    "kv_dtype": ["float32", "float16", "bfloat16", "int8"],
}
FORMS: dict[str, dict[str, Any]] = {
    "default": {},
    "paper's form": PAPER_FORM,
    "paper's form, chunk 1": {**PAPER_FORM, "chunk_tokens": 1},
    "query=side": {"query": "side"},
    "query=side, keys=raw": {"query": "side", "keys": "raw"},
    "keys=centred": {"keys": "centred"},
    "values=same": {"values": "same"},
    "retrieval=per_head": {"retrieval": "per_head"},
    "copy_head=false": {"copy_head": False},
    "copy_repeats=0": {"copy_repeats": 0},
    "copy_match_tokens=0": {"copy_match_tokens": 0},
    "chunk_tokens=4": {"chunk_tokens": 4},
    "fusion=false": {"fusion": False},
}
"""Untrained forms: the default with one choice changed, and the paper's form."""


@dataclass(frozen=True)
class VariantRow:
    """Scores of one variant on all documents."""

    group: str
    name: str
    perplexity: float
    backbone: float
    tokens_per_s: float

    @property
    def change(self) -> float:
        """Relative change of perplexity against the backbone alone."""
        return self.perplexity / self.backbone - 1


def sizes(model: Path, documents: Sequence[Tokens], dtype: Dtype, only: str | None = None) -> Iterator[VariantRow]:
    """Score every size of SIZES alone (or of one group), with the model's values for the others."""
    for group, values in SIZES.items() if only is None else [(only, SIZES[only])]:
        for value in values:
            yield _measure(group, str(value), ModelSource(str(model), dtype, settings={group: value}), documents)


def forms(model: Path, documents: Sequence[Tokens], dtype: Dtype) -> Iterator[VariantRow]:
    """Score every form of FORMS on the model's backbone, with its segment, memory layer and sizes."""
    trained = ModelSource(str(model)).open()
    kept = {
        "segment_tokens": trained.config.segment_tokens,
        "memory_layer": trained.sidenet.memory_layer,
        "memory_tokens": trained.config.memory_tokens,
        "top_k": trained.config.top_k,
    }
    for name, settings in FORMS.items():
        source = ModelSource(str(model / BACKBONE_FOLDER), dtype, settings={**kept, **settings})
        yield _measure("untrained form", name, source, documents)


def _measure(group: str, name: str, source: ModelSource, documents: Sequence[Tokens]) -> VariantRow:
    model = source.open()
    model.sidenet.float()
    start = perf_counter()
    result = validate(model, documents)
    return VariantRow(
        group, name, exp(result.with_memory), exp(result.backbone), result.tokens / (perf_counter() - start)
    )


def markdown(lines: Sequence[VariantRow]) -> str:
    """Return one table of all variants."""
    rows = ["| group | variant | perplexity | change | tokens/s |", "|---|---|--:|--:|--:|"]
    rows += [
        f"| {line.group} | {line.name} | {line.perplexity:.3f} | {line.change:+.1%} | {line.tokens_per_s:,.0f} |"
        for line in lines
    ]
    return "\n".join(rows) + "\n"


def draw(lines: Sequence[VariantRow], path: Path) -> None:
    """Plot the change of perplexity over the value of each size, one panel per size."""
    groups = [group for group in SIZES if any(line.group == group for line in lines)]
    if not groups:
        return
    figure = Figure(figsize=(4 * len(groups), 3.4), layout="constrained")
    panels = figure.subplots(1, len(groups), squeeze=False)[0]
    for axes, group in zip(panels, groups, strict=True):
        part = [line for line in lines if line.group == group]
        # sizes double from one to the next; formats are categories
        axes.plot([line.name for line in part], [100 * line.change for line in part], marker="o")
        axes.set(xlabel=group, ylabel="change of perplexity, %")
        axes.grid(alpha=0.3)
    FigureCanvasAgg(figure)
    figure.savefig(path)
