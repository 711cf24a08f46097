# SPDX-License-Identifier: Apache-2.0
"""Choices of older blocks, measured by what full attention weighs: how much of its weight falls on the chosen blocks.

    start │ older blocks (candidates)      │ near past │ segment
          └─────────── one full attention over all positions of the backbone ───────────┘

For each segment, plain transformers runs over as much of the text before it as the backbone has positions for. The
weight of a block is what all layers, heads and tokens of the segment attend to it. Each choice takes the same number of
blocks, without a look at the segment. Weight is no gain: `longmem doctor --reading` measures perplexity.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from benchmarks.baselines import base
from longmem.errors import ConfigError, DocumentError
from longmem.memory.context import LocalMemory, text_key
from longmem.memory.view import MemoryView
from longmem.model.longmem import LongMem
from longmem.sidenet.block_choice import chosen_blocks
from longmem.sidenet.cache_reader import CacheReader
from longmem.text.segments import cut_segments

BEST = "most weight"


@dataclass(frozen=True)
class ChoiceRow:
    """Results of one choice on all segments."""

    name: str
    weight: float
    """Share of the weight of all candidates, as the mean over segments."""
    recall: float
    """Share of the blocks with most weight that it chose, as the mean over segments."""


def run(model: LongMem, documents: Mapping[str, base.Sequence], layers: Sequence[int]) -> Iterator[list[ChoiceRow]]:
    """Yield, after each document, the rows of all segments so far that have enough text before them.

    Blocks are also chosen by the keys of each of `layers`, and of all of them. Raises ConfigError for a model that
    reads one layer, has no sink or too few positions, or for an unknown layer, and DocumentError for a document that is
    too short.
    """
    if not isinstance(model.sidenet, CacheReader):
        raise ConfigError("expected a model that reads the memory at every layer (memory_layers=all)")
    if not model.config.has_sink:
        raise ConfigError("expected sink=True: full attention is measured behind a start token")
    if unknown := [layer for layer in layers if not 0 <= layer < model.backbone.num_layers]:
        raise ConfigError(f"expected layers 0 to {model.backbone.num_layers - 1}, got {unknown[0]}")
    num_older = older_tokens(model)
    found: dict[str, list[tuple[float, float]]] = {}
    needed = num_older + model.config.near_tokens + model.config.segment_tokens
    for document, sequence in documents.items():
        # the last token is predicted and not read; whole segments are counted from the start
        if (len(sequence) - 1) // model.config.segment_tokens * model.config.segment_tokens < needed:
            raise DocumentError(
                f"{document}: expected at least {needed:,} tokens in whole segments, got {len(sequence):,}"
            )
        for name, weight, recall in _choices(model, sequence, layers, num_older):
            found.setdefault(name, []).append((weight, recall))
        yield [ChoiceRow(name, *np.mean(values, axis=0).tolist()) for name, values in found.items()]


def older_tokens(model: LongMem) -> int:
    """Return the tokens of the candidates: whole blocks that fit the positions beside start, near past and segment.

    Raises ConfigError where they are too few to choose from.
    """
    config, limit = model.config, model.backbone.max_tokens
    if limit is None:
        raise ConfigError(
            f"backbone {model.backbone.name} has no limit of positions; nothing says how much to attend to"
        )
    older = (limit - 1 - config.near_tokens - config.segment_tokens) // config.block_tokens * config.block_tokens
    if older < 2 * config.read_blocks * config.block_tokens:
        raise ConfigError(
            f"{max(older, 0)} tokens fit before the near past, and {config.read_blocks} blocks of "
            f"{config.block_tokens} are read of them: lower segment_tokens or near_tokens, so that there is a choice"
        )
    return older


def _choices(
    model: LongMem, sequence: base.Sequence, layers: Sequence[int], num_older: int
) -> Iterator[tuple[str, float, float]]:
    """Yield (choice, share of weight, recall) for each segment of a document with a full history."""
    config = model.config
    history = num_older + config.near_tokens
    memory = LocalMemory(model)
    for segment in cut_segments(text_key(None), sequence, config.segment_tokens):
        view = memory.view(segment.index)
        if view is not None and view.num_chunks >= history and len(segment.tokens) == config.segment_tokens:
            newest = _newest(view, history)
            text = np.concatenate([newest.text.numpy(), segment.tokens])
            weights = block_weights(model, text, num_older, config.block_tokens)
            best = weights.topk(config.read_blocks).indices
            chosen = {
                name: choose(newest) // config.block_tokens for name, choose in _choosers(model, layers, num_older)
            }
            for name, blocks in {**chosen, BEST: best}.items():
                recall = torch.isin(best, blocks).double().mean()
                yield name, float(weights[blocks].sum() / weights.sum()), float(recall)
        memory.accept(model.encode(segment).block)


def _choosers(
    model: LongMem, layers: Sequence[int], num_older: int
) -> Iterator[tuple[str, Callable[[MemoryView], Int64[Tensor, " blocks"]]]]:
    """Yield names with functions that return the first places of chosen blocks."""

    def of(choice: str, chosen_layers: Sequence[int] | None = None) -> Callable[[MemoryView], Tensor]:
        config = replace(model.config, block_choice=choice)

        def choose(view: MemoryView) -> Tensor:
            searched = view if chosen_layers is None else _with_keys(view, model, chosen_layers)
            blocks = chosen_blocks(searched, config, num_older)
            assert blocks is not None, "checked by older_tokens"
            return blocks

        return choose

    yield f"keys of layer {model.sidenet.memory_layer}", of("keys")
    for layer in layers:
        yield f"keys of layer {layer}", of("keys", [layer])
    if len(layers) > 1:
        yield "keys of these layers", of("keys", layers)
    for choice in ("overlap", "both", "random"):
        yield choice, of(choice)


def _newest(view: MemoryView, count: int) -> MemoryView:
    """Return the newest tokens of a view of single tokens."""
    assert view.layer_keys is not None, "a view of one layer"
    assert view.layer_values is not None, "a view of one layer"
    first = view.num_chunks - count
    return MemoryView(
        chunk_keys=view.chunk_keys[:, first:],
        keys=view.keys[:, first:],
        values=view.values[:, first:],
        tokens=view.tokens[first:],
        starts=view.starts[first:],
        lengths=view.lengths[first:],
        sketch=None,
        cells=None,
        end_token=view.end_token,
        layer_keys=view.layer_keys.rows(first, view.num_chunks),
        layer_values=view.layer_values.rows(first, view.num_chunks),
    )


def _with_keys(view: MemoryView, model: LongMem, layers: Sequence[int]) -> MemoryView:
    """Return the view with the keys of other layers to choose by, as cosines about their mean."""
    assert view.layer_keys is not None, "a view of one layer"
    kv_heads = model.backbone.shape.kv_heads
    stored = view.layer_keys.gather(torch.arange(view.num_chunks)).unflatten(1, (-1, kv_heads))[:, list(layers)].float()
    keys = torch.nn.functional.normalize(stored - stored.mean(dim=0), dim=-1)
    # a view has as many values as keys; these choose no block
    values = view.values.repeat(len(layers), 1, 1, 1)
    return replace(view, keys=keys.flatten(1, 2).transpose(0, 1)[:, :, None], values=values)


@torch.no_grad()
def block_weights(model: LongMem, text: base.Sequence, num_older: int, block_tokens: int) -> Float64[Tensor, " blocks"]:
    """Return the weight of each block of the oldest `num_older` tokens of a text, for its last segment.

    It is the attention of all layers, heads and tokens of the segment, summed.
    """
    size = model.config.segment_tokens
    sums = torch.zeros(num_older // block_tokens, dtype=torch.float64)

    def add(weights: Tensor) -> None:
        # the start token is at position 0
        older = weights[..., 1 : 1 + num_older].double().sum(dim=(0, 1, 2))
        sums.add_(older.unflatten(0, (-1, block_tokens)).sum(dim=1))

    start = model.tokenizer.start_token
    assert start is not None, "a model with a sink has one"
    tokens = torch.tensor([[start, *text.tolist()]])
    cache = model.backbone.new_cache()
    model.backbone.run(tokens[:, :-size], cache)
    with _attention_weights(model, add):
        # few queries at a time: eager attention holds the weights of all heads
        for part in tokens[:, -size:].split(128, dim=1):
            model.backbone.run(part, cache)
    return sums


@contextmanager
def _attention_weights(model: LongMem, add: Callable[[Tensor], None]) -> Iterator[None]:
    """Attend eagerly, and pass the weights [batch, heads, queries, keys] of each layer to `add`."""
    config = model.backbone.model.config
    before = config._attn_implementation
    hooks = []
    try:
        model.backbone.model.set_attn_implementation("eager")
        for layer in model.backbone.layers:
            attention = model.backbone.family.attention_of(layer)
            hooks.append(attention.register_forward_hook(lambda _module, _given, output: add(output[1])))
        yield
    finally:
        for hook in hooks:
            hook.remove()
        model.backbone.model.set_attn_implementation(before)


def figures(rows: Sequence[ChoiceRow]) -> dict[str, Any]:
    """Return all rows in JSON form."""
    return {"rows": [vars(row) for row in rows]}


def markdown(rows: Sequence[ChoiceRow]) -> str:
    """Return a table of all rows."""
    lines = ["| blocks chosen by | share of full attention's weight | recall of the heaviest |", "|---|--:|--:|"]
    lines += [f"| {row.name} | {row.weight:.1%} | {row.recall:.1%} |" for row in rows]
    return "\n".join(lines) + "\n"
