# SPDX-License-Identifier: Apache-2.0
"""Compute type of a job: the one that was given, that of the job to resume, or the choice of this machine."""

import json
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

from rich.console import Console
from rich.markup import escape

from longmem.config import Dtype
from pipelines.command.choices import JobDtype
from pipelines.command.interrupts import tidying

if TYPE_CHECKING:
    # loads torch
    from longmem.model.precision import DtypeChoice
    from longmem.model.source import ModelSource


def with_compute_type(
    source: "ModelSource",
    asked: JobDtype,
    console: Console,
    *,
    on_gpu: bool,
    resumed: Path | None,
    inputs: Sequence[str] = (),
) -> "ModelSource":
    """Return the model in the type that a job computes in; print a choice of this machine.

    Args:
        source: Model on the CPU.
        asked: Type that the command names, or `auto`.
        console: Place to print what was chosen.
        on_gpu: True if a worker uses a GPU, which is not measured.
        resumed: Folder of a job to resume, which keeps its type.
        inputs: Documents of the job; one that is not there is told before minutes of measurement.

    Raises:
        ConfigError: An input is not there.
        ModelError: The model cannot be opened to measure.
    """
    if asked != "auto":
        return replace(source, dtype=asked)
    if resumed is not None and (begun := _begun_in(resumed)) is not None:
        return replace(source, dtype=begun)

    def say(text: str) -> None:
        console.print(escape(text), soft_wrap=True)

    if on_gpu:
        say("computing in float32: this machine's CPU does not speak for GPUs, give --dtype bfloat16 to use it there")
        return replace(source, dtype="float32")
    from longmem.model.remembered_dtype import settled_dtype
    from longmem.text.documents import find_files
    from pipelines.job.progress import JobProgress

    find_files(inputs)
    # an interruption raises here: the display has hidden the terminal's cursor
    with tidying(), ExitStack() as shown:

        def read(new_tokens: int, most: int) -> None:
            if new_tokens == 0:
                shown.enter_context(progress)
                progress.planned("tokens", most)
            progress.advanced(new_tokens)

        def choose(measured: "ModelSource") -> "DtypeChoice":
            # only now: it loads torch, and a small model or a remembered choice needs no measurement
            from longmem.model.precision import choose_dtype

            return choose_dtype(measured, on_read=read)

        progress = JobProgress(console)
        choice = settled_dtype(
            source,
            on_measure=lambda: say(
                "measuring float32 and bfloat16 with this model, once on this machine; ends as soon as the difference "
                "is clear; --dtype float32 skips it"
            ),
            choose=choose,
        )
    if choice is None:
        return replace(source, dtype="float32")
    say(choice.reason)
    return replace(source, dtype=choice.dtype)


def _begun_in(folder: Path) -> Dtype | None:
    """Return the compute type of the job in a folder; None where there is no job, which its runner then tells."""
    try:
        identity = json.loads((folder / "job.json").read_text("utf-8"))["identity"]
        return cast(Dtype, identity["model"]["compute_dtype"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
