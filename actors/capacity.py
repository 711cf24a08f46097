# SPDX-License-Identifier: Apache-2.0
"""Checks whether a cluster has free resources for a job, and reports while it waits for them."""

from collections.abc import Callable
from time import monotonic

from actors.cluster import check_capacity, describe_lack, free_cpus
from actors.workers.start import Workers
from longmem.errors import ClusterError
from longmem.wording import counted

FEWER = "--encoders, --readers or --threads, a smaller --cpu-share, or --elastic"
"""Options that reduce the resources of a job or a service."""
FIRST_S = 30.0
"""Seconds before the first report of missing workers; with free resources, workers start within seconds.
Until all are ready, the job's own workers hold CPUs too."""
AGAIN_S = 60.0
"""Seconds between two later reports."""


class Room:
    """Reservation of `num_cpus` and `num_gpus` on a cluster, for which a job waits at most `limit_s`.

    Raises ClusterError when the total resources of the cluster are too small.
    """

    def __init__(
        self,
        num_cpus: float,
        num_gpus: float,
        limit_s: float,
        tell: Callable[[str], None],
        advice: str,
        *,
        own: bool = False,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        """`tell` receives messages for the operator; `advice` says how to reduce the needs, as `use fewer …`. `own` is
        True for a cluster without other jobs: it has enough resources, and its workers are only slow to start."""
        self._needs = num_cpus, num_gpus
        self._limit_s = limit_s
        self._tell = tell
        self._advice = advice
        self._own = own
        self._clock = clock
        self._begun_s = clock()
        self._next_s = self._begun_s + FIRST_S
        check_capacity(*self._needs, self._advice)
        if not own and (lack := describe_lack(*self._needs)) is not None:
            tell(
                f"the job cannot start yet: {lack}. It waits for at most {limit_s:g} s; let other jobs end, "
                f"{self._advice}"
            )

    def waiting(self, num_missing: int) -> None:
        """Report missing workers after FIRST_S, then every AGAIN_S. Called repeatedly while workers are missing."""
        now = self._clock()
        if now >= self._next_s:
            self._next_s = now + AGAIN_S
            why = "each loads the model" if self._own else f"{free_cpus()}; where other jobs hold them, {self._advice}"
            self._tell(
                f"waiting for {counted(num_missing, 'worker')} to start, {now - self._begun_s:.0f} s so far, at most "
                f"{self._limit_s:g} s; {why}"
            )

    def exhausted(self, num_missing: int, share: float) -> ClusterError:
        """Return the error of a job whose wait timed out while the fraction `share` of its workers was missing."""
        lack = describe_lack(*(share * need for need in self._needs)) or "there is room for them, see `ray status`"
        return ClusterError(
            f"{counted(num_missing, 'worker')} did not start within {self._limit_s:g} s: {lack}; let other jobs end, "
            f"or {self._advice}"
        )


def not_started(room: Room | None, workers: Workers, num_missing: int, limit_s: float) -> ClusterError:
    """Return the error of a job whose workers did not start. Without `room`, their needs are unknown."""
    if room is None:
        return ClusterError(f"{counted(num_missing, 'worker')} did not start within {limit_s:g} s: see `ray status`")
    # missing stores are counted too, although they reserve nothing
    num_workers = len(workers.encoders.workers) + len(workers.readers.workers)
    return room.exhausted(num_missing, min(1.0, num_missing / num_workers))
