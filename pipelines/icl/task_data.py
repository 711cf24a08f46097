# SPDX-License-Identifier: Apache-2.0
"""Tokenised task: demonstrations and items, and their assignment to grid points.

Each seed gives another order of the demonstrations. The first ones are put in context, the next ones in memory.
Therefore no demonstration is in both, a memory does not depend on the context, and a larger memory begins with a
smaller one.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from longmem.backbone.tokenizer import Tokenizer
from longmem.errors import ConfigError, DocumentError
from longmem.sidenet.demonstration_choice import Demonstrations
from longmem.text.demonstrations import Tokens, digest, pack, positions_of, segments_of
from longmem.types import DocumentKey, Segment
from longmem.wording import part_of
from pipelines.icl.task import Example, IclTask

NAMESPACE = "icl"
ITEM_ORDER_SEED = 20230607
"""Seed of the single shuffle of items in all runs: files are often sorted by label, and a limit takes the first."""


@dataclass(frozen=True, order=True)
class GridPoint:
    """Point of the grid."""

    task: str
    seed: int
    shots: int
    """Requested demonstrations in context."""
    memory_shots: int


@dataclass(frozen=True)
class EncodedDemonstrations:
    """Tokens of one example."""

    example: Example
    prompt: Tokens
    demonstration: Tokens
    """Tokens of the whole example, including its target."""
    targets: dict[str, Tokens]
    """Tokens to predict for each label, after the prefix that all labels share."""


@dataclass(frozen=True)
class Prompt:
    """Prompt of one item at one grid point."""

    index: int
    """Index of the item among the task's items."""
    tokens: Tokens
    """Start token, demonstrations in context, and the item without its target."""
    targets: dict[str, Tokens]
    shots: int
    """Demonstrations that fit in context."""
    num_own: int
    """Tokens of the item itself, at the end of `tokens`."""
    gold: str
    """Right label, or first accepted answer."""


@dataclass(frozen=True)
class Memory:
    """Demonstrations of one seed, packed as a document."""

    name: str
    """Task and seed, for messages; the document's name is a digest."""
    key: DocumentKey
    segments: list[Segment]
    num_demonstrations: int
    units: Demonstrations
    labels: list[str]
    """Label, or first accepted answer, of each demonstration."""

    @property
    def num_tokens(self) -> int:
        return sum(segment.num_tokens for segment in self.segments)


class PreparedTask:
    """Tokenised task; examples that do not fit a segment are skipped and counted.

    Raises DocumentError and ConfigError for unusable data.
    """

    def __init__(
        self,
        task: IclTask,
        tokenizer: Tokenizer,
        segment_tokens: int,
        limit_items: int | None,
        largest_shots: int,
        pack_tokens: int | None = None,
    ) -> None:
        """Read and tokenise a task.

        `largest_shots` is the maximum of demonstrations in context over the grid; of those in memory, `pack_tokens`
        are encoded together (None: as many as fit a segment).
        """
        self._tokenizer = tokenizer
        self._segment_tokens = segment_tokens
        self._largest_shots = largest_shots
        self._start = [] if tokenizer.start_token is None else [tokenizer.start_token]
        self._memories: dict[tuple[int, int], Memory] = {}
        self._orders: dict[int, list[int]] = {}
        train = task.examples(task.train)
        if not train:
            raise DocumentError(f"task {task.name}: {task.train} has no rows; expected demonstrations")
        if not task.generates:
            task = _with_words(task, train)
        self.task = task
        self.pack_by(segment_tokens if pack_tokens is None else pack_tokens)
        demonstrations = [self._encode(example, with_targets=False) for example in train]
        room = segment_tokens - len(self._start)
        self.demonstrations = [encoded for encoded in demonstrations if len(encoded.demonstration) <= room]
        self.num_long_demonstrations = len(demonstrations) - len(self.demonstrations)
        order = np.random.default_rng(ITEM_ORDER_SEED)
        test = task.examples(task.test)
        if not test:
            raise DocumentError(f"task {task.name}: {task.test} has no rows; expected at least one item")
        items = [self._encode(test[index], with_targets=True) for index in order.permutation(len(test))[:limit_items]]
        self.items = [item for item in items if self._room_for(item) >= 0]
        self.num_long_items = len(items) - len(self.items)
        if not self.items:
            raise DocumentError(
                f"task {task.name}: {part_of(0, len(items), 'item')} fits a segment of {segment_tokens} tokens; use "
                "longer segments (--segment-tokens)"
            )

    @property
    def labels(self) -> list[str]:
        return list(self.task.words)

    def pack_by(self, pack_tokens: int) -> None:
        """Let at most `pack_tokens` of the demonstrations in memory be encoded together, and at most a segment."""
        self.pack_tokens = self._segment_tokens if self.task.generates else min(pack_tokens, self._segment_tokens)
        self._memories.clear()

    def check(self, memory_shots: int) -> None:
        """Raise ConfigError if there are too few demonstrations for the largest grid point."""
        needed = self._largest_shots + memory_shots
        if needed > len(self.demonstrations):
            raise ConfigError(
                f"task {self.task.name}: {self._largest_shots} demonstrations in context and {memory_shots} in memory "
                f"are {needed}, but {self.task.train.name} has {len(self.demonstrations)} that fit a segment; use fewer"
            )

    def memory(self, seed: int, memory_shots: int) -> Memory | None:
        """Return the memory of a seed, or None for 0 shots.

        Its key is derived from its content, so that a later job with the same tokens finds it in the store.
        """
        if memory_shots == 0:
            return None
        if (seed, memory_shots) not in self._memories:
            self._memories[seed, memory_shots] = self._pack(seed, memory_shots)
        return self._memories[seed, memory_shots]

    def _pack(self, seed: int, memory_shots: int) -> Memory:
        chosen = self._in_memory(seed, memory_shots)
        demonstrations = [encoded.demonstration for encoded in chosen]
        packed = pack(demonstrations, self._segment_tokens, self._tokenizer.start_token, self.pack_tokens)
        key = DocumentKey(NAMESPACE, f"{self.task.name}-{memory_shots}-{digest(packed)}")
        units = Demonstrations(
            starts=np.array(positions_of(demonstrations, packed, self._segment_tokens)),
            lengths=np.array([len(encoded.demonstration) for encoded in chosen]),
            prompts=np.array([num_common(encoded.prompt, encoded.demonstration) for encoded in chosen]),
        )
        labels = [encoded.example.answers[0] for encoded in chosen]
        name = f"{self.task.name}, seed {seed}"
        return Memory(name, key, segments_of(key, packed, self._segment_tokens), memory_shots, units, labels)

    def prompts(self, point: GridPoint) -> list[Prompt]:
        """Return the prompts of all items. If demonstrations do not fit, those nearest to the item are kept whole."""
        context = self._in_context(point)
        return [self._prompt(index, item, context) for index, item in enumerate(self.items)]

    def left_out(self, point: GridPoint, number: int) -> list[Prompt]:
        """Return at most `number` demonstrations in memory as items with known labels, spread evenly over the memory.

        Their indices are those of the demonstrations. One that does not fit a segment as an item is skipped. A memory
        of one segment has none: a demonstration is asked without those of its segment, so nothing would be left.
        """
        memory = self.memory(point.seed, point.memory_shots)
        if memory is None or len(memory.segments) < 2:
            return []
        chosen = self._in_memory(point.seed, point.memory_shots)
        spread = np.linspace(0, len(chosen) - 1, min(number, len(chosen))).round().astype(int).tolist()
        items = {index: self._encode(chosen[index].example, with_targets=True) for index in spread}
        context = self._in_context(point)
        return [self._prompt(index, item, context) for index, item in items.items() if self._room_for(item) >= 0]

    def _in_context(self, point: GridPoint) -> list[Tokens]:
        return [self.demonstrations[number].demonstration for number in self.order(point.seed)[: point.shots]]

    def _prompt(self, index: int, item: EncodedDemonstrations, context: Sequence[Tokens]) -> Prompt:
        room, kept = self._room_for(item), 0
        for demonstration in reversed(context):
            if len(demonstration) > room:
                break
            room -= len(demonstration)
            kept += 1
        tokens = self._tokenizer.begin(np.concatenate([*context[len(context) - kept :], item.prompt]))
        return Prompt(index, tokens, item.targets, kept, len(item.prompt), item.example.answers[0])

    def digest(self) -> str:
        """Return a hash of all demonstrations and items; a resumed job must have the same."""
        return digest([encoded.demonstration for encoded in self.demonstrations] + [item.prompt for item in self.items])

    def order(self, seed: int) -> list[int]:
        """Return the numbers of the demonstrations in the order of a seed: those in context first, then those in
        memory."""
        if seed not in self._orders:
            self._orders[seed] = np.random.default_rng(seed).permutation(len(self.demonstrations)).tolist()
        return self._orders[seed]

    def numbers_in_memory(self, seed: int, memory_shots: int) -> list[int]:
        """Return the number of each demonstration in memory."""
        return self.order(seed)[self._largest_shots : self._largest_shots + memory_shots]

    def _in_memory(self, seed: int, memory_shots: int) -> list[EncodedDemonstrations]:
        return [self.demonstrations[number] for number in self.numbers_in_memory(seed, memory_shots)]

    def _room_for(self, item: EncodedDemonstrations) -> int:
        """Return the tokens of a segment that the item leaves free; the last target token is predicted, not read."""
        longest = max((len(target) for target in item.targets.values()), default=self.task.max_new_tokens)
        return self._segment_tokens - len(self._start) - len(item.prompt) - longest + 1

    def _encode(self, example: Example, with_targets: bool) -> EncodedDemonstrations:
        demonstration = self._tokens(f"{example.prompt} {self.task.target_text(example)}{example.after}")
        prompt = self._tokens(example.prompt)
        if not with_targets or self.task.generates:
            return EncodedDemonstrations(example, prompt, demonstration, {})
        whole = {label: self._tokens(f"{example.prompt} {word}") for label, word in self.task.words.items()}
        # a tokenizer may merge the end of the prompt with the word: targets begin at the first token where any label
        # differs from the prompt alone
        common = min(num_common(prompt, tokens) for tokens in whole.values())
        targets = {label: tokens[common:] for label, tokens in whole.items()}
        return EncodedDemonstrations(example, prompt[:common], demonstration, targets)

    def _tokens(self, text: str) -> Tokens:
        return self._tokenizer.tokens(text)


def _with_words(task: IclTask, train: Sequence[Example]) -> IclTask:
    """Return the task with the labels of its demonstrations. Raises DocumentError for a label without any."""
    seen = sorted({example.answers[0] for example in train})
    if empty := [label for label in task.words if label not in seen]:
        raise DocumentError(
            f"task {task.name}: no demonstration in {task.train} has the label {', '.join(empty)}; remove the label "
            "from the task, or add demonstrations of it"
        )
    words = task.words or {label: label for label in seen}
    if len(words) < 2:
        raise DocumentError(f"task {task.name}: labels need at least two classes, {task.train} has {', '.join(words)}")
    return replace(task, words=words)


def num_common(first: Tokens, second: Tokens) -> int:
    """Return the number of tokens that both begin with."""
    length = min(len(first), len(second))
    differ = np.flatnonzero(first[:length] != second[:length])
    return int(differ[0]) if len(differ) else length
