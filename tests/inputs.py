"""What the SideNet is given, made from one backbone forward as `encode` and `score_segment` do it."""

from typing import Any

from torch import Tensor

from longmem.dtypes import TORCH_DTYPES
from longmem.memory.view import MemoryView
from longmem.model import LongMem
from longmem.sidenet.sidenet import SideNetInput


def sidenet_input(
    model: LongMem,
    tokens: Tensor,
    views: list[MemoryView | None],
    cache: Any = None,
    before: Tensor | None = None,
) -> SideNetInput:
    """`cache` and `before`: of the backbone, and the segment's earlier tokens, when decoding step by step."""
    output = model.backbone.forward(tokens, model.sidenet.memory_layer, model.config.layer_reduction, cache)
    return SideNetInput(tokens, output.taps, output.keys.to(TORCH_DTYPES[model.config.kv_dtype]), views, before)
