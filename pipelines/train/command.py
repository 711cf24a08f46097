"""`longmem train`: options become one checked job."""

from pathlib import Path
from typing import Annotated

import typer

from longmem.errors import ConfigError
from pipelines.command.command_line import (
    ComputeDtype,
    check_inputs,
    command_text,
    exit_codes,
    local_inputs,
    local_or_hub,
    num_cores,
    parse_settings,
    say_if_finished,
)
from pipelines.command.console import open_console
from pipelines.command.option_types import (
    MOST_THREADS,
    MOST_WORKERS,
    path_option,
    real_option,
    text_option,
    whole_option,
)
from pipelines.command.options import Adapter, SpecialTokens, adapter_folder


def train(
    data: Annotated[list[str], text_option(help="Documents to learn from: files and folders as in perplexity.")],
    out: Annotated[Path, path_option(help="Output folder: curves, checkpoints, and the trained model.")],
    backbone: Annotated[
        str | None,
        text_option(
            help="Frozen backbone (Hugging Face folder or hub id), or a LongMem folder whose SideNet learns on.",
            show_default="the reference model's",
        ),
    ] = None,
    adapter: Adapter = None,
    valid: Annotated[list[str] | None, text_option(help="Documents to judge by.", show_default="none")] = None,
    valid_tokens: Annotated[int, whole_option(help="Of each of them, from its start.")] = 16_384,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint in --out.")] = False,
    steps: Annotated[int, whole_option(help="Optimiser steps.")] = 2000,
    rows: Annotated[int, whole_option(help="Documents read side by side; a step is one segment of each.")] = 8,
    micro_rows: Annotated[int, whole_option(help="Rows of one forward and backward.")] = 4,
    learning_rate: Annotated[float, real_option(help="Peak learning rate.", above=True, most=100)] = 1e-3,
    warmup_steps: Annotated[int, whole_option(help="Steps of linear warm-up.", least=0)] = 50,
    weight_decay: Annotated[float, real_option(help="On the copied layers' matrices.", most=100)] = 0.01,
    clip_norm: Annotated[float, real_option(help="Longest gradient applied as it is.", above=True)] = 1.0,
    seed: Annotated[int, whole_option(help="Order of the documents.", least=0)] = 0,
    frozen_layers: Annotated[
        bool, typer.Option("--frozen-layers", help="Train only scale, gate, reader and copy head.")
    ] = False,
    segment_tokens: Annotated[int | None, whole_option(help="Local context.", show_default="1024")] = None,
    memory_tokens: Annotated[
        int | None, whole_option(help="Past tokens in memory.", show_default="65536", least=0)
    ] = None,
    no_memory: Annotated[bool, typer.Option("--no-memory", help="Control: the same SideNet without memory.")] = False,
    special_tokens: SpecialTokens = None,
    chunk_tokens: Annotated[int | None, whole_option(help="Tokens found and read together.", show_default="1")] = None,
    top_k: Annotated[int | None, whole_option(help="Tokens retrieved per token.", show_default="64")] = None,
    memory_layer: Annotated[
        int | None,
        whole_option(help="Backbone layer whose keys are stored.", show_default="three quarters up", least=0),
    ] = None,
    layer_reduction: Annotated[
        int | None, whole_option(help="Backbone layers for each SideNet layer.", show_default="2")
    ] = None,
    gate_start: Annotated[
        float | None, real_option(help="Fusion gate's first logit.", show_default="0", least=-1e6, most=1e6)
    ] = None,
    scale_start: Annotated[
        float | None, real_option(help="Layer scale's first value.", show_default="0", least=-1e6, most=1e6)
    ] = None,
    setting: Annotated[
        list[str] | None,
        text_option("--set", metavar="NAME=VALUE", help="Any other field of LongMemConfig, for example keys=raw."),
    ] = None,
    dtype: Annotated[
        ComputeDtype, typer.Option(help="Compute type; weights learn in float32.")
    ] = ComputeDtype.BFLOAT16,
    device: Annotated[str, text_option(help="cpu or cuda.")] = "cpu",
    address: Annotated[
        str, text_option(help="none (this process), or Ray: local, auto, or a cluster's address.")
    ] = "none",
    workers: Annotated[
        int, whole_option(help="Data-parallel Ray workers; they share the rows.", most=MOST_WORKERS)
    ] = 1,
    threads: Annotated[
        int | None,
        whole_option(
            help="Torch threads of each worker.", show_default="cores divided among the workers", most=MOST_THREADS
        ),
    ] = None,
    validate_every: Annotated[int, whole_option(help="Steps between validations.")] = 200,
    checkpoint_every: Annotated[int, whole_option(help="Steps between checkpoints.")] = 200,
) -> None:
    """Train a SideNet to read from memory; the backbone stays as it is.

    **Example:** `longmem train --data books/train --valid books/valid --out runs/train`
    """
    console = open_console(stderr=True)
    with exit_codes(console, out):
        if not resume:
            check_inputs(*data, *valid or ())
        # torch and transformers take seconds to load: not for --help, and not outside of what handles Ctrl-C
        from longmem.model.source import REFERENCE_MODEL, ModelSource, reference_settings
        from longmem.training.config import TrainingConfig
        from longmem.training.worker import TrainingTask
        from pipelines.train.job import TrainingJob, run_training

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
            model=ModelSource(
                source,
                dtype=dtype.value,
                device=device,
                settings=settings,
                adapter=adapter_folder(adapter, backbone, "--backbone"),
            ),
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
            command=command_text(),
        )
        if not say_if_finished(run_training(job, console), out):
            open_console().print(f"trained model: {out / 'model'}", soft_wrap=True)
