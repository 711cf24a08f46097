# SPDX-License-Identifier: Apache-2.0
"""Choice of the whole demonstrations that an item reads at every layer, and of those whose labels may be copied.

idf       cosine of token counts, weighted by the logarithm of inverse document frequency
keys      cosine of keys, which are averaged over the tokens before the target
values    cosine of values, likewise
target    cosine of values at the place that predicts the target, after reading
random    a control; the same demonstrations for every worker and order of items

Where labels are known, they are also regressed on `values` and `target` together (`label_regression`).

Keys and values are those of the upper half of the layers, each layer centred at the mean of the demonstrations and
weighted equally. Only tokens before the target take part, so that no label decides. A demonstration that is left out,
to calibrate, sees none of its own segment: those after it have read it when they were encoded.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, TypeVar

import numpy as np
import torch
from jaxtyping import Float, Float32, Float64, Int32, Int64
from torch import Tensor
from torch.nn.functional import normalize

from longmem.config import DemonstrationChoice
from longmem.dtypes import to_array
from longmem.memory.layer_states import LayerStates
from longmem.memory.view import MemoryView
from longmem.sidenet.label_regression import LabelRegression, taking_part
from longmem.sidenet.token_overlap import TokenOverlap

Similarity = Literal["idf", "keys", "values", "target", "random"]


T = TypeVar("T")

ROWS_AT_ONCE = 4096
"""Stored tokens that are averaged at a time: half the layers of SmolLM2-135M's are 47 MB in float32."""


@dataclass(frozen=True)
class Demonstrations:
    """Whole demonstrations of one memory, in the order in which they are stored."""

    starts: Int64[np.ndarray, " demonstrations"]
    """Position in the document of each first token."""
    lengths: Int64[np.ndarray, " demonstrations"]
    """Tokens of each."""
    prompts: Int64[np.ndarray, " demonstrations"]
    """Tokens of each that lie before its target; at least 1."""


@dataclass(frozen=True)
class DemonstrationPlan:
    """Plan of the demonstrations that items read, and of those that they are compared with."""

    demonstrations: Demonstrations
    choice: DemonstrationChoice
    num_read: int
    """Demonstrations that an item reads at every layer, the nearest last; fewer where positions do not suffice."""
    num_compared: int = 64
    """Nearest demonstrations that an answer names, with their similarities."""
    labels: Int64[np.ndarray, " demonstrations"] | None = None
    """Number of each demonstration's label, to regress labels on states; None for no regression."""
    num_labels: int = 0


@dataclass(frozen=True)
class DemonstrationQuery:
    """Part of an item that asks for demonstrations, and a demonstration that it is not to read."""

    tokens: Int32[np.ndarray, " tokens"]
    keys: Float[Tensor, "tokens some_heads head_dim"] | None = None
    """Keys of the upper layers, before position encoding; None where states are not compared."""
    values: Float[Tensor, "tokens some_heads head_dim"] | None = None
    """Values of the upper layers; the last token predicts the target."""
    left_out: int | None = None
    """Index of the demonstration that the item is itself."""

    def states(self, by: Similarity) -> Float[Tensor, "tokens some_heads head_dim"]:
        """Return the states that are compared by keys, values or target."""
        found = self.keys if by == "keys" else self.values
        assert found is not None, f"a query without states does not ask by {by}"
        return found[-1:] if by == "target" else found


@dataclass(frozen=True)
class Nearest:
    """The nearest demonstrations by one similarity, best first."""

    index: Int32[np.ndarray, " found"]
    similarity: Float32[np.ndarray, " found"]


@dataclass(frozen=True)
class ChosenDemonstrations:
    """Demonstrations that one item reads."""

    index: Int32[np.ndarray, " read"]
    """Demonstrations in the order in which they are read: the nearest is last."""
    places: Int64[Tensor, " tokens"]
    """Places of their tokens in the memory, in that order."""


def upper_layers(num_layers: int) -> range:
    """Return the layers whose keys and values are compared: the upper half, which tells labels best."""
    return range(num_layers // 2, num_layers)


class DemonstrationIndex:
    """Similarities of items to the demonstrations of one view of a memory of all layers."""

    def __init__(self, view: MemoryView, plan: DemonstrationPlan, segment_tokens: int, num_layers: int) -> None:
        self._view, self.plan, self._num_layers = view, plan, num_layers
        # a copy, because arrays from another process are read-only
        starts = torch.from_numpy(np.array(plan.demonstrations.starts))
        self._segments = plan.demonstrations.starts // segment_tokens
        # places, because a segment that is not full leaves positions free
        self._places: np.ndarray = to_array(torch.searchsorted(view.starts.cpu(), starts)).copy()
        assert view.starts.cpu()[torch.from_numpy(self._places)].equal(starts), "a demonstration outside the memory"

    def similarity(self, by: Similarity, question: DemonstrationQuery) -> Float32[np.ndarray, " demonstrations"]:
        """Return the similarity of every demonstration; −∞ for those that the question must not see."""
        if by == "idf":
            found = self._kept(by, self._overlap).similarity(question.tokens)
        elif by == "random":
            # seeded by the tokens: the same draw in every batch and process
            found = np.random.default_rng(question.tokens.astype(np.uint32)).random(len(self._places))
        else:
            found = self._space_of(by).similarity(question.states(by))
        found = found.astype(np.float32)
        if question.left_out is not None:
            found[self._segments == self._segments[question.left_out]] = -np.inf
        return found

    def nearest(self, by: Similarity, question: DemonstrationQuery, number: int) -> Nearest:
        """Return at most `number` demonstrations; of equal ones the earliest first."""
        similarity = self.similarity(by, question)
        order = np.argsort(-similarity, kind="stable")[:number]
        order = order[similarity[order] > -np.inf]
        return Nearest(order.astype(np.int32), similarity[order])

    def label_shares(self, question: DemonstrationQuery) -> Float64[np.ndarray, " labels"] | None:
        """Return the share of each label that the states of all demonstrations suggest; None without labels."""
        labels, left_out = self.plan.labels, question.left_out
        if labels is None:
            return None
        part = taking_part(len(labels))
        kinds: tuple[Similarity, ...] = ("values", "target")

        def fitted() -> LabelRegression:
            gram = torch.stack([self._space_of(kind).gram(part) for kind in kinds]).mean(dim=0)
            return LabelRegression(gram, labels[part], self.plan.num_labels, self._segments[part])

        asked = np.mean([self._space_of(kind).similarity(question.states(kind))[part] for kind in kinds], axis=0)
        left = None if left_out is None else int(self._segments[left_out])
        return self._kept("regression", fitted).shares(asked, left)

    def choose(self, question: DemonstrationQuery, room: int | None) -> ChosenDemonstrations:
        """Return what the question reads: the nearest demonstrations that fit into `room` tokens (None: all fit)."""
        lengths, chosen = self.plan.demonstrations.lengths, []
        for index in self.nearest(self.plan.choice, question, self.plan.num_read).index.tolist():
            if room is not None:
                if lengths[index] > room:
                    break
                room -= int(lengths[index])
            chosen.append(index)
        chosen.reverse()
        spans = [np.arange(self._places[index], self._places[index] + lengths[index]) for index in chosen]
        places = torch.from_numpy(np.concatenate([np.zeros(0, dtype=np.int64), *spans]))
        return ChosenDemonstrations(np.array(chosen, dtype=np.int32), places.to(self._view.keys.device))

    @cached_property
    def _rows(self) -> tuple[Int64[np.ndarray, " prompt_tokens"], Int64[np.ndarray, " prompt_tokens"]]:
        """Return the place of every token before a target, and the demonstration that it belongs to."""
        prompts = self.plan.demonstrations.prompts
        owner = np.repeat(np.arange(len(prompts)), prompts)
        within = np.arange(len(owner)) - np.repeat(np.cumsum(prompts) - prompts, prompts)
        return self._places[owner] + within, owner

    def _space_of(self, by: Similarity) -> "StateSpace":
        def made() -> StateSpace:
            if by == "target":
                return self._at_targets()
            return self._space(self._view.layer_keys if by == "keys" else self._view.layer_values, *self._rows)

        return self._kept(by, made)

    def _kept(self, name: str, make: Callable[[], T]) -> T:
        """Return what `make` returns; it is kept with the view, because most requests ask for the same one."""
        units, labels = self.plan.demonstrations, self.plan.labels
        key = (name, units.starts.tobytes(), units.prompts.tobytes(), b"" if labels is None else labels.tobytes())
        return self._view.derived.get(key, make)

    def _overlap(self) -> TokenOverlap:
        places, owner = self._rows
        tokens: np.ndarray = to_array(self._view.text)
        return TokenOverlap(tokens[places], owner, len(self._places))

    def _at_targets(self) -> "StateSpace":
        places = self._places + self.plan.demonstrations.prompts - 1
        return self._space(self._view.layer_values, places, np.arange(len(places)))

    def _space(self, stored: LayerStates | None, places: np.ndarray, owner: np.ndarray) -> "StateSpace":
        """Return the space of demonstrations' mean states."""
        assert stored is not None, "a view of one layer"
        layers, device = upper_layers(self._num_layers), self._view.keys.device
        heads = stored.stored_heads // self._num_layers
        upper = (len(layers) * heads, self._view.keys.shape[3])
        means = torch.zeros((len(self._places), *upper), device=device)
        for first in range(0, len(places), ROWS_AT_ONCE):
            part = slice(first, first + ROWS_AT_ONCE)
            rows, owners = (torch.from_numpy(each[part]).to(device) for each in (places, owner))
            means.index_add_(0, owners, stored.gather(rows)[:, layers.start * heads :].float())
        counts = torch.from_numpy(np.bincount(owner, minlength=len(self._places))).to(device)
        return StateSpace((means / counts[:, None, None]).unflatten(1, (len(layers), heads)).flatten(2))


class StateSpace:
    """Cosines of keys or values, averaged over layers."""

    def __init__(self, states: Float32[Tensor, "demonstrations layers width"]) -> None:
        self._mean = states.mean(dim=0)
        self._states = normalize(states - self._mean, dim=2)

    def similarity(self, states: Float[Tensor, "tokens some_heads head_dim"]) -> np.ndarray:
        """Return the mean cosine over layers of the tokens' mean state with that of every demonstration."""
        asked = states.float().mean(dim=0).flatten().view_as(self._mean) - self._mean
        found: np.ndarray = to_array((self._states * normalize(asked, dim=1)).sum(dim=2).mean(dim=1))
        return found

    def gram(self, part: Int64[np.ndarray, " some"]) -> Float32[Tensor, "some some"]:
        """Return the similarity of demonstrations to one another."""
        states = self._states[torch.from_numpy(part)]
        return torch.einsum("ilw,jlw->ij", states, states) / states.shape[1]
