# SPDX-License-Identifier: Apache-2.0
"""Parsers of option values: each refuses, before anything starts, a value that its option cannot take.

A parser takes the text of an option and returns its value; a default, which is a value already, passes. The functions
of `pipelines.command.fields` give each option its parser. `tests/unit/pipelines/test_options.py` walks over the options
of every command and holds that each has one of these parsers, or is a flag or a choice.
"""

from collections.abc import Callable
from math import isfinite
from pathlib import Path
from typing import Any

import typer

from longmem.system.redaction import redacted

Parser = Callable[[Any], Any]

LARGEST = 2**63 - 1
"""Largest number that torch, Arrow and the store count with."""
MOST_THREADS = 1024
MOST_WORKERS = 10_000
LONGEST_S = 1e9
"""About 32 years: longer deadlines overflow what waits for them."""


class OptionValueError(typer.BadParameter):
    """A value that an option cannot take; the message goes behind the option's name."""


class EmptyValueError(OptionValueError):
    """Empty text for an option that needs some."""


def whole_parser(least: int = 1, most: int = LARGEST) -> Parser:
    """Return a parser of whole numbers, `least` and `most` included."""

    def parse(value: Any) -> Any:
        if not isinstance(value, str):
            return value
        try:
            number = int(_plain(value))
        except ValueError:
            raise OptionValueError(f"must be a whole number, got {redacted(value)[:80]!r}") from None
        _check_range(number, least, most, value)
        return number

    return parse


def real_parser(least: float = 0.0, most: float = LONGEST_S, above: bool = False) -> Parser:
    """Return a parser of finite numbers, `least` and `most` included; with `above`, `least` is not."""

    def parse(value: Any) -> Any:
        if not isinstance(value, str):
            return value
        try:
            number = float(_plain(value))
        except ValueError:
            raise OptionValueError(f"must be a number, got {redacted(value)[:80]!r}") from None
        if not isfinite(number):
            raise OptionValueError(f"must be a finite number, got {value}")
        if above and number <= least:
            raise OptionValueError(f"must be greater than {least:g}, got {value[:80]}")
        _check_range(number, least, most, value)
        return number

    return parse


def parse_text(value: Any) -> Any:
    """Return a name, an address, a URI or a list with commas; empty text is refused."""
    if isinstance(value, str):
        if not value.strip():
            raise EmptyValueError("must not be empty")
        if "\0" in value:
            raise OptionValueError("must not hold a NUL character")
    return value


def parse_path(value: Any) -> Any:
    """Return a path on this machine; a URI is refused."""
    if not isinstance(value, str):
        return value
    text: str = parse_text(value)
    if "://" in text:
        raise OptionValueError(f"must be a path on this machine, got {redacted(text)}")
    return Path(text)


def _plain(value: str) -> str:
    """Return the text of a number. Raises ValueError for what Python takes beyond ASCII digits: `1_000` as 1000, and
    the digits of every script."""
    if not value.isascii() or "_" in value:
        raise ValueError(value)
    return value


def _check_range(number: float, least: float, most: float, given: str) -> None:
    if number < least:
        raise OptionValueError(f"must be at least {least:,}, got {given[:80]}")
    if number > most:
        raise OptionValueError(f"must be at most {most:,}, got {given[:80]}")
