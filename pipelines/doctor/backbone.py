# SPDX-License-Identifier: Apache-2.0
"""Check behind `longmem doctor --model`: suitability of a backbone for memory, and the layer to store."""

from dataclasses import asdict
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from longmem.backbone.backbone import Backbone
from longmem.config import LongMemConfig, SpecialTokens
from longmem.errors import DocumentError
from longmem.model.folders import backbone_of, is_checkpoint
from longmem.model.source import ModelSource
from longmem.text.documents import UnreadableDocument, read_documents
from longmem.text.language_reference import language_reference
from longmem.wording import counted, signed
from pipelines.command.interrupts import tidying
from pipelines.doctor.backbone_probe import BackboneProbe, LayerProbe, probe_backbone
from pipelines.doctor.reading_probe import ReadingProbe, probe_reading
from pipelines.job.inputs import find_inputs
from pipelines.job.progress import JobProgress

SEGMENT_TOKENS = 512
MAX_TOKENS = 24_576
"""Tokens that are probed: enough for a stable ranking of layers; a minute for ten million parameters."""


def examine_model(
    model: str,
    text: str | None,
    special_tokens: SpecialTokens | None,
    console: Console,
    adapter: str | None = None,
) -> BackboneProbe:
    """Probe a backbone on the first document of `text`; None takes the Python language reference.

    `model` may be a LongMem folder, whose backbone is then probed. Raises ConfigError, ModelError, DocumentError.
    """
    folder = backbone_of(model) if is_checkpoint(model) else model
    backbone = Backbone.load(folder, adapter=adapter)
    settings = {} if special_tokens is None else {"special_tokens": special_tokens}
    tokenizer = ModelSource(model, settings=settings, adapter=adapter).open_tokenizer()
    sequence = tokenizer.sequence(_text(text, console))[: MAX_TOKENS + 1]
    return probe_backbone(backbone, sequence, min(SEGMENT_TOKENS, backbone.max_tokens or SEGMENT_TOKENS))


def render_probe(probe: BackboneProbe, model: str, console: Console) -> None:
    """Print the table of layers and the conclusions from it."""
    num_layers = len(probe.layers)
    storable = _storable(num_layers)
    table = Table(box=box.SIMPLE_HEAD, title=f"{escape(model)}: layers as memory", title_justify="left")
    for column in ("layer", "cache gain", "continuations found", "induction"):
        table.add_column(column, justify="right")
    best = _best(probe)
    for layer in probe.layers:
        mark = " ←" if layer is best else ""
        table.add_row(
            f"{layer.layer}{mark}",
            signed(layer.cache_gain, "+.1%"),
            f"{layer.found:.0%}",
            f"{layer.induction:.2f}",
            style=None if layer.layer in storable else "dim",
        )
    console.print(table)
    console.print(
        f"  perplexity {probe.perplexity:.2f} on {counted(probe.num_tokens, 'token')}, of which {probe.in_memory:.0%} "
        "followed the same token before"
    )
    console.print(
        f"  repeat loss: {probe.first_loss:.2f} nats at first, {probe.second_loss:.2f} the second time: "
        + (
            "it copies from its context."
            if probe.copies
            else "it does not copy from its context (no induction heads), so the copy head has to."
        )
    )
    default = LongMemConfig().resolve_layer(num_layers) if num_layers % LongMemConfig().layer_reduction == 0 else None
    console.print(
        f"  store keys of layer {best.layer}: --memory-layer {best.layer}"
        + ("" if default is None else ", which is the default" if default == best.layer else f" (default: {default})")
    )
    if probe.reads_all_layers:
        console.print("  or let the backbone read its own memory at every layer, untrained: --memory-layers all")
    if best.cache_gain > -0.01:
        console.print(
            "  [yellow]A cache over these keys gains almost nothing on this text: expect little of memory.[/]"
        )


def probe_as_json(probe: BackboneProbe) -> dict[str, Any]:
    """Return the measurements and the layer to store as JSON values."""
    return {**asdict(probe), "copies": probe.copies, "memory_layer": _best(probe).layer}


def examine_reading(
    source: ModelSource, text: str | None, console: Console, limit_tokens: int | None = None
) -> ReadingProbe:
    """Measure ways to read a memory at every layer on the first document of `text`; None takes the Python language
    reference. Raises ConfigError, ModelError, DocumentError."""
    content = _text(text, console)
    model = source.open()
    with tidying(), JobProgress(console) as progress:

        def tell(done: int, total: int) -> None:
            if done == 1:
                progress.planned("forwards", total)
            progress.advanced(1)

        return probe_reading(model, content, tell, limit_tokens)


def render_reading(probe: ReadingProbe, model: str, console: Console) -> None:
    """Print the table of ways to read, and the advice."""
    table = Table(box=box.SIMPLE_HEAD, title=f"{escape(model)}: what every layer reads", title_justify="left")
    table.add_column("read before a segment")
    for column in ("perplexity", "nats against its settings"):
        table.add_column(column, justify="right")
    for way in probe.ways:
        own = way.settings == {}
        change = "its settings" if own else f"{signed(way.change, '+.4f')} ± {way.error:.4f}"
        table.add_row(way.name, f"{way.perplexity:.2f}", change, style="bold" if own else None)
    console.print(table)
    console.print(f"  on {counted(probe.num_tokens, 'token')}, without copies; ± is one standard error")
    advice = probe.advice
    if probe.is_useless:
        console.print("  [yellow]Reading nothing is clearly better than the model's settings on this text.[/]")
    if advice is None:
        console.print("  No other way is clearly better than the model's settings on this text: keep them.")
    else:
        options = " ".join(f"--{name.replace('_', '-')} {value}" for name, value in (advice.settings or {}).items())
        console.print(f"  Better on this text: {options}")


def reading_as_json(probe: ReadingProbe) -> dict[str, Any]:
    """Return the measurements and the settings to change as JSON values."""
    return {**asdict(probe), "advice": None if probe.advice is None else probe.advice.settings}


def _best(probe: BackboneProbe) -> LayerProbe:
    """Return the layer with the largest cache gain among those that a SideNet can store."""
    storable = _storable(len(probe.layers))
    return min((layer for layer in probe.layers if layer.layer in storable), key=lambda layer: layer.cache_gain)


def _storable(num_layers: int) -> range:
    """Return the layers that a SideNet with the default reduction copies; all layers if their number is odd (r = 1)."""
    reduction = LongMemConfig().layer_reduction
    return range(reduction - 1, num_layers, reduction) if num_layers % reduction == 0 else range(num_layers)


def _text(source: str | None, console: Console) -> str:
    if source is None:
        return language_reference().text
    for document in read_documents(find_inputs([source], console)):
        if isinstance(document, UnreadableDocument):
            raise document.error
        return document.text
    raise DocumentError(f"no document in {source}: expected a text to probe with")
