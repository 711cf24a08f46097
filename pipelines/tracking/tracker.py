# SPDX-License-Identifier: Apache-2.0
"""Interface of an experiment tracker, and the tracking of one job.

A tracker is an addition to the curves in the output folder. One that fails is told and closed, and the training goes
on: days of training are worth more than a second copy of its curves.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from longmem.errors import ConfigError, OutputError
from longmem.system.redaction import redacted

Outcome = Literal["finished", "failed", "interrupted"]
PROJECT = "longmem"
"""Project or experiment that runs are filed under, unless the tracker's own environment names another one."""

TRACKERS = {"tensorboard": "TensorBoardTracker", "wandb": "WandbTracker", "mlflow": "MlflowTracker"}
"""Class by package and extra; it is in the module `NAME_tracker`, which alone imports the package."""


@dataclass(frozen=True)
class TrackedRun:
    """Description of a job for its tracker."""

    out: Path
    job: str
    """Command that the job belongs to."""
    job_id: str
    """Id that a resumed job keeps, so that its figures are added to those before."""
    settings: Mapping[str, Any]
    """Settings to show next to the curves."""


class AbstractTracker(ABC):
    """Receiver of a training's figures. Errors are those of the library."""

    place: str
    """Address or folder where a person sees the figures."""

    @abstractmethod
    def begin(self, first_step: int) -> None:
        """Begin after `first_step`; figures of later steps, from a run that was killed, are replaced if possible."""

    @abstractmethod
    def add(self, step: int, figures: Mapping[str, float]) -> None:
        """Add figures of one step by name, for example `train/loss`."""

    @abstractmethod
    def close(self, outcome: Outcome) -> None:
        """Write everything, and end the run."""


class Tracking:
    """Tracker of one job, or none: then every call does nothing."""

    def __init__(self, tracker: AbstractTracker | None, tell: Callable[[str], None] = lambda _: None) -> None:
        self._tracker = tracker
        self._tell = tell

    def begin(self, first_step: int) -> None:
        """Begin after a step; see `AbstractTracker.begin`."""
        self._call(lambda tracker: tracker.begin(first_step))

    def add(self, step: int, figures: Mapping[str, float]) -> None:
        """Add figures of one step."""
        self._call(lambda tracker: tracker.add(step, figures))

    def close(self, outcome: Outcome) -> None:
        """End the run of the tracker."""
        self._call(lambda tracker: tracker.close(outcome))
        self._tracker = None

    def _call(self, call: Callable[[AbstractTracker], None]) -> None:
        if self._tracker is None:
            return
        try:
            call(self._tracker)
        except Exception as error:  # noqa: BLE001 - errors of the libraries have no common base; it is told
            self._tracker = None
            self._tell(f"tracking has ended: {type(error).__name__}: {error}; the training goes on")


NO_TRACKING = Tracking(None)


def check_tracker(name: str) -> None:
    """Raise ConfigError if the package of a tracker is not installed."""
    if find_spec(name) is None:
        raise ConfigError(f"--track {name} needs the package {name}: pip install 'longmem[{name}]'")


@contextmanager
def tracked(name: str | None, run: TrackedRun, tell: Callable[[str], None]) -> Iterator[Tracking]:
    """Open the tracker of a job, and close it with the job's outcome; without a name nothing is tracked.

    Raises ConfigError if its package is not installed, and OutputError if it cannot be opened.
    """
    if name is None:
        yield NO_TRACKING
        return
    check_tracker(name)
    try:
        tracker: AbstractTracker = getattr(import_module(f"pipelines.tracking.{name}_tracker"), TRACKERS[name])(run)
    except Exception as error:
        raise OutputError(f"--track {name}: {type(error).__name__}: {error}; or leave out --track") from error
    tell(f"tracking with {name}: {redacted(tracker.place)}")
    tracking = Tracking(tracker, tell)
    outcome: Outcome = "failed"
    try:
        yield tracking
        outcome = "finished"
    except KeyboardInterrupt:
        outcome = "interrupted"
        raise
    finally:
        tracking.close(outcome)
