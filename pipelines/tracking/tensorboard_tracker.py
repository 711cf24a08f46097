# SPDX-License-Identifier: Apache-2.0
"""TensorBoard: event files in the folder `tensorboard` of the job."""

import json
from collections.abc import Mapping

from torch.utils.tensorboard.writer import SummaryWriter

from pipelines.tracking.tracker import AbstractTracker, Outcome, TrackedRun

FOLDER = "tensorboard"


class TensorBoardTracker(AbstractTracker):
    """Event files of TensorBoard: `tensorboard --logdir OUT` shows them."""

    def __init__(self, run: TrackedRun) -> None:
        self._run = run
        self._folder = run.out / FOLDER
        self.place = f"tensorboard --logdir {self._folder}"
        self._folder.mkdir(parents=True, exist_ok=True)
        self._writer: SummaryWriter | None = None

    def begin(self, first_step: int) -> None:
        # readers leave out what earlier files have from this step on
        self._writer = SummaryWriter(str(self._folder), purge_step=first_step + 1 if first_step else 0)
        settings = json.dumps(dict(self._run.settings), indent=2, default=str)
        self._writer.add_text("settings", f"```json\n{settings}\n```", first_step)

    def add(self, step: int, figures: Mapping[str, float]) -> None:
        assert self._writer is not None, "begin comes first"
        for name, value in figures.items():
            self._writer.add_scalar(name, value, step)

    def close(self, outcome: Outcome) -> None:  # noqa: ARG002 - event files have no outcome
        if self._writer is not None:
            self._writer.close()
