"""`python -m benchmarks [growth]`: run benchmarks and write benchmarks/results/NAME.json."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from benchmarks import growth as growth_benchmark
from benchmarks.environment import environment

RESULTS = Path(__file__).parent / "results"

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, help="Benchmarks of LongMem.")


@app.callback(invoke_without_command=True)
def everything(context: typer.Context) -> None:
    """Without a name: all of them."""
    if context.invoked_subcommand is None:
        growth()


@app.command()
def growth(
    inputs: Annotated[
        list[str] | None, typer.Argument(metavar="INPUT", help="Text; default: the language reference.")
    ] = None,
    tokens: Annotated[int, typer.Option(help="Length of the document.")] = 1_000_000,
    threads: Annotated[int, typer.Option(help="Torch threads.")] = 1,
) -> None:
    """Time and memory along one very long document."""
    if tokens < 3 * growth_benchmark.SPAN_TOKENS:
        raise typer.BadParameter(
            f"expected at least {3 * growth_benchmark.SPAN_TOKENS:,}, got {tokens:,}", param_hint="--tokens"
        )
    figures = growth_benchmark.run(tokens, inputs or [], threads, Console(stderr=True))
    figures = {"environment": environment(), **figures}
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "growth.json").write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    table = Table(title=f"growth: {figures['tokens']:,} tokens, window {figures['memory_tokens']:,}")
    for column in ("", "second 100k", "last 100k", "ratio"):
        table.add_column(column, justify="right" if column else "left")
    for name, ratio in (("cpu", "slowdown_cpu"), ("wall", "slowdown_wall")):
        spans = [f"{figures[span][f'{name}_s_per_1k_tokens']:.3f}" for span in ("second_span", "last_span")]
        table.add_row(f"{name} s per 1,000 tokens", *spans, f"{figures[ratio]:.3f}")
    sizes = [f"{figures[name] / 2**20:,.0f}" for name in ("rss_bytes_when_full", "rss_bytes_max_after")]
    table.add_row("resident MiB (window full, highest later)", *sizes, f"{figures['rss_growth']:.3f}")
    Console().print(table)
    if not figures["passed"]:
        raise typer.Exit(1)


if __name__ == "__main__":
    app(prog_name="python -m benchmarks")
