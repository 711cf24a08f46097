# SPDX-License-Identifier: Apache-2.0
"""Option of the commands that train: an experiment tracker besides the curves in the output folder."""

from dataclasses import dataclass

from pipelines.command.choices import TrackerName
from pipelines.command.fields import choice_field


@dataclass(frozen=True, kw_only=True)
class TrackOption:
    """Experiment tracker of a training."""

    track: TrackerName | None = choice_field(
        None,
        "Also send the curves to an experiment tracker; needs the extra of the same name. Each reads its own "
        "environment: WANDB_MODE, WANDB_PROJECT, MLFLOW_TRACKING_URI, MLFLOW_EXPERIMENT_NAME.",
        shown="none",
    )

    def check_track(self) -> None:
        """Raise ConfigError for a tracker whose package is not installed."""
        if self.track is not None:
            from pipelines.tracking.tracker import check_tracker

            check_tracker(self.track)
