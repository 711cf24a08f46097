# SPDX-License-Identifier: Apache-2.0
"""Rows of a comparison: every baseline on one backbone, and the LongMem folders that share this backbone."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.baselines.base import AbstractBaseline
from benchmarks.baselines.bigbird import BigBird
from benchmarks.baselines.frozen import FrozenBackbone
from benchmarks.baselines.full_attention import FullAttention
from benchmarks.baselines.memorizing_transformer import MemorizingBaseline, open_memorizing
from benchmarks.baselines.neural_cache import NeuralCache
from benchmarks.baselines.ngram_cache import NgramCache
from benchmarks.baselines.sliding import SlidingWindow
from benchmarks.baselines.transformer_xl import TransformerXL
from benchmarks.memory_scoring import LongMemBaseline
from longmem.backbone.backbone import Backbone
from longmem.config import Dtype
from longmem.errors import ConfigError
from longmem.model.longmem import LongMem
from longmem.model.source import ModelSource

WINDOW_SEGMENTS = 4
"""Segments of the longest of the longer windows: full masks of more would not fit in memory."""
CONTROL = "SideNet without memory"


@dataclass(frozen=True)
class Lineup:
    """Rows of a comparison in their order, and the names of the reference rows."""

    baselines: list[AbstractBaseline]
    references: list[str]
    segment_tokens: int
    not_run: dict[str, str]
    """Rows that this backbone cannot have, with the reason."""


def without_longmem(model: LongMem) -> tuple[list[AbstractBaseline], dict[str, str]]:
    """Return all rows without training, and the rows that this backbone cannot have, with the reasons.

    The rows use the model's own backbone, segments, memory layer and memory length.
    """
    backbone, config = model.backbone, model.config
    segment_tokens = config.segment_tokens
    window_tokens = min(backbone.max_tokens or WINDOW_SEGMENTS * segment_tokens, WINDOW_SEGMENTS * segment_tokens)
    rows: list[AbstractBaseline] = [FrozenBackbone(backbone, segment_tokens), SlidingWindow(backbone, segment_tokens)]
    not_run = {}
    try:
        rows.append(TransformerXL(backbone, segment_tokens))
    except ConfigError as error:
        not_run[TransformerXL.name] = f"{error}: not run"
    rows += [
        BigBird(backbone, window_tokens),
        FullAttention(backbone, window_tokens, segment_tokens),
        NgramCache(FrozenBackbone(backbone, segment_tokens)),
        NeuralCache(backbone, segment_tokens, model.sidenet.memory_layer, memory_tokens=config.memory_tokens),
    ]
    return rows, not_run


def assemble(
    models: Sequence[Path], control: Path | None, memorizing: Path | None, dtype: Dtype, only: Sequence[str] = ()
) -> Lineup:
    """Open all rows. `only` holds parts of names; of the other rows just the references take part.

    Raises ModelError and its kinds, ConfigError. All rows compute in one dtype, and every folder must hold the backbone
    of the first one.
    """
    opened = [ModelSource(str(folder), dtype).open() for folder in models]
    first = opened[0]
    rows, not_run = without_longmem(first)
    references = [rows[0].name]
    if control is not None:
        # trained without memory: retrieved views are out of distribution for it
        opened.append(ModelSource(str(control), dtype, settings={"memory_tokens": 0}).open())
        rows.insert(1, LongMemBaseline(opened[-1], CONTROL))
        references.append(CONTROL)
    for model, folder in zip(opened, [*models, control], strict=False):
        if model.fingerprint.backbone != first.fingerprint.backbone:
            raise ConfigError(f"{folder} has another backbone than {models[0]}: compare models of one backbone")
        if model.config.segment_tokens != first.config.segment_tokens:
            raise ConfigError(f"{folder} has other segments than {models[0]}: compare models of equal segments")
    if memorizing is not None:
        own = Backbone.load(_backbone_folder(first), dtype)
        trained = open_memorizing(own, memorizing)
        segment_tokens, memory_tokens = first.config.segment_tokens, first.config.memory_tokens
        rows.append(MemorizingBaseline(trained, segment_tokens, 0))
        rows.append(MemorizingBaseline(trained, segment_tokens, memory_tokens))
    for model, folder in zip(opened[: len(models)], models, strict=True):
        rows.append(LongMemBaseline(model, "LongMem" if len(models) == 1 else f"LongMem, {folder}"))
    chosen = [row for row in rows if not only or row.name in references or any(part in row.name for part in only)]
    return Lineup(chosen, references, first.config.segment_tokens, not_run)


def _backbone_folder(model: LongMem) -> Path:
    if model.backbone.folder is None:
        raise ConfigError(f"backbone {model.backbone.name} must lie in a local folder, to be opened a second time")
    return model.backbone.folder
