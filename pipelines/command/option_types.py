"""Kinds of options: what a value may be is said where the option is declared, and refused before anything starts.

Each returns what `typer.Option` or `typer.Argument` returns, with a parser that names the option and what it expects.
`tests/unit/pipelines/test_options.py` walks over every option of every command and holds that it has one of these
kinds, or is a flag or a choice.
"""

from collections.abc import Callable
from math import isfinite
from pathlib import Path
from typing import Any

import typer

from longmem.system.redaction import redacted

LARGEST = 2**63 - 1
"""Largest number that torch, Arrow and the store count with."""
MOST_THREADS = 1024
MOST_WORKERS = 10_000
LONGEST_S = 1e9
"""About 32 years: longer deadlines overflow what waits for them."""


class OptionValueError(typer.BadParameter):
    """A value that an option cannot take; the message goes behind the option's name."""


def whole_option(*names: str, least: int = 1, most: int = LARGEST, **settings: Any) -> Any:
    """A whole number, `least` and `most` included."""

    def parse(value: Any) -> Any:
        if not isinstance(value, str):
            return value
        try:
            number = int(_plain(value))
        except ValueError:
            raise OptionValueError(f"must be a whole number, got {redacted(value)[:80]!r}") from None
        _check_range(number, least, most, value)
        return number

    return typer.Option(*names, parser=parse, **settings)


def real_option(*names: str, least: float = 0.0, most: float = LONGEST_S, above: bool = False, **settings: Any) -> Any:
    """A finite number, `least` and `most` included; with `above`, `least` is not."""

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

    return typer.Option(*names, parser=parse, **settings)


def text_option(*names: str, **settings: Any) -> Any:
    """A name, an address, a URI or a list with commas: anything but nothing."""
    return typer.Option(*names, parser=_parse_text, **settings)


def path_option(*names: str, **settings: Any) -> Any:
    """A path on this machine."""
    return typer.Option(*names, parser=_parse_path, **settings)


def text_argument(**settings: Any) -> Any:
    """Like `text_option`, without a name before it."""
    return typer.Argument(parser=_parse_text, **settings)


def path_argument(**settings: Any) -> Any:
    """Like `path_option`, without a name before it."""
    return typer.Argument(parser=_parse_path, **settings)


KINDS: tuple[Callable[..., Any], ...] = (whole_option, real_option, text_option, path_option)


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


def _parse_text(value: Any) -> Any:
    if isinstance(value, str):
        if not value.strip():
            raise OptionValueError("must not be empty; leave it out for the default, if it has one")
        if "\0" in value:
            raise OptionValueError("must not hold a NUL character")
    return value


def _parse_path(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    text: str = _parse_text(value)
    if "://" in text:
        raise OptionValueError(f"must be a path on this machine, got {redacted(text)}")
    return Path(text)
