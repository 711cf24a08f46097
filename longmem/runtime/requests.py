# SPDX-License-Identifier: Apache-2.0
"""Requests that one worker with the whole model answers at once: it reads stored documents and writes nothing.

Imports torch only to answer, because a driver makes requests and has no model.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float32, Int32

from longmem.runtime.steps import OnStep
from longmem.scoring.evaluation_window import EvaluationWindow
from longmem.types import SegmentInfo

if TYPE_CHECKING:
    from longmem.memory.window_cache import WindowCache
    from longmem.model.longmem import LongMem
    from longmem.scoring.batch import Item, ItemScore
    from longmem.scoring.labels import LabelledScore, LabelPrompt
    from longmem.sidenet.demonstration_choice import DemonstrationPlan


class Request(ABC):
    """Work that travels to a worker; `str` names it in messages."""

    @abstractmethod
    def answer(self, model: "LongMem", windows: "WindowCache") -> Any:
        """Return the result; stored documents are read through `windows`, which the worker keeps between requests.

        Raises LongMemError for what the user can fix.
        """

    def answer_in_steps(self, model: "LongMem", windows: "WindowCache", on_step: OnStep) -> Any:  # noqa: ARG002
        """Return `answer`; a request that takes minutes calls `on_step` after each of its steps."""
        return self.answer(model, windows)


@dataclass(frozen=True)
class ItemsRequest(Request):
    """Score items that all follow the same memory."""

    memory: SegmentInfo | None
    """The last block of the document that is read; None for no memory."""
    items: "tuple[Item, ...]"
    keep_places: bool = False
    """True to report the places that each item's first target was taken from."""

    def answer(self, model: "LongMem", windows: "WindowCache") -> "list[ItemScore]":
        """Raise what `score_items` and `WindowCache.whole` raise."""
        from longmem.scoring.batch import score_items

        views = [windows.whole(self.memory)] * len(self.items)
        return score_items(model, self.items, views, keep_places=self.keep_places)

    def __str__(self) -> str:
        return f"scores of {len(self.items)} items after {self.memory.key if self.memory else 'nothing'}"


@dataclass(frozen=True)
class LabelsRequest(Request):
    """Score labels of items that read whole demonstrations of the same memory."""

    memory: SegmentInfo | None
    """The last block of the document that is read; None for no memory."""
    prompts: "tuple[LabelPrompt, ...]"
    plan: "DemonstrationPlan | None" = None
    """Plan of the demonstrations that are read; None without memory."""

    def answer(self, model: "LongMem", windows: "WindowCache") -> "list[LabelledScore]":
        """Raise what `score_labels` and `WindowCache.whole` raise."""
        from longmem.scoring.labels import score_labels

        return score_labels(model, self.prompts, windows.whole(self.memory), self.plan)

    def __str__(self) -> str:
        where = f"demonstrations of {self.memory.key}" if self.memory else "nothing"
        return f"labels of {len(self.prompts)} items after {where}"


@dataclass(frozen=True)
class CompletionsRequest(Request):
    """Continue prompts that all follow the same memory, each within one segment, with the most probable tokens."""

    memory: SegmentInfo | None
    prompts: tuple[Int32[np.ndarray, "..."], ...]
    max_new_tokens: int
    until: str
    """Text at which a continuation ends."""

    def answer(self, model: "LongMem", windows: "WindowCache") -> list[str]:
        """Raise what `complete` and `WindowCache.whole` raise."""
        from longmem.scoring.generate import complete

        view = windows.whole(self.memory)
        return [complete(model, prompt, view, self.max_new_tokens, self.until) for prompt in self.prompts]

    def __str__(self) -> str:
        return f"{len(self.prompts)} completions after {self.memory.key if self.memory else 'nothing'}"


@dataclass(frozen=True)
class WindowRequest(Request):
    """Score one evaluation window of a document under the backbone alone."""

    document: str
    window: EvaluationWindow

    def answer(self, model: "LongMem", windows: "WindowCache") -> Float32[np.ndarray, " targets"]:  # noqa: ARG002
        """Raise what `score_window` raises."""
        from longmem.scoring.window_scores import score_window

        return score_window(model, self.window, self.document)

    def __str__(self) -> str:
        return f"score of {self.document} evaluation window {self.window.index}"
