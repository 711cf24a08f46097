"""How patient a job is with its workers. Free of Ray."""

from dataclasses import dataclass

from longmem.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Timeouts:
    """Deadlines in seconds and a number of tries. Raises ConfigError."""

    max_tries: int = 5
    """A task that has ended its worker (or met a bug there) this often sets its document aside."""
    task_s: float = 1800.0
    """A task may run this long; then its worker is killed and the task is tried again."""
    unresponsive_s: float = 30.0
    """A worker that does not answer for this long is reported as stalled."""
    kill_s: float = 120.0
    """A worker that does not answer for this long is killed; it starts again and its tasks are repeated."""
    no_worker_s: float = 600.0
    """A stage may be without any worker this long; then the job ends (and can be resumed)."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not value > 0:
                raise ConfigError(f"{name} must be greater than 0, got {value}")
        if self.kill_s < self.unresponsive_s:
            raise ConfigError(f"kill_s={self.kill_s:g} must be at least unresponsive_s={self.unresponsive_s:g}")
