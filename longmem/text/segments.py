# SPDX-License-Identifier: Apache-2.0
"""Cuts a document's sequence into segments, so that every token is predicted exactly once."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int32

from longmem.types import DocumentKey, Segment


@dataclass(frozen=True)
class Passage:
    """Part of a document's text that the targets of one segment stand for; passages join to the whole text."""

    start: int
    """Offset of the passage in the document, in characters."""
    text: str
    starts: Int32[np.ndarray, " targets"]
    """Offset in the document of each target's first character."""
    lengths: Int32[np.ndarray, " targets"]
    """Length of each target in characters."""


def cut_segments(
    key: DocumentKey,
    sequence: Int32[np.ndarray, " tokens"],
    segment_tokens: int,
    *,
    scored: bool = True,
    keep_readings: bool = False,
) -> list[Segment]:
    """Return segments of `segment_tokens` tokens; the last one may be shorter.

    Position i of the sequence predicts token i + 1, also across a segment border. n tokens therefore give n - 1
    targets, and the first token of the sequence (the start token, if there is one) is never a target. Segments that
    are not `scored` have none. `keep_readings` is passed on to the segments.
    """
    assert len(sequence) > 0, f"{key}: an empty sequence has no segments"
    segments = []
    for index, start in enumerate(range(0, len(sequence), segment_tokens)):
        end = start + segment_tokens
        tokens = _frozen(sequence[start:end])
        targets = _frozen(sequence[start + 1 : end + 1] if scored else sequence[:0])
        segments.append(Segment(key, index, start, tokens, targets, keep_readings))
    return segments


def cut_passages(text: str, spans: Int32[np.ndarray, "tokens 2"], segments: list[Segment]) -> list[Passage]:
    """Return the passage of each segment of a document.

    `spans` are the character spans of its sequence. Characters that belong to no token go to the passage of the token
    after them, and those after the last token to the last passage.
    """
    passages, begin = [], 0
    for segment in segments:
        first = segment.start_token + 1
        starts, ends = spans[first : first + len(segment.targets)].T
        end = len(text) if segment is segments[-1] else max(begin, int(ends.max()))
        passages.append(Passage(begin, text[begin:end], _frozen(starts), _frozen(ends - starts)))
        begin = end
    return passages


def _frozen(part: np.ndarray) -> np.ndarray:
    part = part.copy()
    part.flags.writeable = False
    return part
