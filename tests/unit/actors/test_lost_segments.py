# SPDX-License-Identifier: Apache-2.0
"""Tasks that wait until a lost segment is encoded again."""

import numpy as np
import pytest

from actors.executor.lost_segments import MAX_ENCODED_AGAIN, LostSegments
from actors.executor.tasks import SegmentTask
from longmem.errors import ClusterError
from longmem.text.segments import cut_segments
from longmem.types import DocumentKey

KEY = DocumentKey("default", "moby-dick")
(SEGMENT,) = cut_segments(KEY, np.arange(3, dtype=np.int32), 4)


def lose(lost: LostSegments) -> None:
    first, second = SegmentTask("put", SEGMENT), SegmentTask("score", SEGMENT)
    assert (lost.park(first), lost.park(second)) == (True, False)
    assert len(lost) == 1
    assert lost.unpark((KEY, 0)) == [first, second]
    assert lost.unpark((KEY, 0)) == []
    assert len(lost) == 0


def test_a_segment_is_encoded_again_so_often_and_not_once_more() -> None:
    lost = LostSegments()
    for _ in range(MAX_ENCODED_AGAIN):
        lose(lost)
    with pytest.raises(ClusterError, match="put of default/moby-dick segment 0: its block was lost 11 times"):
        lost.park(SegmentTask("put", SEGMENT))


def test_losses_of_a_released_segment_are_forgotten() -> None:
    lost = LostSegments()
    for _ in range(MAX_ENCODED_AGAIN):
        lose(lost)
    lost.release((KEY, 0))
    lose(lost)


def test_nothing_waits_after_clear() -> None:
    lost = LostSegments()
    assert lost.park(SegmentTask("put", SEGMENT))
    lost.clear()
    assert lost.unpark((KEY, 0)) == []
