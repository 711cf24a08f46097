# SPDX-License-Identifier: Apache-2.0
"""Detects the loss of the cluster of this process, which Ray does not report to the driver.

When the GCS is lost, calls block, and after 60 s Ray's own code ends the process with exit code 1 and without advice.
When the raylet of this node is lost, actors end "unexpectedly".

    own cluster      the daemons are children of this process: their exit is seen within PERIOD_S
    joined cluster   GCS and raylet are polled (gRPC health checks, which need no token)
"""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Event, Thread
from time import monotonic, sleep

import grpc
import ray.exceptions

from actors.admission import HEALTH
from longmem.errors import ClusterError, LostClusterError

PERIOD_S = 1.0
ANSWER_S = 5.0
"""Timeout of one health check, in seconds."""

RECONNECT = "RAY_gcs_rpc_server_reconnect_timeout_s"
RAY_ENDS_US_S = float(os.environ.get(RECONNECT, "60"))
"""Seconds after which Ray ends a process without GCS. A GCS that is kept in Redis may need more to restart."""
LOST_S = RAY_ENDS_US_S / 2
"""Seconds that GCS and raylet may be unresponsive or refuse connections; the other half is for shutdown."""
STUCK_S = RAY_ENDS_US_S / 3
"""Seconds that calls may block on a lost cluster before this process exits."""
EXIT_LOST = 2

REFUSED_S = 3.0
"""Seconds that a raylet may refuse connections: it holds its port while it runs, and is never restarted."""

ENDING_S = 10.0
"""Seconds that a raylet may outlive its workers, and a head its raylet."""
ENDED = (ray.exceptions.RayActorError, ray.exceptions.NodeDiedError, ray.exceptions.LocalRayletDiedError)
"""Errors that Ray raises for workers that are gone."""

GCS = "head process (GCS)"
RAYLET = "node process (raylet)"
CONTINUE = "a job goes on with the same command and --resume"


@dataclass
class _Daemon:
    """A daemon that is polled over the network."""

    what: str
    target: str
    unresponsive_s: float = 0.0
    refused: int = 0
    last_error: str = ""

    def is_lost(self, lost_s: float, corroborated: bool) -> bool:
        """Return whether the daemon is lost. `corroborated`: calls fail already, so one refusal is enough."""
        if self.refused and (corroborated or (self.what == RAYLET and self.unresponsive_s > REFUSED_S)):
            return True
        return self.unresponsive_s > lost_s

    def ask(self, timeout_s: float) -> None:
        begun_s = monotonic()
        with grpc.insecure_channel(self.target, options=[("grpc.enable_http_proxy", 0)]) as channel:
            try:
                channel.unary_unary(HEALTH)(b"", timeout=timeout_s)
            except grpc.RpcError as error:
                code = error.code()
                if code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
                    # not wall-clock time: this process may have been suspended meanwhile
                    self.unresponsive_s += min(monotonic() - begun_s, timeout_s) + PERIOD_S
                    self.refused += code is grpc.StatusCode.UNAVAILABLE
                    self.last_error = (
                        "refuses connections" if code is grpc.StatusCode.UNAVAILABLE else "does not respond"
                    )
                    return
        self.unresponsive_s, self.refused = 0.0, 0


class ClusterWatch:
    """A thread that watches a cluster until it is closed."""

    def __init__(
        self, name: str, targets: dict[str, str], ended: Callable[[], list[str]], *, lost_s: float = LOST_S
    ) -> None:
        """`name` names the cluster in errors; `targets` are addresses of daemons to poll, by kind; `ended` returns
        the daemons that have exited, for a cluster whose daemons are children of this process."""
        self._name = name
        self._daemons = [_Daemon(what, target) for what, target in targets.items()]
        self._ended = ended
        self._lost_s = lost_s
        self._lost: str | None = None
        self._told = False
        self._end = Event()
        self._thread = Thread(target=self._run, name="longmem-cluster-watch", daemon=True)
        self._thread.start()

    @property
    def lost(self) -> bool:
        return self._lost is not None

    def check(self) -> None:
        """Raise LostClusterError when the cluster is lost."""
        if self._lost is not None:
            self._told = True
            raise LostClusterError(self._lost)

    @contextmanager
    def explaining(self) -> Iterator[None]:
        """Replace an error within the block by LostClusterError if the cluster is lost."""
        try:
            self.check()
            yield
        except (ClusterError, ConnectionError, ray.exceptions.RayError) as error:
            self._look_again(error)
            if self._lost is not None and str(error) != self._lost:
                self._told = True
                raise LostClusterError(self._lost) from error
            if isinstance(error, ConnectionError):
                # raised by Ray's client, whose connection may break for other reasons too
                raise ClusterError(f"the connection to {self._name} broke ({error}); {CONTINUE}") from error
            raise

    def _look_again(self, error: Exception) -> None:
        """Check the daemons after a failure, for up to ENDING_S if workers ended: a raylet ends its workers first."""
        cause = error.__cause__ if isinstance(error, ClusterError) else error
        deadline_s = monotonic() + (ENDING_S if isinstance(cause, ENDED) else 0.0)
        while self._lost is None:
            self._look(corroborated=True)
            if self._lost is not None or monotonic() >= deadline_s:
                return
            sleep(0.1)

    def close(self) -> None:
        """Stop watching."""
        self._end.set()

    def _run(self) -> None:
        while not self._end.wait(PERIOD_S):
            self._look(corroborated=False)
            if self._lost is not None:
                break
        if self._lost is not None and not self._end.wait(STUCK_S) and not self._told:
            # no thread called `check`: all block on the lost cluster, in code that handles no signals
            sys.stderr.write(f"error: {self._lost}\n")
            sys.stderr.flush()
            os._exit(EXIT_LOST)

    def _look(self, corroborated: bool) -> None:
        if gone := self._ended():
            self._lost = f"{self._name} was lost: its {' and '.join(gone)}; {CONTINUE}"
            return
        for each in self._daemons:
            each.ask(ANSWER_S)
            if each.is_lost(self._lost_s, corroborated):
                said = f"{each.last_error} (for {each.unresponsive_s:.0f} s)"
                self._lost = f"{self._name} was lost: its {each.what} at {each.target} {said}; {CONTINUE}"
                return
