# SPDX-License-Identifier: Apache-2.0
"""Default limit of segments in flight by their size."""

import pytest

from longmem.runtime.scheduler import Limits

MIB = 2**20


@pytest.mark.parametrize(
    ("segment_bytes", "segments"),
    [
        pytest.param(MIB // 2, 32, id="small: the limit stays"),
        pytest.param(8 * MIB, 32, id="as many as 256 MiB hold"),
        pytest.param(24 * MIB, 10, id="fewer large ones"),
        pytest.param(94 * MIB, 8, id="not too few"),
    ],
)
def test_large_segments_are_fewer(segment_bytes: int, segments: int) -> None:
    assert Limits(32, 2**30).for_segments_of(segment_bytes, least=8) == Limits(segments, 2**30)


def test_no_limit_is_raised() -> None:
    assert Limits(2, 100).for_segments_of(MIB, least=1) == Limits(2, 100)
    assert Limits(2, 100).for_segments_of(2**29, least=8) == Limits(2, 100)
    assert Limits(3, 2**30).for_segments_of(2**29, least=1) == Limits(1, 2**30)
