# SPDX-License-Identifier: Apache-2.0
"""Timeouts and retry count of a job's workers. Does not import Ray."""

from dataclasses import dataclass

from longmem.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Timeouts:
    """Deadlines in seconds for tasks and workers, and the number of tries. Raises ConfigError."""

    max_tries: int = 5
    """Times that a task may kill its worker or raise a bug; its document is then quarantined."""
    task_s: float = 1800.0
    """Timeout of a task; its worker is then killed and the task retried."""
    unresponsive_s: float = 30.0
    """Time without an answer after which a worker is reported as stalled."""
    kill_s: float = 120.0
    """Time without an answer after which a worker is killed; it restarts and its tasks are retried."""
    no_worker_s: float = 600.0
    """Time that a stage may have no worker; the job then ends, and can be resumed."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not value > 0:
                raise ConfigError(f"{name} must be greater than 0, got {value}")
        if self.kill_s < self.unresponsive_s:
            raise ConfigError(f"kill_s={self.kill_s:g} must be at least unresponsive_s={self.unresponsive_s:g}")
