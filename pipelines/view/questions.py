# SPDX-License-Identifier: Apache-2.0
"""Interface between the server of a page and what it knows of one kind of job."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, Literal

from longmem.errors import ConfigError

PageKind = Literal["tokens", "items"]


class BadRequestError(ConfigError):
    """Error of a question about something that the run does not have."""


class NoSuchAnswerError(ConfigError):
    """Error of a question that the page never asks."""

    def __init__(self, name: str) -> None:
        super().__init__(f"there is no {name!r} here")


class AbstractAnswers(ABC):
    """Answers about one finished job, as JSON values. Thread-safe.

    Texts of documents are foreign: they are JSON strings here and text nodes in the page, never HTML.
    """

    page_kind: ClassVar[PageKind]
    """Page that asks the questions."""

    @abstractmethod
    def run(self) -> dict[str, Any]:
        """Return what the page shows of the run as a whole; `model` is the name of the model."""

    @abstractmethod
    def answer(self, name: str, number: Callable[[str], int]) -> Any:
        """Return the answer to a named question; `number` returns a field of it.

        Raises NoSuchAnswerError, BadRequestError, LongMemError for tables that were damaged meanwhile, OSError.
        """
