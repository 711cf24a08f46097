# SPDX-License-Identifier: Apache-2.0
"""`longmem pretrain`: options become one checked job."""

import os
from dataclasses import dataclass, replace
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape

from pipelines.command.choices import ComputeDtype
from pipelines.command.command_line import command_text, loading, num_cores, show_summary
from pipelines.command.fields import (
    REQUIRED,
    OptionMark,
    choice_field,
    flag_field,
    from_options,
    marked_fields,
    path_field,
    real_field,
    text_field,
    whole_field,
)
from pipelines.command.option_types import MOST_THREADS
from pipelines.command.spec import CommandSpec, command
from pipelines.command.tracking_option import TrackOption
from pipelines.command.training_options import TrainingRunOptions

if TYPE_CHECKING:
    # loads torch
    from longmem.pretraining.presets import Preset

OF_THE_PRESET = OptionMark("A field of PretrainingConfig with the same name; None takes the value of the size.")


@dataclass(frozen=True, kw_only=True)
class PretrainSpec(TrackOption, TrainingRunOptions, CommandSpec):
    """Train a small backbone and its tokenizer from scratch, in several time slices if needed.

    **Example:** `longmem pretrain --size 8m --data books/train --valid books/valid --out runs/backbone`
    """

    out: Path = path_field(REQUIRED, "Output folder: tokenizer, corpus, curves, checkpoints, the backbone.")
    size: str = text_field(REQUIRED, "8m (the reference model's shape, for a CPU) or 100m (for a GPU).")
    valid_tokens: int = whole_field(4096, "Tokens that are read of each validation document, from its start.")
    resume: bool = flag_field("Continue the job in --out, or begin it where --out is empty.")
    max_minutes: float | None = real_field(
        None, "End this slice after so long, with a checkpoint; --resume goes on.", shown="no end", above=True
    )
    steps: int | None = whole_field(
        None, "Optimiser steps.", OF_THE_PRESET, shown="one pass over the data; four for 100m"
    )
    batch_tokens: int | None = whole_field(None, "Tokens of one step.", OF_THE_PRESET, shown="the size's")
    micro_rows: int | None = whole_field(
        None, "Windows of one forward and backward.", OF_THE_PRESET, shown="the size's"
    )
    learning_rate: float | None = real_field(
        None, "Peak learning rate.", OF_THE_PRESET, shown="the size's", above=True, most=100
    )
    repeat_share: float | None = real_field(
        None, "Windows that repeat their beginning, to learn copying.", OF_THE_PRESET, shown="0.1", most=1
    )
    seed: int = whole_field(0, "First weights and order of the windows.", OF_THE_PRESET, least=0)
    dtype: ComputeDtype = choice_field("bfloat16", "Compute type; weights learn in float32.")
    threads: int | None = whole_field(None, "Threads of torch and tokenizer.", shown="cores", most=MOST_THREADS)

    @property
    def resumable_folder(self) -> Path:
        return self.out

    def run(self, console: Console) -> None:
        threads = self.threads or num_cores()
        # read once, when the tokenizer library starts its threads
        os.environ.setdefault("RAYON_NUM_THREADS", str(threads))
        self.check_track()
        if not self.resume:
            self.check_data()
        with loading(console):
            from pipelines.pretrain.job import PretrainingJob
            from pipelines.pretrain.run import run_pretraining

        job = from_options(
            PretrainingJob,
            self,
            preset=self._preset(),
            data=self.training_data,
            valid=self.validation_data,
            threads=threads,
            command=command_text(),
        )
        summary = run_pretraining(job, console)
        if summary is None:
            console.print(
                f"[yellow]slice over.[/] Continue with: longmem resume {escape(quote(str(self.out)))}", soft_wrap=True
            )
            return
        result = f"trained backbone: {self.out / 'model'}"
        show_summary(summary, self.out, self.as_json, lambda console: console.print(result, soft_wrap=True))

    def _preset(self) -> "Preset":
        from longmem.pretraining.presets import preset_of

        preset = preset_of(self.size)
        chosen = {name: getattr(self, name) for name in marked_fields(type(self), OF_THE_PRESET)}
        given = {name: value for name, value in chosen.items() if value is not None}
        return replace(preset, config=replace(preset.config, **given))


pretrain = command(PretrainSpec)
