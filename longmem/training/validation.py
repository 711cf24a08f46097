# SPDX-License-Identifier: Apache-2.0
"""Validation loss with memory, without memory, and of the backbone alone."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int32

from longmem.errors import DocumentError
from longmem.memory.context import LocalMemory
from longmem.model.longmem import LongMem
from longmem.text.segments import cut_segments
from longmem.training.row_stream import TRAINING_NAMESPACE
from longmem.training.trainer import encode_rows, stacked_tokens
from longmem.types import DocumentKey

KEY = DocumentKey(TRAINING_NAMESPACE, "validation")


@dataclass(frozen=True)
class Validation:
    """Validation losses in nats per token."""

    with_memory: float
    without_memory: float
    backbone: float
    tokens: int


@torch.no_grad()
def validate(model: LongMem, sequences: Sequence[Int32[np.ndarray, " tokens"]]) -> Validation:
    """Score full segments of every document in order, like training. The model is left unchanged.

    Raises DocumentError when no document has a full segment.
    """
    training = model.sidenet.training
    model.sidenet.eval()
    autocast = model.backbone.dtype == torch.bfloat16
    sums = {"with_memory": 0.0, "without_memory": 0.0, "backbone": 0.0}
    count = 0
    for sequence in sequences:
        memory = LocalMemory(model)
        for segment in cut_segments(KEY, sequence, model.config.segment_tokens):
            if len(segment.targets) < model.config.segment_tokens:
                continue
            output = encode_rows(model, [segment])
            targets = torch.from_numpy(np.array(segment.targets))
            sums["backbone"] -= float(model.backbone.target_logprobs(output.hidden[0], targets).double().sum())
            for name, view in (("with_memory", memory.view(segment.index)), ("without_memory", None)):
                given = model.sidenet_input(stacked_tokens([segment]), output, [view])
                with torch.autocast(model.backbone.device.type, torch.bfloat16, enabled=autocast):
                    logprobs = model.target_logprobs(model.sidenet(given, model.search), 0, targets)
                sums[name] -= float(logprobs.double().sum())
            memory.extend(segment, output.keys[0], output.values[0])
            count += len(targets)
    model.sidenet.train(training)
    if not count:
        raise DocumentError(
            f"no validation document has {model.config.segment_tokens + 1} tokens, a full segment and its last "
            "target; give longer documents"
        )
    return Validation(**{name: nats / count for name, nats in sums.items()}, tokens=count)
