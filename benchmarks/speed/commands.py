# SPDX-License-Identifier: Apache-2.0
"""Command line of the speed benchmarks: each writes NAME.json, NAME.md and NAME.png, and prints its tables."""

from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Annotated, cast

import torch
import typer
from rich.console import Console

from benchmarks.speed.shapes import GPT2_MEDIUM, SHAPES
from benchmarks.speed.table import SpeedTable, write_tables
from benchmarks.speed.timing import REPEATS
from longmem.config import Dtype
from longmem.errors import ConfigError
from longmem.model.source import REFERENCE_MODEL, ModelSource
from longmem.scoring.evaluation_window import check_window
from pipelines.command.command_line import check_device

RESULTS = Path(__file__).parents[1] / "results"

Inputs = Annotated[list[str] | None, typer.Argument(metavar="INPUT", help="Text; default: the language reference.")]
Model = Annotated[Path, typer.Option(help="LongMem, by name or folder.")]
Threads = Annotated[int, typer.Option(help="Torch threads.")]
Repeats = Annotated[int, typer.Option(help="Rounds; each runs every case once.", min=2)]
OneShape = Annotated[bool, typer.Option("--one-shape", help="Leave out the shape that is not the model's.")]
Out = Annotated[Path, typer.Option(help="Folder for results.")]

app = typer.Typer(add_completion=False)


@app.command()
def retrieval(
    inputs: Inputs = None,
    model: Model = REFERENCE_MODEL,
    threads: Threads = 1,
    repeats: Repeats = REPEATS,
    one_shape: OneShape = False,
    out: Out = RESULTS,
) -> None:
    """Compare exact search with FAISS and the matrix product alone, on Gaussian and on real keys."""
    from benchmarks.speed import retrieval as benchmark
    from benchmarks.speed.real_memory import real_memory

    torch.set_num_threads(threads)
    memory = real_memory(ModelSource(str(model)), inputs or [])

    def tables() -> Iterator[SpeedTable]:
        if not one_shape:
            yield benchmark.gaussian(repeats)
        yield benchmark.real(memory, repeats)

    _finish(out / "retrieval", tables())


@app.command()
def fusion(
    inputs: Inputs = None,
    model: Model = REFERENCE_MODEL,
    threads: Threads = 1,
    repeats: Repeats = REPEATS,
    one_shape: OneShape = False,
    out: Out = RESULTS,
) -> None:
    """Compare reading of retrieved keys and values in C and in torch, at the model's shape and at GPT-2-medium's."""
    from benchmarks.speed import fusion as benchmark
    from benchmarks.speed.real_memory import random_memory, real_memory

    torch.set_num_threads(threads)
    memory = real_memory(ModelSource(str(model)), inputs or [])

    def tables() -> Iterator[SpeedTable]:
        yield benchmark.fusion(memory, memory.model.backbone.name, repeats)
        if not one_shape:
            yield benchmark.fusion(random_memory(GPT2_MEDIUM), GPT2_MEDIUM.name, repeats)

    _finish(out / "fusion", tables())


@app.command()
def every_layer(
    inputs: Inputs = None,
    model: Annotated[str, typer.Option(help="Backbone, or a fitted LongMem.")] = "smollm2-135m",
    segments: Annotated[int, typer.Option(help="Segments of the text; the last one is timed.", min=2)] = 12,
    window: Annotated[int, typer.Option(help="Window of the published evaluation.")] = 8192,
    dtype: Annotated[str, typer.Option(help="float32 or bfloat16, for every row.")] = "bfloat16",
    threads: Threads = 1,
    repeats: Repeats = REPEATS,
    out: Out = RESULTS,
) -> None:
    """Compare reading at every layer with plain transformers behind a KV cache, and with the published evaluation."""
    from benchmarks.growth import long_document
    from benchmarks.speed import every_layer as benchmark

    torch.set_num_threads(threads)
    source = ModelSource(model, dtype=cast(Dtype, dtype), settings={"memory_layers": "all"})
    opened = source.open()
    needed = max(segments * opened.config.segment_tokens, window + benchmark.STRIDE)
    text = long_document(needed, inputs or [], source).text
    table = benchmark.every_layer(opened, text, segments, window, repeats)
    _finish(out / "every-layer", [table])


@app.command()
def pretrained_peers(
    inputs: Inputs = None,
    model: Annotated[str, typer.Option(help="LongMem that reads every layer.")] = "longmem-smollm2-135m",
    history: Annotated[int, typer.Option(help="Tokens before the first scored one, in whole segments.")] = 65_536,
    segments: Annotated[int, typer.Option(help="Segments to score, each in turns.", min=2)] = 2,
    windows: Annotated[
        list[str] | None, typer.Option("--window", help="WINDOW:STRIDE of the backbone alone; several.")
    ] = None,
    short_segment: Annotated[int, typer.Option(help="Segment of one more row in one pass, in tokens.", min=1)] = 1024,
    short_near: Annotated[int, typer.Option(help="Near past of that row, in tokens.", min=0)] = 1024,
    infllm_blocks: Annotated[int, typer.Option(help="Blocks of 128 tokens that InfLLM reads.")] = 8,
    only: Annotated[
        list[str] | None, typer.Option(help="Part of the names of methods to run; several.", show_default="all")
    ] = None,
    dtype: Annotated[str, typer.Option(help="float32 or bfloat16, for every row.")] = "bfloat16",
    threads: Threads = 1,
    out: Out = RESULTS,
) -> None:
    """Compare methods to read a long text with one pretrained backbone: perplexity and speed of the same tokens; takes
    about 20 minutes."""
    from benchmarks.baselines.infllm import InfLLMSizes
    from benchmarks.growth import long_document
    from benchmarks.speed import pretrained_peers as benchmark

    torch.set_num_threads(threads)
    shapes = [window_shape(each) for each in windows or ("8192:4096", "8192:512")]
    source = ModelSource(model, dtype=cast(Dtype, dtype))
    opened = source.open()
    size = opened.config.segment_tokens
    if history < 1 or history % size:
        raise typer.BadParameter(f"expected a multiple of {size:,}, got {history:,}", param_hint="--history")
    for window, stride in shapes:
        if size % stride or window > history + stride:
            raise typer.BadParameter(
                f"expected a stride that divides {size:,} and a window within the history, got {window}:{stride}",
                param_hint="--window",
            )
    if size % short_segment:
        raise typer.BadParameter(f"expected a divisor of {size:,}, got {short_segment}", param_hint="--short-segment")
    needed = history + segments * size
    # a text that is cut between tokens can have a few more or fewer of them
    text = long_document(needed + size, inputs or [], source).text
    sequence = opened.tokenizer.sequence(text)[: needed + 1]
    peers = benchmark.lineup(opened, shapes, InfLLMSizes(read_blocks=infllm_blocks), (short_segment, short_near))
    peers = benchmark.selected(peers, only or ())
    console = Console(stderr=True)
    table = benchmark.pretrained_peers(opened, sequence, history, segments, peers, console)
    _finish(out / "pretrained-peers", [table])


@app.command()
def attention(
    tokens: Annotated[int, typer.Option(help="Queries: tokens of a segment.")] = 2048,
    cached: Annotated[int, typer.Option(help="Keys in front of them: tokens read from memory.")] = 4096,
    heads: Annotated[int, typer.Option(help="Query heads.")] = 9,
    kv_heads: Annotated[int, typer.Option(help="KV heads.")] = 3,
    dim: Annotated[int, typer.Option(help="Width of a head.")] = 64,
    threads: Threads = 1,
    repeats: Repeats = REPEATS,
    out: Out = RESULTS,
) -> None:
    """Compare one layer's bfloat16 attention in C with torch's, with and without a KV cache (default: SmolLM2-135M)."""
    from benchmarks.speed import attention as benchmark
    from longmem.backbone.fast.attention import is_available

    if not is_available():
        raise ConfigError("attention in C needs a C compiler and a processor with AVX-512 BF16; this machine lacks one")
    torch.set_num_threads(threads)
    tables = (benchmark.attention(tokens, count, heads, kv_heads, dim, repeats) for count in (cached, 0))
    _finish(out / "attention", tables)


@app.command()
def elementwise(
    tokens: Annotated[int, typer.Option(help="Rows: tokens of a segment.")] = 1024,
    width: Annotated[int, typer.Option(help="Width of a norm.")] = 576,
    inner: Annotated[int, typer.Option(help="Width of a gated activation.")] = 1536,
    threads: Threads = 1,
    repeats: Repeats = REPEATS,
    out: Out = RESULTS,
) -> None:
    """Compare bfloat16 norms, gated activations and rotary positions in C with torch's (default: SmolLM2-135M)."""
    from benchmarks.speed import elementwise as benchmark
    from longmem.backbone.fast.attention import is_available

    if not is_available():
        raise ConfigError("this code in C needs a C compiler and a processor with AVX-512 BF16; this machine lacks one")
    torch.set_num_threads(threads)
    _finish(out / "elementwise", benchmark.elementwise(tokens, width, inner, repeats))


@app.command()
def unchanged_layers(
    inputs: Inputs = None,
    model: Annotated[str, typer.Option(help="Backbone, or a copy-fitted LongMem.")] = "smollm2-135m",
    tokens: Annotated[int, typer.Option(help="Tokens of the job.", min=1)] = 4096,
    dtype: Annotated[Dtype, typer.Option(help="Compute dtype of every row.")] = "float32",
    against_float32: Annotated[
        bool, typer.Option("--against-float32", help="One more row: all layers run, in float32.")
    ] = False,
    threads: Threads = 1,
    repeats: Repeats = REPEATS,
    out: Out = RESULTS,
) -> None:
    """Compare whole jobs of a SideNet that is the backbone, with its layers left out and run."""
    from benchmarks.growth import long_document
    from benchmarks.speed import unchanged_layers as benchmark

    torch.set_num_threads(threads)
    source = ModelSource(model, dtype=dtype)
    opened = source.open()
    sequence = opened.tokenizer.sequence(long_document(tokens, inputs or [], source).text)[: tokens + 1]
    exact = ModelSource(model, dtype="float32").open() if against_float32 else None
    _finish(out / "unchanged-layers", [benchmark.unchanged_layers(opened, sequence, repeats, exact)])


@app.command()
def approximate(
    inputs: Inputs = None,
    model: Model = REFERENCE_MODEL,
    tokens: Annotated[list[int] | None, typer.Option(help="Tokens in memory; several for several tables.")] = None,
    probes: Annotated[list[int] | None, typer.Option(help="Cells probed by a query; several.")] = None,
    scored_segments: Annotated[int, typer.Option(help="Segments for recall and perplexity.", min=1)] = 32,
    with_faiss: Annotated[
        bool, typer.Option("--faiss", help="FAISS's own indexes too; building them takes minutes.")
    ] = False,
    threads: Threads = 1,
    repeats: Repeats = REPEATS,
    out: Out = RESULTS,
) -> None:
    """Measure approximate search in long memories: time, recall and perplexity; takes about 15 minutes."""
    from benchmarks.speed import approximate as benchmark

    torch.set_num_threads(threads)
    tables = (
        benchmark.approximate(
            ModelSource(str(model), search="ivf", settings={"memory_tokens": number}),
            inputs or [],
            number,
            probes or [16, 32, 64, 128],
            scored_segments,
            repeats,
            with_faiss=with_faiss,
        )
        for number in tokens or [65_536, 262_144, 1_048_576]
    )
    _finish(out / "approximate", tables)


@app.command()
def pipeline(
    inputs: Inputs = None,
    model: Model = REFERENCE_MODEL,
    threads: Threads = 1,
    repeats: Repeats = REPEATS,
    out: Out = RESULTS,
) -> None:
    """Measure the cost that memory adds to the models alone."""
    from benchmarks.speed import pipeline as benchmark
    from benchmarks.speed.real_memory import real_memory

    torch.set_num_threads(threads)
    memory = real_memory(ModelSource(str(model)), inputs or [])
    _finish(out / "pipeline", [benchmark.segment(memory, f"one segment of {memory.model.backbone.name}", repeats)])


@app.command()
def jobs(
    inputs: Inputs = None,
    model: Model = REFERENCE_MODEL,
    cores: Annotated[int, typer.Option(help="Cores for each job.")] = 2,
    only: Annotated[
        list[str] | None, typer.Option(help="Part of the names of jobs to run; several.", show_default="all")
    ] = None,
    tokens: Annotated[int, typer.Option(help="Tokens of the document.", min=1)] = 120_000,
    segment_tokens: Annotated[int | None, typer.Option(help="Tokens of a segment; default: the model's.")] = None,
    dtype: Annotated[Dtype, typer.Option(help="Compute dtype of the model.")] = "float32",
    repeats: Repeats = REPEATS,
    out: Out = RESULTS,
) -> None:
    """Time whole perplexity jobs in process, on disk and on Ray; takes about 40 minutes."""
    from benchmarks.speed import pipeline as benchmark

    quiet = Console(stderr=True, quiet=True)
    source = ModelSource(str(model), dtype, settings={"segment_tokens": segment_tokens} if segment_tokens else {})
    _finish(out / "jobs", [benchmark.jobs(source, inputs or [], cores, repeats, quiet, only or (), tokens)])


@app.command()
def pipeline_medium(threads: Threads = 1, repeats: Repeats = REPEATS, out: Out = RESULTS) -> None:
    """Measure the cost that memory adds to the models alone, at GPT-2-medium's shape."""
    from benchmarks.speed import pipeline as benchmark
    from benchmarks.speed.real_memory import random_memory

    torch.set_num_threads(threads)
    stages = benchmark.segment(random_memory(GPT2_MEDIUM), f"one segment of {GPT2_MEDIUM.name}", repeats)
    _finish(out / "pipeline-medium", [stages])


@app.command()
def store(
    inputs: Inputs = None,
    model: Model = REFERENCE_MODEL,
    repeats: Repeats = REPEATS,
    out: Out = RESULTS,
) -> None:
    """Compare writing and reading of blocks with plain files."""
    from benchmarks.speed import store as benchmark
    from benchmarks.speed.real_memory import real_memory

    torch.set_num_threads(1)
    _finish(out / "store", benchmark.store(real_memory(ModelSource(str(model)), inputs or []), repeats))


@app.command()
def peers(
    inputs: Inputs = None,
    model: Model = REFERENCE_MODEL,
    threads: Threads = 1,
    context_tokens: Annotated[list[int] | None, typer.Option(help="Lengths; several for several tables.")] = None,
    repeats: Repeats = REPEATS,
    out: Out = RESULTS,
) -> None:
    """Compare other methods to read a long text, at equal width and depth."""
    from benchmarks.speed import peers as benchmark
    from benchmarks.speed.real_memory import real_memory

    torch.set_num_threads(threads)
    memory = real_memory(ModelSource(str(model)), inputs or [])

    def tables() -> Iterator[SpeedTable]:
        yield benchmark.segment_with_memory(memory, repeats)
        for num_tokens in context_tokens or (8_192, 16_384, 32_768):
            yield benchmark.long_context(memory, num_tokens, benchmark.repeats_for(num_tokens, repeats))

    _finish(out / "peers", tables())


@app.command()
def gpu(
    shape: Annotated[
        list[str] | None, typer.Option(help=f"Model shape ({', '.join(SHAPES)}); several. Default: all.")
    ] = None,
    device: Annotated[str, typer.Option(help="cuda, or cpu to try the command without a GPU.")] = "cuda",
    dtype: Annotated[Dtype, typer.Option(help="Compute dtype of the models.")] = "bfloat16",
    memory_tokens: Annotated[int, typer.Option(help="Memory length.")] = 65_536,
    context_tokens: Annotated[list[int] | None, typer.Option(help="Lengths for full attention; several.")] = None,
    repeats: Repeats = REPEATS,
    out: Out = RESULTS,
) -> None:
    """Measure search, fusion, pipeline and full attention on one large GPU, with random weights at known shapes."""
    from benchmarks.speed import gpu as benchmark

    check_device(device)
    names = shape or list(SHAPES)
    if unknown := [name for name in names if name not in SHAPES]:
        raise typer.BadParameter(f"expected one of {', '.join(SHAPES)}, got {unknown[0]!r}", param_hint="--shape")
    lengths = context_tokens or [8_192, 16_384, 32_768, 65_536]
    tables = (benchmark.gpu(SHAPES[name], device, dtype, memory_tokens, lengths, repeats) for name in names)
    _finish(out / "gpu", chain.from_iterable(tables))


@app.command()
def startup(repeats: Repeats = REPEATS, out: Out = RESULTS) -> None:
    """Seconds that short commands, and a job of one segment, take from a new process to its end; minutes."""
    from benchmarks.speed import startup as benchmark

    _finish(out / "startup", [benchmark.startup(repeats)])


@app.command()
def view(
    tokens: Annotated[int, typer.Option(help="Tokens of the job.", min=10_000)] = 1_000_000,
    repeats: Repeats = REPEATS,
    out: Out = RESULTS,
) -> None:
    """Seconds until the page of `longmem view` shows something, and bytes that it loads; two minutes."""
    from benchmarks.speed import view as benchmark

    _finish(out / "view", [benchmark.view(tokens, repeats)])


def window_shape(given: str) -> tuple[int, int]:
    """Return window and stride of WINDOW:STRIDE. Raises BadParameter, ConfigError."""
    window, _, stride = given.partition(":")
    if not (window.isdecimal() and stride.isdecimal()):
        raise typer.BadParameter(f"expected WINDOW:STRIDE, such as 8192:4096, got {given!r}", param_hint="--window")
    check_window(int(window), int(stride))
    return int(window), int(stride)


def _finish(out: Path, tables: Iterable[SpeedTable]) -> None:
    """Write and print the tables; each is written once it is measured, so that an interruption loses only the running
    one."""
    done: list[SpeedTable] = []
    for table in tables:
        done.append(table)
        text = write_tables(out, done)
    Console().print(text, markup=False, soft_wrap=True)
