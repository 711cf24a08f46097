# SPDX-License-Identifier: Apache-2.0
"""Small models for tests and examples: every supported architecture, randomly initialised, with a byte tokenizer.

Users can test their code against LongMem without downloading a model. The models are no mocks, but small instances of
the transformers classes.
"""

from pathlib import Path
from typing import Any

import torch

from longmem.backbone.families import FAMILIES
from longmem.backbone.small import SMALL_CONFIGS, save_small_backbone
from longmem.config import PAPER_FORM
from longmem.model.longmem import LongMem
from longmem.sidenet.sidenet import SideNet

__all__ = ["FAMILIES", "SMALL_CONFIGS", "save_small_backbone", "small_longmem", "unsettle"]


def small_longmem(
    folder: Path, family: str = "llama", *, seed: int = 0, unsettled: bool = True, **settings: Any
) -> LongMem:
    """Return a LongMem on a small backbone of a family, saved under `folder`; `settings` are fields of LongMemConfig.

    It uses the paper's reader unless the settings differ. `unsettled` gives scale and gate random values, so that
    memory changes the result. Otherwise the SideNet equals its backbone, and a test of memory could not fail.
    """
    backbone = folder / f"{family}-{seed}"
    if not backbone.exists():
        save_small_backbone(backbone, family, seed=seed)
    model = LongMem.from_backbone(
        backbone, **{"segment_tokens": 32, "memory_tokens": 96, "top_k": 16, **PAPER_FORM, **settings}
    )
    # a cache reader has neither scale nor gate: its memory always changes the result
    return unsettle(model, seed) if unsettled and isinstance(model.sidenet, SideNet) else model


def unsettle(model: LongMem, seed: int = 0) -> LongMem:
    """Set scale and gate to random values away from their initial ones, and return the model."""
    assert isinstance(model.sidenet, SideNet), "a cache reader has neither scales nor gates"
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in (model.sidenet.scale, model.sidenet.gate):
            parameter.copy_(torch.empty(parameter.shape).uniform_(0.3, 1.0, generator=random))
    return model
