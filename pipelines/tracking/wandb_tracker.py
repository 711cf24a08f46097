# SPDX-License-Identifier: Apache-2.0
"""Weights & Biases: one run for each job, online or, with WANDB_MODE=offline, in the folder of the job."""

import os
from collections.abc import Mapping

import wandb

from pipelines.tracking.tracker import PROJECT, AbstractTracker, Outcome, TrackedRun

EXIT_CODES: dict[Outcome, int] = {"finished": 0, "failed": 1, "interrupted": 130}


class WandbTracker(AbstractTracker):
    """Run of wandb. A resumed job continues its run, whose charts are drawn over `step`."""

    def __init__(self, run: TrackedRun) -> None:
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=run.out.absolute().name,
            id=run.job_id,
            resume="allow",
            dir=str(run.out.absolute()),
            config=dict(run.settings),
            job_type=run.job,
            # its own lines would break the job's progress display
            settings=wandb.Settings(silent=True, console="off"),
        )
        self.place = str(self._run.url or self._run.settings.sync_dir)

    def begin(self, first_step: int) -> None:  # noqa: ARG002 - a run of wandb only grows
        # steps of wandb's own count must rise, which those of a resumed job do not
        self._run.define_metric("step", hidden=True)
        self._run.define_metric("*", step_metric="step")

    def add(self, step: int, figures: Mapping[str, float]) -> None:
        self._run.log({**figures, "step": step})

    def close(self, outcome: Outcome) -> None:
        self._run.finish(exit_code=EXIT_CODES[outcome])
