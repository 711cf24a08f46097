# SPDX-License-Identifier: Apache-2.0
"""The two reading forms that tests compare, and inputs of a SideNet."""

from typing import Any

from torch import Tensor

from longmem.config import PAPER_FORM, LongMemConfig
from longmem.kv_format import rounded
from longmem.memory.view import MemoryView
from longmem.model.longmem import LongMem
from longmem.sidenet.sidenet import ReadingInput, SideNetCache, start_state

DEFAULT_FORM: dict[str, Any] = {name: getattr(LongMemConfig(), name) for name in PAPER_FORM}
"""Default form of a model; small models of tests have the paper's form."""
FORMS: dict[str, dict[str, Any]] = {"paper": PAPER_FORM, "default": DEFAULT_FORM}
"""Forms that a SideNet reads."""
ALL_LAYERS: dict[str, Any] = {
    **DEFAULT_FORM,
    "memory_layers": "all",
    "near_tokens": 24,
    "read_blocks": 3,
    "block_tokens": 4,
}
EVERY_FORM = {**FORMS, "all layers": ALL_LAYERS}
ONE_PASS: dict[str, Any] = {**ALL_LAYERS, "one_pass": True}
FORMS_OF_DOCUMENTS = {**EVERY_FORM, "one pass": ONE_PASS}
"""Forms in which documents are scored; items, prompts and training have no one pass."""


def form_of_size(form: str, **sizes: Any) -> dict[str, Any]:
    """Return the settings of a form with other sizes. Layers of a cache are read token by token, and one pass needs a
    memory."""
    whole: dict[str, Any] = {} if form in FORMS else {"chunk_tokens": 1}
    if form == "one pass" and not sizes.get("memory_tokens", 1):
        whole["one_pass"] = False
    return {**FORMS_OF_DOCUMENTS[form], **sizes, **whole}


def sidenet_input(
    model: LongMem,
    tokens: Tensor,
    views: list[MemoryView | None],
    caches: tuple[Any, SideNetCache | None] = (None, None),
    before: Tensor | None = None,
) -> ReadingInput:
    """Build the input from one backbone forward, like `encode` and `score_segment`.

    `caches` (of backbone and SideNet) and `before` (the segment's earlier tokens) are for step-by-step decoding.
    """
    of_backbone, of_sidenet = caches
    output = model.backbone.forward(tokens, model.sidenet.memory_layer, model.config.layer_reduction, of_backbone)
    state = model.sidenet.prepare(tokens, start_state(output.taps), of_sidenet)
    return ReadingInput(tokens, state, rounded(output.keys, model.config.kv_dtype), views, before)
