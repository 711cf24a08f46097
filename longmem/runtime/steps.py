# SPDX-License-Identifier: Apache-2.0
"""Steps of a request that takes minutes. Without torch, because a driver and its liveness checks need none."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Step:
    """Work of one kind that a running request has done."""

    unit: str
    """Plural noun, such as "segments"."""
    verb: str
    """Participle that follows the unit, such as "encoded"."""
    done: int
    total: int

    def __str__(self) -> str:
        return f"{self.done:,} of {self.total:,} {self.unit} {self.verb}"


OnStep = Callable[[Step], None]


def ignore_step(_step: Step) -> None:
    """Do nothing."""
