"""`longmem train`: options become one checked job."""

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from longmem.errors import ConfigError
from pipelines.command_line import ComputeDtype, exit_codes, local_inputs, local_or_hub, num_cores, parse_settings
from pipelines.options import SpecialTokens


def train(
    data: Annotated[list[str], typer.Option(help="Documents to learn from: files and folders as in perplexity.")],
    out: Annotated[Path, typer.Option(help="Output folder: curves, checkpoints, and the trained model.")],
    backbone: Annotated[
        str | None,
        typer.Option(
            help="Frozen backbone (Hugging Face folder or hub id), or a LongMem folder whose SideNet learns on.",
            show_default="the reference model's",
        ),
    ] = None,
    valid: Annotated[list[str] | None, typer.Option(help="Documents to judge by.", show_default="none")] = None,
    valid_tokens: Annotated[int, typer.Option(help="Of each of them, from its start.")] = 16_384,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint in --out.")] = False,
    steps: Annotated[int, typer.Option(help="Optimiser steps.")] = 2000,
    rows: Annotated[int, typer.Option(help="Documents read side by side; a step is one segment of each.")] = 8,
    micro_rows: Annotated[int, typer.Option(help="Rows of one forward and backward.")] = 4,
    learning_rate: Annotated[float, typer.Option(help="Peak learning rate.")] = 1e-3,
    warmup_steps: Annotated[int, typer.Option(help="Steps of linear warm-up.")] = 50,
    weight_decay: Annotated[float, typer.Option(help="On the copied layers' matrices.")] = 0.01,
    clip_norm: Annotated[float, typer.Option(help="Longest gradient applied as it is.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Order of the documents.")] = 0,
    frozen_layers: Annotated[
        bool, typer.Option("--frozen-layers", help="Train only scale, gate, reader and copy head.")
    ] = False,
    segment_tokens: Annotated[int | None, typer.Option(help="Local context.", show_default="1024")] = None,
    memory_tokens: Annotated[int | None, typer.Option(help="Past tokens in memory.", show_default="65536")] = None,
    no_memory: Annotated[bool, typer.Option("--no-memory", help="Control: the same SideNet without memory.")] = False,
    special_tokens: SpecialTokens = None,
    chunk_tokens: Annotated[int | None, typer.Option(help="Tokens found and read together.", show_default="1")] = None,
    top_k: Annotated[int | None, typer.Option(help="Tokens retrieved per token.", show_default="64")] = None,
    memory_layer: Annotated[
        int | None, typer.Option(help="Backbone layer whose keys are stored.", show_default="three quarters up")
    ] = None,
    layer_reduction: Annotated[
        int | None, typer.Option(help="Backbone layers for each SideNet layer.", show_default="2")
    ] = None,
    gate_start: Annotated[float | None, typer.Option(help="Fusion gate's first logit.", show_default="0")] = None,
    scale_start: Annotated[float | None, typer.Option(help="Layer scale's first value.", show_default="0")] = None,
    setting: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="Any other field of LongMemConfig, for example keys=raw."),
    ] = None,
    dtype: Annotated[
        ComputeDtype, typer.Option(help="Compute type; weights learn in float32.")
    ] = ComputeDtype.BFLOAT16,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    address: Annotated[
        str, typer.Option(help="none (this process), or Ray: local, auto, or a cluster's address.")
    ] = "none",
    workers: Annotated[int, typer.Option(help="Data-parallel Ray workers; they share the rows.")] = 1,
    threads: Annotated[
        int | None, typer.Option(help="Torch threads of each worker.", show_default="cores divided among the workers")
    ] = None,
    validate_every: Annotated[int, typer.Option(help="Steps between validations.")] = 200,
    checkpoint_every: Annotated[int, typer.Option(help="Steps between checkpoints.")] = 200,
) -> None:
    """Train a SideNet to read from memory; the backbone stays as it is.

    **Example:** `longmem train --data books/train --valid books/valid --out runs/train`
    """
    console = Console(stderr=True)
    with exit_codes(console, out):
        # torch and transformers take seconds to load: not for --help, and not outside of what handles Ctrl-C
        from longmem.model_source import REFERENCE_MODEL, ModelSource, reference_settings
        from longmem.training.config import TrainingConfig
        from longmem.training.worker import TrainingTask
        from pipelines.train import TrainingJob, run_training

        if no_memory and memory_tokens:
            raise ConfigError("--no-memory and --memory-tokens contradict each other; give one of them")
        named = {
            "segment_tokens": segment_tokens,
            "memory_tokens": 0 if no_memory else memory_tokens,
            "chunk_tokens": chunk_tokens,
            "top_k": top_k,
            "special_tokens": special_tokens and special_tokens.value,
            "memory_layer": memory_layer,
            "layer_reduction": layer_reduction,
            "gate_start": gate_start,
            "scale_start": scale_start,
        }
        settings = parse_settings(setting or []) | {name: value for name, value in named.items() if value is not None}
        if backbone is None:
            # the segments and the layer that suit the reference backbone
            settings = reference_settings("segment_tokens", "memory_layer") | settings
        source = local_or_hub(backbone or str(REFERENCE_MODEL / "backbone"))
        task = TrainingTask(
            model=ModelSource(source, dtype=dtype.value, device=device, settings=settings),
            data=local_inputs(data),
            validation=local_inputs(valid or []),
            validation_tokens=valid_tokens,
            config=TrainingConfig(
                steps=steps,
                rows=rows,
                micro_rows=micro_rows,
                learning_rate=learning_rate,
                warmup_steps=warmup_steps,
                weight_decay=weight_decay,
                clip_norm=clip_norm,
                seed=seed,
                frozen_layers=frozen_layers,
            ),
            threads=threads or max(1, num_cores() // max(1, workers)),
        )
        job = TrainingJob(
            task=task,
            out=out,
            workers=workers,
            address=address,
            validate_every=validate_every,
            checkpoint_every=checkpoint_every,
            resume=resume,
            command=shlex.join(["longmem", *sys.argv[1:]]),
        )
        run_training(job, console)
        Console().print(f"trained model: {out / 'model'}", soft_wrap=True)
