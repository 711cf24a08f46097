"""Small real models for tests and examples: every supported architecture, randomly initialised, with a byte tokenizer.

Shipped, so that users can test their own code against LongMem without downloading a model. Nothing here is a mock:
the models are the transformers classes, only small.
"""

from pathlib import Path
from typing import Any

import torch

from longmem.backbone.families import FAMILIES
from longmem.backbone.small import SMALL_CONFIGS, save_small_backbone
from longmem.config import PAPER_FORM
from longmem.model.longmem import LongMem

__all__ = ["FAMILIES", "SMALL_CONFIGS", "save_small_backbone", "small_longmem", "unsettle"]


def small_longmem(
    folder: Path, family: str = "llama", *, seed: int = 0, unsettled: bool = True, **settings: Any
) -> LongMem:
    """A LongMem on a small backbone of a family, saved under `folder`; `settings` are fields of LongMemConfig.

    It reads in the paper's form unless the settings say otherwise.

    `unsettled` gives scale and gate random values, so that memory really moves the result; without it the SideNet
    equals its backbone and a test of memory would pass whatever the memory did.
    """
    backbone = folder / f"{family}-{seed}"
    if not backbone.exists():
        save_small_backbone(backbone, family, seed=seed)
    model = LongMem.from_backbone(
        backbone, **{"segment_tokens": 32, "memory_tokens": 96, "top_k": 16, **PAPER_FORM, **settings}
    )
    return unsettle(model, seed) if unsettled else model


def unsettle(model: LongMem, seed: int = 0) -> LongMem:
    """Move scale and gate away from their start, as training would."""
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in (model.sidenet.scale, model.sidenet.gate):
            parameter.copy_(torch.empty(parameter.shape).uniform_(0.3, 1.0, generator=random))
    return model
