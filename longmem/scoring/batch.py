# SPDX-License-Identifier: Apache-2.0
"""Batched scores of short texts that follow a memory: test items after demonstrations, endings after a book.

    memory (read, never written)        item
    ─────────────────────────────┤ start, context …, target, target ├
                                         └── one local context, at most `segment_tokens` ──┘

An item has a local context of its own and reads one view. Items are padded on the right and run together; causal
attention never looks at what comes after, so a batch changes no score beyond rounding. Items with the same tokens
before their first target run these once for each view: six endings of a long context cost little more than one.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Bool, Float32, Int, Int32, Int64
from torch import Tensor

from longmem.backbone.shared_prompts import shared_tokens
from longmem.dtypes import to_array, to_tensor
from longmem.errors import DocumentError
from longmem.memory.view import MemoryView
from longmem.model.forward import SegmentModel, require_finite
from longmem.sidenet.copies import Copies
from longmem.sidenet.readers import RetrievedMemory
from longmem.sidenet.reading_model import RowPrompt
from longmem.sidenet.token_readings import PlacesRead, positions_of, token_readings
from longmem.types import TokenReadings

BATCH_TOKENS = 4096
"""Padded tokens of one forward: enough that a small model's matrix products fill a core's vector units."""
CACHE_TOKENS = 12 * BATCH_TOKENS
"""Tokens whose keys and values are held at once for rows that share a prompt: 1.1 GiB in bfloat16 for 30 layers of
width 192."""
READ_TOKENS = 32 * BATCH_TOKENS
"""Padded tokens of all items of a batch that reads every layer: 5 KB each, for a hidden size of 576."""


@dataclass(frozen=True)
class Item:
    """Text to read, and the part of it to score."""

    name: str
    tokens: Int32[np.ndarray, " tokens"]
    """Everything that is read or predicted, the start token included."""
    first_target: int
    """Tokens from here to the end are scored; at least 1, because the first token has nothing before it."""
    alternatives: Int32[np.ndarray, " alternatives"] = field(default_factory=lambda: np.zeros(0, dtype=np.int32))
    """Other tokens whose probability is wanted where the first target is predicted: one row then scores many one-token
    labels."""
    continues: bool = False
    """True where the text was cut from that of its memory; False for a text of its own."""

    @property
    def num_targets(self) -> int:
        return len(self.tokens) - self.first_target

    @property
    def num_read(self) -> int:
        """Tokens that the model reads: the last one is only predicted."""
        return len(self.tokens) - 1


@dataclass(frozen=True)
class TargetScores:
    """Scores that one model gives an item's targets."""

    logprobs: Float32[np.ndarray, " targets"]
    """Natural logarithms."""
    greedy: Bool[np.ndarray, " targets"]
    """True where the target is the most probable token of the vocabulary."""
    choices: Int64[np.ndarray, " targets"]
    """Most probable token of the vocabulary where each target is predicted."""
    alternatives: Float32[np.ndarray, " alternatives"]
    """Natural logarithms for the item's alternatives."""

    @property
    def first_choice(self) -> int:
        """Return the most probable token where the first target is predicted."""
        return int(self.choices[0])

    @property
    def total(self) -> float:
        """Log-probability of all targets together."""
        return float(self.logprobs.sum(dtype=np.float64))


@dataclass(frozen=True)
class TakenPlaces:
    """Places of the memory whose content was taken where an item's first target is predicted.

    A place is the position of the copied token, or without a copy head of the one whose value was attended to. A place
    that several heads found is one place with the sum of their weights.
    """

    positions: Int64[np.ndarray, " taken"]
    """Positions in the document, ascending."""
    weights: Float32[np.ndarray, " taken"]
    """Weights in the copy distribution, or mean attention weights over heads; they sum to 1."""
    copy_share: float
    """Share of the copies in the prediction; 0 without a copy head."""


@dataclass(frozen=True)
class ItemScore:
    """An item's targets with memory and under the backbone alone, and where the memory was read."""

    name: str
    longmem: TargetScores
    backbone: TargetScores
    reads: Int64[np.ndarray, "targets read"]
    """Positions in the memory of the chunks that were read where each target is predicted, -1 for a missing one: those
    retrieved, best first for each head, then those that hold repeats; `read` is 0 without memory."""
    taken: TakenPlaces | None = None
    """Places behind the prediction of the first target; None where none was read, or `keep_places` was false."""
    readings: TokenReadings | None = None
    """Readings of all targets, of the four heaviest places each; None where `keep_readings` was false."""


def score_items(
    model: SegmentModel,
    items: Sequence[Item],
    views: Sequence[MemoryView | None],
    batch_tokens: int = BATCH_TOKENS,
    *,
    keep_places: bool = False,
    keep_readings: bool = False,
) -> list[ItemScore]:
    """Return scores in the order of the items; item i reads `views[i]`. Rows that share a view share one search.

    With `keep_places`, each score has the places that its first target was taken from. With `keep_readings`, it tells
    what the prediction of every target read.

    Raises DocumentError for an item without targets or longer than a segment, NumericError.
    """
    assert len(items) == len(views), f"{len(items)} items, {len(views)} views"
    for item in items:
        check_item(item, model.config.segment_tokens)
    scores: dict[int, ItemScore] = {}
    for batch in _batches(items, _Limits.of(model, batch_tokens)):
        chosen = [items[i] for i in batch], [views[i] for i in batch]
        for index, score in zip(batch, _score_batch(model, *chosen, keep_places, keep_readings), strict=True):
            scores[index] = score
    return [scores[index] for index in range(len(items))]


def check_item(item: Item, segment_tokens: int) -> None:
    """Raise DocumentError for an item that cannot be scored in one local context."""
    if not 1 <= item.first_target < len(item.tokens):
        raise DocumentError(
            f"item {item.name}: expected at least one token to read and one to predict, got {len(item.tokens)} tokens "
            f"of which those from {item.first_target} on are predicted"
        )
    if item.num_read > segment_tokens:
        raise DocumentError(
            f"item {item.name}: {item.num_read} tokens are read, but the local context holds {segment_tokens}: shorten "
            "the item, give it fewer examples in context, or use a model with longer segments"
        )


def _batches(items: Sequence[Item], limits: "_Limits") -> Iterator[list[int]]:
    """Yield indices of items that run together: those of one long prompt, or those of similar length."""
    of_prompt: dict[bytes, list[int]] = {}
    for index, item in enumerate(items):
        of_prompt.setdefault(item.tokens[: item.first_target].tobytes(), []).append(index)
    whole: list[int] = []
    for indices in of_prompt.values():
        texts = {items[index].tokens.tobytes() for index in indices}
        shared = shared_tokens(items[indices[0]].first_target, len(texts))
        if not shared:
            whole += indices
            continue
        # rows of one text follow each other, because they run once, for all their views
        ordered = sorted(indices, key=lambda index: (items[index].num_read, items[index].tokens.tobytes()))
        yield from _fitting(items, ordered, limits, shared)
    yield from _fitting(items, sorted(whole, key=lambda index: items[index].num_read), limits, 0)


@dataclass(frozen=True)
class _Limits:
    """Bounds of a batch in tokens."""

    run: int
    """Padded tokens of one forward, behind the shared ones."""
    cached: int
    """Tokens whose keys and values are held for the rows of one prompt."""
    read: int
    """Padded tokens of all items, whose hidden states and copies are held."""
    memory: int
    """Tokens of memory in front of each row."""

    @classmethod
    def of(cls, model: SegmentModel, batch_tokens: int) -> "_Limits":
        config = model.config
        if not model.sidenet.runs_backbone:
            # a SideNet runs every item whole
            return cls(batch_tokens, CACHE_TOKENS, batch_tokens, 0)
        memory = config.near_tokens + config.read_blocks * config.block_tokens
        return cls(batch_tokens, CACHE_TOKENS, READ_TOKENS, memory)


def _fitting(items: Sequence[Item], ordered: list[int], limits: _Limits, shared: int) -> Iterator[list[int]]:
    """Yield pieces of `ordered`, ascending in length, that fit the limits. One item always fits."""
    batch: list[int] = []
    num_rows, last = 0, b""
    for index in ordered:
        length, text = items[index].num_read, items[index].tokens.tobytes()
        is_new = not shared or text != last
        rows = num_rows + is_new
        fits = rows * (length - shared) <= limits.run and (len(batch) + 1) * length <= limits.read
        if shared:
            fits = fits and rows * (limits.memory + length) <= limits.cached
        if batch and not fits:
            yield batch
            batch, rows = [], 1
        batch.append(index)
        num_rows, last = rows, text
    if batch:
        yield batch


@torch.no_grad()
def _score_batch(
    model: SegmentModel,
    items: list[Item],
    views: list[MemoryView | None],
    keep_places: bool,
    keep_readings: bool,
) -> list[ItemScore]:
    width = max(item.num_read for item in items)
    tokens = torch.zeros((len(items), width), dtype=torch.long)
    for row, item in enumerate(items):
        tokens[row, : item.num_read] = torch.from_numpy(item.tokens[:-1].astype(np.int64))
    backbone = model.backbone
    # what needs no memory is done once for all views
    different, row_of = torch.unique(tokens, dim=0, return_inverse=True)
    # rows of one text may be scored from different tokens on: their prompts share at least the shortest
    prompts_of = torch.full((len(different),), width).scatter_reduce(
        0, row_of, torch.tensor([item.first_target for item in items]), "amin"
    )
    encoded = model.run_prompts(different, prompts_of.tolist())
    # keys are not rounded to the stored type, as nothing is stored: rounding would turn the last bit of a sum, which
    # depends on the batch, into a difference of 1e-4 nats
    once = model.sidenet_input(different, encoded, [None] * len(different), keys=encoded.keys)
    row_of = row_of.to(backbone.device)
    alone = encoded.hidden[row_of]
    # a row without a memory is the backbone's own where nothing trained changes it
    reading_rows = [row for row, view in enumerate(views) if view is not None or model.sidenet.changes_backbone]
    place_of = {row: place for place, row in enumerate(reading_rows)}
    read = None
    if reading_rows:
        index = row_of[torch.tensor(reading_rows, device=backbone.device)]
        # tokens before the first target are known before anything is predicted: they choose what is read
        prompts = [RowPrompt(items[row].first_target, items[row].continues) for row in reading_rows]
        given = once.rows(index, [views[row] for row in reading_rows], prompts)
        read = model.sidenet(given, model.search)
    scores = []
    for row, item in enumerate(items):
        # the position before each target predicts it
        rows = slice(item.first_target - 1, item.num_read)
        targets = torch.from_numpy(item.tokens[item.first_target :].astype(np.int64)).to(backbone.device)
        own, view = tokens[row, : item.num_read], views[row]
        without = _target_scores(model, item, alone[row, rows], targets, None)
        if read is None or row not in place_of:
            nothing, readings = np.zeros((rows.stop - rows.start, 0), dtype=np.int64), None
            if keep_readings:
                uncopied = to_tensor(without.logprobs, backbone.device)
                readings = token_readings(None, None, None, own, targets, uncopied, rows.start)
            scores.append(ItemScore(item.name, without, without, nothing, None, readings))
            continue
        place, readings = place_of[row], None
        copies, reading = read.copies[place], read.readings[place]
        places = model.sidenet.places_read(read, place) if keep_places or keep_readings else None
        if keep_readings:
            uncopied = model.backbone.target_logprobs(read.hidden[place, rows], targets)
            readings = token_readings(places, read.layers_read[place], view, own, targets, uncopied, rows.start)
        scores.append(
            ItemScore(
                item.name,
                _target_scores(model, item, read.hidden[place, rows], targets, copies and copies.rows(rows)),
                without,
                _reads(reading, copies, view, rows),
                _taken(places, view, rows.start) if keep_places else None,
                readings,
            )
        )
    return scores


def _target_scores(
    model: SegmentModel, item: Item, hidden: Tensor, targets: Int[Tensor, " targets"], copies: Copies | None
) -> TargetScores:
    logprobs = model.backbone.target_logprobs(hidden, targets)
    if copies is not None:
        logprobs = copies.mix_targets(logprobs, targets)
    require_finite(logprobs, f"item {item.name}: log-probabilities", "check the model's weights")
    logits = model.backbone.logits(hidden)
    mixed = logits if copies is None else copies.mix_logits(logits)
    chosen = mixed.argmax(dim=1)
    alternatives = torch.from_numpy(item.alternatives.astype(np.int64)).to(mixed.device)
    return TargetScores(
        logprobs=to_array(logprobs),
        greedy=to_array(chosen == targets),
        choices=to_array(chosen),
        alternatives=to_array(mixed[0].float().log_softmax(dim=0)[alternatives]),
    )


def _reads(
    reading: RetrievedMemory | None, copies: Copies | None, view: MemoryView | None, rows: slice
) -> Int64[np.ndarray, "targets read"]:
    if reading is None or view is None:
        return np.zeros((rows.stop - rows.start, 0), dtype=np.int64)
    ids = reading.chunk_ids[rows].flatten(1)
    if copies is not None and copies.repeated is not None:
        repeated = copies.repeated.rows(rows)
        chunks = view.slots_in_order[repeated.index] // view.chunk_size
        ids = torch.cat([ids, chunks.where(repeated.valid, -1)], dim=1)
    starts: np.ndarray = to_array(view.starts[ids.clamp(min=0)].where(ids >= 0, -1))
    return starts


def _taken(read: PlacesRead | None, view: MemoryView | None, token: int) -> TakenPlaces | None:
    """Return the places that one token of a row read."""
    if read is None or view is None:
        return None
    weights = read.weights[token].float()
    # the token after the newest stored one would be the item's first, which is no place of the memory
    positions = torch.cat([positions_of(view), torch.tensor([view.end_token], device=view.starts.device)])
    places = positions[read.index[token] + int(read.continued)][weights > 0]
    distinct, group = places.unique(return_inverse=True)
    # in float64 on the CPU, one after the other: the sums depend on nothing but their terms
    sums = np.zeros(len(distinct))
    np.add.at(sums, to_array(group), to_array(weights[weights > 0]).astype(np.float64))
    return TakenPlaces(to_array(distinct), sums.astype(np.float32), float(read.share[token]))
