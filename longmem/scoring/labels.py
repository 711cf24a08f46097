# SPDX-License-Identifier: Apache-2.0
"""Scores of labels by a backbone that reads whole demonstrations at every layer, as its KV cache.

    positions   0      1 …                                                         n + 1 …
              │ sink │ demonstrations from memory, │ demonstrations in context │ the item's own tokens │ label
              │      │ the nearest last            │ read once for all items   │

An item costs its own tokens: keys and values of demonstrations are stored or read once, and rotated to their places.
Items run one by one, so that neither their order nor their number changes a single bit. Labels share the run of their
item.
"""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float32, Float64, Int32
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from longmem.backbone.backbone import Backbone, BackboneOutput
from longmem.backbone.cache_assembly import CacheAssembly
from longmem.errors import ConfigError, DocumentError
from longmem.memory.view import MemoryView
from longmem.model.forward import SegmentModel, require_finite
from longmem.sidenet.demonstration_choice import (
    DemonstrationIndex,
    DemonstrationPlan,
    DemonstrationQuery,
    Nearest,
    Similarity,
    upper_layers,
)

LABELS_AT_ONCE = 16
"""Labels of several tokens that continue an item together; each of them copies its cache."""


@dataclass(frozen=True)
class LabelPrompt:
    """An item without its target, and the labels to score."""

    name: str
    context: Int32[np.ndarray, " context"]
    """Start token and demonstrations in context; may be empty."""
    own: Int32[np.ndarray, " own"]
    """Tokens of the item after them; at least one."""
    targets: tuple[Int32[np.ndarray, "..."], ...]
    """Tokens of each label."""
    left_out: int | None = None
    """Index of the demonstration in memory that this item is; it sees neither that one nor its segment."""

    @property
    def num_read(self) -> int:
        """Tokens in front of the label."""
        return len(self.context) + len(self.own)

    @property
    def longest(self) -> int:
        """Tokens of the longest label."""
        return max(map(len, self.targets))


@dataclass(frozen=True)
class CandidateScores:
    """Scores of labels by one model."""

    logprobs: Float32[np.ndarray, " labels"]
    """Natural log-probability of each label: sum over its tokens."""
    first_choice: int
    """Most probable token of the vocabulary where a label begins."""


@dataclass(frozen=True)
class LabelledScore:
    """Scores of one item with the memory and without, and the demonstrations behind them."""

    name: str
    longmem: CandidateScores
    backbone: CandidateScores
    read: Int32[np.ndarray, " read"] = field(default_factory=lambda: np.zeros(0, dtype=np.int32))
    """Demonstrations that were read, the nearest last."""
    nearest: dict[Similarity, Nearest] = field(default_factory=dict)
    """Nearest demonstrations by each similarity of `COMPARED`; empty without memory."""
    regression: Float64[np.ndarray, " labels"] | None = None
    """Share of each label by regression on the states of demonstrations; None without memory or known labels."""


@dataclass(frozen=True)
class LabelReading:
    """Scores of one item with the memory, and the demonstrations that it read."""

    scores: CandidateScores
    read: Int32[np.ndarray, " read"]
    """Demonstrations, the nearest last."""


CHOSEN_BY_TOKENS = ("idf", "random")
"""Choices of demonstrations that need no states of the item."""

COMPARED: tuple[Similarity, ...] = ("idf", "values", "target")
"""Similarities whose nearest demonstrations an answer names: shared words, meaning, and the state that predicts the
target."""


@torch.no_grad()
def score_labels(
    model: SegmentModel,
    prompts: Sequence[LabelPrompt],
    view: MemoryView | None = None,
    plan: DemonstrationPlan | None = None,
) -> list[LabelledScore]:
    """Return scores in the order of the prompts; `plan` says which demonstrations of `view` they read.

    Raises ConfigError for a model that stores one layer, DocumentError for an item that does not fit a segment,
    NumericError.
    """
    index = None if view is None or plan is None else _index(model, view, plan)
    contexts = _Contexts(model)
    return [_score(model, prompt, contexts.of(prompt), view, index) for prompt in prompts]


@torch.no_grad()
def read_labels(
    model: SegmentModel, prompts: Sequence[LabelPrompt], view: MemoryView, plan: DemonstrationPlan
) -> list[LabelReading]:
    """Return scores with the memory alone, in the order of the prompts: the backbone runs once for an item.

    Equal to those of `score_labels`, which also runs the item without memory, and compares it with demonstrations.
    Raises what `score_labels` raises, and ConfigError for a choice of demonstrations by states of that other run.
    """
    if plan.choice not in CHOSEN_BY_TOKENS:
        raise ConfigError(
            f"expected demonstrations chosen by {' or '.join(CHOSEN_BY_TOKENS)}, got {plan.choice}, which compares "
            "states of an item that has been run"
        )
    index, contexts, found = _index(model, view, plan), _Contexts(model), []
    for prompt in prompts:
        context = contexts.of(prompt)
        chosen = index.choose(DemonstrationQuery(prompt.own, left_out=prompt.left_out), _room(model.backbone, prompt))
        scores, _ = _run(model.backbone, prompt, _behind(model.backbone, context, view, chosen.places))
        found.append(LabelReading(scores, chosen.index))
    return found


def _index(model: SegmentModel, view: MemoryView, plan: DemonstrationPlan) -> DemonstrationIndex:
    if not model.config.reads_all_layers:
        raise ConfigError("whole demonstrations are read at every layer: use a model with memory_layers=all")
    return DemonstrationIndex(view, plan, model.config.segment_tokens, model.backbone.num_layers)


def _room(backbone: Backbone, prompt: LabelPrompt) -> int | None:
    """Return how many tokens of demonstrations fit in front of an item and its labels; None without a limit."""
    limit = backbone.max_tokens
    return None if limit is None else limit - 1 - prompt.num_read - prompt.longest


def _check(prompt: LabelPrompt, segment_tokens: int) -> None:
    if not len(prompt.own) or not prompt.targets or not min(map(len, prompt.targets)):
        raise DocumentError(f"item {prompt.name}: expected a token to read and labels of at least one token")
    if (needed := prompt.num_read + prompt.longest - 1) > segment_tokens:
        raise DocumentError(
            f"item {prompt.name}: {needed} tokens are read, but the local context holds {segment_tokens}: shorten the "
            "item, give it fewer examples in context, or use a model with longer segments"
        )


class _Contexts:
    """Contexts of the items of one request."""

    def __init__(self, model: SegmentModel) -> None:
        self._model = model
        self._known: dict[bytes, _Context] = {}

    def of(self, prompt: LabelPrompt) -> "_Context":
        """Return the context of a prompt, run once. Raises DocumentError for a prompt that does not fit."""
        _check(prompt, self._model.config.segment_tokens)
        key = prompt.context.tobytes()
        if key not in self._known:
            self._known[key] = _Context(self._model, prompt.context)
        return self._known[key]


class _Context:
    """Start token and demonstrations in context, run once for all items that follow them."""

    def __init__(self, model: SegmentModel, tokens: Int32[np.ndarray, " context"]) -> None:
        backbone, start = model.backbone, model.tokenizer.start_token
        self._cache: Any = backbone.new_cache()
        self.num_sink = int(model.config.has_sink)
        if model.config.has_sink and tokens[:1].tolist() != [start]:
            tokens = np.concatenate([np.array([start], dtype=np.int32), tokens])
        self.output: BackboneOutput | None = None
        if len(tokens):
            every = range(backbone.num_layers)
            self.output = backbone.forward(torch.from_numpy(tokens.astype(np.int64))[None], every, None, self._cache)

    def cache(self) -> Any:
        """Return a cache of its own for one item."""
        return deepcopy(self._cache)

    def states(self, name: str) -> Float[Tensor, "context stored_heads head_dim"] | None:
        """Return `keys` or `values` of all layers, before position encoding."""
        found: Tensor | None = None if self.output is None else getattr(self.output, name)[0]
        return found


def _score(
    model: SegmentModel,
    prompt: LabelPrompt,
    context: _Context,
    view: MemoryView | None,
    index: DemonstrationIndex | None,
) -> LabelledScore:
    alone, output = _run(model.backbone, prompt, context.cache())
    if view is None or index is None:
        return LabelledScore(prompt.name, alone, alone)
    question = DemonstrationQuery(prompt.own, output.keys[0], output.values[0], prompt.left_out)
    chosen = index.choose(question, _room(model.backbone, prompt))
    longmem, output = _run(model.backbone, prompt, _behind(model.backbone, context, view, chosen.places))
    # after reading, the item's states resemble those of stored demonstrations, which have read others too
    answered = replace(question, keys=output.keys[0], values=output.values[0])
    nearest = {by: index.nearest(by, answered, index.plan.num_compared) for by in COMPARED}
    return LabelledScore(prompt.name, longmem, alone, chosen.index, nearest, index.label_shares(answered))


def _behind(backbone: Backbone, context: _Context, view: MemoryView, places: Tensor) -> Any:
    """Return the cache [sink | demonstrations from memory | demonstrations in context]."""
    parts: dict[str, list[Tensor]] = {}
    for name, stored in (("keys", view.layer_keys), ("values", view.layer_values)):
        assert stored is not None, "a view of one layer"
        chosen = stored.gather(places)
        before = context.states(name)
        sink = context.num_sink
        parts[name] = [chosen] if before is None else [before[:sink], chosen, before[sink:]]
    if not sum(map(len, parts["keys"])):
        return backbone.new_cache()
    return CacheAssembly(backbone).assemble(parts["keys"], parts["values"])


def _run(backbone: Backbone, prompt: LabelPrompt, cache: Any) -> tuple[CandidateScores, BackboneOutput]:
    """Run an item's own tokens behind a cache, then its labels; return the scores and the item's states."""
    own = torch.from_numpy(prompt.own.astype(np.int64))[None]
    output = backbone.forward(own, upper_layers(backbone.num_layers), None, cache)
    logprobs = backbone.logits(output.hidden[0, -1:]).log_softmax(dim=1)[0]
    firsts = torch.tensor([int(target[0]) for target in prompt.targets], device=logprobs.device)
    totals = logprobs[firsts].double()
    longer = [number for number, target in enumerate(prompt.targets) if len(target) > 1]
    for first in range(0, len(longer), LABELS_AT_ONCE):
        part = longer[first : first + LABELS_AT_ONCE]
        rows = [torch.from_numpy(prompt.targets[number].astype(np.int64)) for number in part]
        read = pad_sequence([row[:-1] for row in rows], batch_first=True)
        behind = deepcopy(cache)
        behind.batch_repeat_interleave(len(part))
        hidden = backbone.run(read, behind)
        for row, number in enumerate(part):
            totals[number] += backbone.target_logprobs(hidden[row], rows[row][1:]).double().sum()
    require_finite(totals, f"item {prompt.name}: log-probabilities", "check the model's weights")
    scores = CandidateScores(totals.float().cpu().numpy(), int(logprobs.argmax()))
    return scores, output
