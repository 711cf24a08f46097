# SPDX-License-Identifier: Apache-2.0
"""Answers that all pages of items share: the choice of a cell, lists of items of one kind, and pages of a list."""

from abc import abstractmethod
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from pipelines.view.questions import AbstractAnswers, BadRequestError, NoSuchAnswerError

PAGE_ITEMS = 200
"""Items of one page."""
LISTED_CHARACTERS = 240
"""Characters of an item in a list; its end, where the answer follows, is kept."""
KINDS = {
    "all": "all",
    "wrong": "LongMem wrong",
    "right": "LongMem right",
    "gained": "right only with LongMem",
    "lost": "right only without",
}
"""Kinds of items that a list can be limited to, with what a page calls them."""


@dataclass(frozen=True)
class Control:
    """Choice on the page that limits its items."""

    name: str
    letter: str
    """Name in the address of the page."""
    title: str
    options: list[tuple[int, str]]
    """Values with what the page calls them."""
    initial: int


class ItemAnswers(AbstractAnswers):
    """Answers about one job whose results are items with a right answer. Thread-safe.

    A row of an item has its number `item`, the right answer `gold`, both answers `longmem` and `backbone` (None for no
    answer), and whether they are right: `right`, and `backbone_right`, which is None where nothing was asked.
    """

    page_kind = "items"
    kinds: ClassVar[dict[str, str]] = KINDS

    def answer(self, name: str, number: Callable[[str], int]) -> Any:
        if name == "run":
            return self.run()
        if name not in ("items", "item", "token"):
            raise NoSuchAnswerError(name)
        task = number("task")
        if not 0 <= task < len(self._names):
            raise BadRequestError(f"the run has tasks 0 to {len(self._names) - 1}, got {task}")
        cell = {control.name: number(control.name) for control in self._controls(task)}
        if name == "item":
            return self._item(task, cell, number("item"))
        if name == "token":
            return self._token(task, cell, number("item"), number("answer"), number("token"))
        return self._items(task, cell, **{field: number(field) for field in ("show", "gold", "answer", "first")})

    @property
    @abstractmethod
    def _names(self) -> list[str]:
        """Return the names of the tasks."""

    @abstractmethod
    def _controls(self, task: int) -> list[Control]:
        """Return the choices of a task."""

    @abstractmethod
    def _labels(self, task: int) -> list[str]:
        """Return the labels by which the items of a task can be chosen; none where answers differ from item to item."""

    @abstractmethod
    def _rows(self, task: int, cell: dict[str, int]) -> list[dict[str, Any]]:
        """Return the rows of a cell. Raises BadRequestError for a cell that the run does not have."""

    @abstractmethod
    def _listed(self, task: int, item: int) -> dict[str, str]:
        """Return what a list shows of an item: its `text`, and possibly more `about` it."""

    @abstractmethod
    def _item(self, task: int, cell: dict[str, int], item: int) -> dict[str, Any]:
        """Return one item with all that its panel shows. Raises BadRequestError."""

    def _token(self, task: int, cell: dict[str, int], item: int, answer: int, token: int) -> dict[str, Any]:  # noqa: ARG002
        """Return one token of an answer, in the form of `Answers.token`. Raises NoSuchAnswerError, BadRequestError."""
        raise NoSuchAnswerError("token")

    def _note(self, task: int, cell: dict[str, int]) -> str:  # noqa: ARG002
        """Return what the page says of the answers of a cell, if anything."""
        return ""

    def _more_kinds(self, row: dict[str, Any]) -> list[str]:  # noqa: ARG002
        """Return the kinds of an item beyond `KINDS`."""
        return []

    def _described(self) -> dict[str, Any]:
        """Return what the page shows of every run, and of its tasks."""
        return {
            "page_items": PAGE_ITEMS,
            "kinds": self.kinds,
            "tasks": [
                {"name": name, "labels": self._labels(task), "controls": list(map(asdict, self._controls(task)))}
                for task, name in enumerate(self._names)
            ],
        }

    def _items(self, task: int, cell: dict[str, int], show: int, gold: int, answer: int, first: int) -> dict[str, Any]:
        """Return at most `PAGE_ITEMS` items of a cell from the `first` on, of those that fit the filters.

        `show` counts the `kinds`. `gold` and `answer` count the task's labels, -1 is any; one more than there are
        labels is an answer that is none of them.
        """
        if not 0 <= show < len(self.kinds):
            raise BadRequestError(f"show must be 0 to {len(self.kinds) - 1}, got {show}")
        labels: list[str | None] = [*self._labels(task), None]
        for name, value in (("gold", gold), ("answer", answer)):
            if not -1 <= value < len(labels):
                raise BadRequestError(f"{name} must be -1 to {len(labels) - 1}, got {value}")
        rows = self._rows(task, cell)
        counts = Counter(kind for row in rows for kind in self._kinds_of(row))
        fits = [
            row
            for row in rows
            if list(self.kinds)[show] in self._kinds_of(row)
            and (gold < 0 or row["gold"] == labels[gold])
            and (answer < 0 or row["longmem"] == labels[answer])
        ]
        # neighbours in the list, for the keyboard, even past the end of a page
        first = max(0, min(first, len(fits)))
        return {
            "first": first,
            "total": len(fits),
            "note": self._note(task, cell),
            "counts": {kind: counts[kind] for kind in self.kinds},
            "compared": any(row["backbone_right"] is not None for row in rows),
            "backbone_right": sum(bool(row["backbone_right"]) for row in rows),
            "numbers": [row["item"] for row in fits],
            "wrong": [row["item"] for row in fits if not row["right"]],
            "items": [{**row, **self._listed(task, row["item"])} for row in fits[first : first + PAGE_ITEMS]],
        }

    def _kinds_of(self, row: dict[str, Any]) -> list[str]:
        kinds = ["all", "right" if row["right"] else "wrong"]
        if row["backbone_right"] is not None and row["backbone_right"] != row["right"]:
            kinds.append("gained" if row["right"] else "lost")
        return kinds + self._more_kinds(row)


def shortened(text: str) -> str:
    """Return the end of a text, as a list shows it."""
    return text if len(text) <= LISTED_CHARACTERS else f"…{text[-LISTED_CHARACTERS:]}"


def short(value: float) -> float:
    """Return a number with four decimals, which a page can show, in few characters."""
    return round(value, 4)
