# SPDX-License-Identifier: Apache-2.0
"""Options of a memory whose layers the backbone itself reads."""

from dataclasses import dataclass
from typing import ClassVar

from longmem.config import BlockChoice, MemoryLayers
from pipelines.command.fields import (
    DECIDED_BY_SERVICE,
    MODEL,
    MODEL_SETTING,
    HelpPanel,
    choice_field,
    whole_field,
)


@dataclass(frozen=True, kw_only=True)
class ReadingOptions:
    """Layer that is searched, and the part of a memory that every layer reads."""

    PANEL: ClassVar[HelpPanel] = MODEL

    memory_layer: int | None = whole_field(
        None,
        "Layer whose keys are searched; `longmem doctor --model` measures which.",
        MODEL_SETTING,
        DECIDED_BY_SERVICE,
        shown="the model's",
        least=0,
    )
    near_tokens: int | None = whole_field(
        None,
        "Newest memory tokens that every layer reads, with --memory-layers all.",
        MODEL_SETTING,
        DECIDED_BY_SERVICE,
        shown="the model's, else up to 2048 that fit",
        least=0,
    )
    read_blocks: int | None = whole_field(
        None,
        "Older blocks that every layer reads too, with --memory-layers all.",
        MODEL_SETTING,
        DECIDED_BY_SERVICE,
        shown="the model's, else up to 16 that fit",
        least=0,
    )
    block_tokens: int | None = whole_field(
        None,
        "Tokens of such a block.",
        MODEL_SETTING,
        DECIDED_BY_SERVICE,
        shown="the model's, else 64",
    )
    block_choice: BlockChoice | None = choice_field(
        None,
        "How blocks are chosen: similar keys of the memory layer, overlap of tokens (weighted by idf), both, or random "
        "(a control).",
        MODEL_SETTING,
        DECIDED_BY_SERVICE,
        shown="the model's, else keys",
    )


@dataclass(frozen=True, kw_only=True)
class LayerOptions(ReadingOptions):
    """Layers that are stored, and what each of them reads."""

    PANEL: ClassVar[HelpPanel] = MODEL

    memory_layers: MemoryLayers | None = choice_field(
        None,
        "Layers that are stored and read: one (by the SideNet) or all (by the backbone itself, without training; needs "
        "rotary or ALiBi positions).",
        MODEL_SETTING,
        DECIDED_BY_SERVICE,
        shown="the model's, else one",
    )
