"""`longmem pretrain`: options become one checked job."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from pipelines.command.command_line import (
    ComputeDtype,
    check_inputs,
    command_text,
    exit_codes,
    local_inputs,
    num_cores,
    say_if_finished,
)
from pipelines.command.console import open_console
from pipelines.command.option_types import MOST_THREADS, path_option, real_option, text_option, whole_option


def pretrain(
    data: Annotated[list[str], text_option(help="Documents to learn from: files and folders as in perplexity.")],
    out: Annotated[Path, path_option(help="Output folder: tokenizer, corpus, curves, checkpoints, the backbone.")],
    size: Annotated[str, text_option(help="8m (the reference model's shape, for a CPU) or 100m (for a GPU).")],
    valid: Annotated[list[str] | None, text_option(help="Documents to judge by.", show_default="none")] = None,
    valid_tokens: Annotated[int, whole_option(help="Of each of them, from its start.")] = 4096,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the job in --out, or begin it where --out is empty.")
    ] = False,
    max_minutes: Annotated[
        float | None,
        real_option(
            help="End this slice after so long, with a checkpoint; --resume goes on.", show_default="no end", above=True
        ),
    ] = None,
    steps: Annotated[
        int | None, whole_option(help="Optimiser steps.", show_default="one pass over the data; four for 100m")
    ] = None,
    batch_tokens: Annotated[int | None, whole_option(help="Of a step.", show_default="the size's")] = None,
    micro_rows: Annotated[
        int | None, whole_option(help="Windows of one forward and backward.", show_default="the size's")
    ] = None,
    learning_rate: Annotated[
        float | None, real_option(help="Peak.", show_default="the size's", above=True, most=100)
    ] = None,
    repeat_share: Annotated[
        float | None,
        real_option(help="Windows that repeat their beginning, to learn copying.", show_default="0.1", most=1),
    ] = None,
    seed: Annotated[int, whole_option(help="First weights and order of the windows.", least=0)] = 0,
    dtype: Annotated[
        ComputeDtype, typer.Option(help="Compute type; weights learn in float32.")
    ] = ComputeDtype.BFLOAT16,
    device: Annotated[str, text_option(help="cpu or cuda.")] = "cpu",
    threads: Annotated[
        int | None, whole_option(help="Threads of torch and tokenizer.", show_default="cores", most=MOST_THREADS)
    ] = None,
    validate_every: Annotated[int, whole_option(help="Steps between validations.")] = 200,
    checkpoint_every: Annotated[int, whole_option(help="Steps between checkpoints.")] = 200,
) -> None:
    """Train a small backbone and its tokenizer from nothing, in slices if need be.

    **Example:** `longmem pretrain --size 8m --data books/train --valid books/valid --out runs/backbone`
    """
    console = open_console(stderr=True)
    with exit_codes(console, out):
        used_threads = threads or num_cores()
        # read once, when the tokenizer library starts its threads
        os.environ.setdefault("RAYON_NUM_THREADS", str(used_threads))
        check_inputs(*data, *valid or ())
        # torch and transformers take seconds to load: not for --help, and not outside of what handles Ctrl-C
        from longmem.pretraining.presets import preset_of
        from pipelines.pretrain.job import PretrainingJob
        from pipelines.pretrain.run import run_pretraining

        preset = preset_of(size)
        given: dict[str, Any] = {
            "steps": steps,
            "batch_tokens": batch_tokens,
            "micro_rows": micro_rows,
            "learning_rate": learning_rate,
            "repeat_share": repeat_share,
            "seed": seed,
        }
        config = replace(preset.config, **{name: value for name, value in given.items() if value is not None})
        job = PretrainingJob(
            preset=replace(preset, config=config),
            data=local_inputs(data),
            valid=local_inputs(valid or []),
            out=out,
            valid_tokens=valid_tokens,
            device=device,
            dtype=dtype.value,
            threads=used_threads,
            validate_every=validate_every,
            checkpoint_every=checkpoint_every,
            max_minutes=max_minutes,
            resume=resume,
            command=command_text(),
        )
        summary = run_pretraining(job, console)
        if say_if_finished(summary, out):
            return
        if summary is None:
            console.print("[yellow]slice over.[/] Continue with the same command and --resume")
        else:
            open_console().print(f"trained backbone: {out / 'model'}", soft_wrap=True)
