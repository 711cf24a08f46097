# SPDX-License-Identifier: Apache-2.0
"""Cuts a document's sequence into segments, so that every token is predicted exactly once."""

import numpy as np
from jaxtyping import Int32

from longmem.types import DocumentKey, Segment


def cut_segments(key: DocumentKey, sequence: Int32[np.ndarray, " tokens"], segment_tokens: int) -> list[Segment]:
    """Return segments of `segment_tokens` tokens; the last one may be shorter.

    Position i of the sequence predicts token i + 1, also across a segment border. n tokens therefore give n - 1
    targets, and the first token of the sequence (the start token, if there is one) is never a target.
    """
    assert len(sequence) > 0, f"{key}: an empty sequence has no segments"
    segments = []
    for index, start in enumerate(range(0, len(sequence), segment_tokens)):
        end = start + segment_tokens
        segments.append(
            Segment(key, index, start, _frozen(sequence[start:end]), _frozen(sequence[start + 1 : end + 1]))
        )
    return segments


def _frozen(part: np.ndarray) -> np.ndarray:
    part = part.copy()
    part.flags.writeable = False
    return part
