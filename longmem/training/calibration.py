# SPDX-License-Identifier: Apache-2.0
"""Calibration of each head's mean key on training text: the origin of centred and unit keys."""

import torch

from longmem.model.longmem import LongMem
from longmem.text.segments import cut_segments
from longmem.training.row_stream import TRAINING_NAMESPACE, Sequences
from longmem.training.trainer import encode_rows
from longmem.types import DocumentKey

SAMPLED_DOCUMENTS = 16
SAMPLED_SEGMENTS = 4
"""Segments sampled from the start of each document: about ten thousand tokens in all, far more than a mean needs."""


@torch.no_grad()
def calibrate_on(model: LongMem, documents: Sequences) -> None:
    """Set the model's mean keys from documents spread evenly over the given ones. Does nothing for raw keys."""
    if model.config.keys == "raw":
        return
    key = DocumentKey(TRAINING_NAMESPACE, "calibration")
    keys = []
    for index in range(0, len(documents), max(1, len(documents) // SAMPLED_DOCUMENTS)):
        for segment in cut_segments(key, documents[index](), model.config.segment_tokens)[:SAMPLED_SEGMENTS]:
            keys.append(model.searched(encode_rows(model, [segment]).keys[0]))
    model.sidenet.reader.calibrate(torch.cat(keys))
