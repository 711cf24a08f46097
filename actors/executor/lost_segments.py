# SPDX-License-Identifier: Apache-2.0
"""Segments whose objects were lost with a node, and the tasks that wait until they are encoded again."""

from actors.executor.tasks import SegmentId, SegmentTask
from longmem.errors import ClusterError

MAX_ENCODED_AGAIN = 10
"""Times that one block is encoded again; more losses mean a faulty cluster."""


class LostSegments:
    """Tasks parked by segment, and the number of losses of each segment in flight."""

    def __init__(self) -> None:
        self._parked: dict[SegmentId, list[SegmentTask]] = {}
        self._times: dict[SegmentId, int] = {}

    def __len__(self) -> int:
        """Return the number of segments that are encoded again."""
        return len(self._parked)

    def park(self, task: SegmentTask) -> bool:
        """Keep a task until its segment is encoded again; return True for the first of them.

        Raises ClusterError after `MAX_ENCODED_AGAIN` losses of the segment.
        """
        tasks = self._parked.setdefault(task.segment_id, [])
        tasks.append(task)
        if len(tasks) > 1:
            return False
        times = self._times[task.segment_id] = self._times.get(task.segment_id, 0) + 1
        if times > MAX_ENCODED_AGAIN:
            raise ClusterError(f"{task}: its block was lost {times} times; see `ray status` for nodes that fail")
        return True

    def unpark(self, segment: SegmentId) -> list[SegmentTask]:
        """Return and forget the tasks that wait for a segment, in the order in which they were parked."""
        return self._parked.pop(segment, [])

    def release(self, segment: SegmentId) -> None:
        """Forget the losses of a segment that needs no further stage."""
        self._times.pop(segment, None)

    def clear(self) -> None:
        """Forget all tasks."""
        self._parked.clear()
