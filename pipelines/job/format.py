"""Text of numbers, for terminals and reports."""

from collections.abc import Callable
from typing import Any

NOTHING = "–"
"""Text of a figure that does not exist."""


def count(number: float | None) -> str:
    """A whole number with thousands separators."""
    return NOTHING if number is None else f"{number:,.0f}"


def figure(value: float | None, like: float | None = None) -> str:
    """Four significant digits, as many decimals as `like` gets (its own, when not given)."""
    if value is None:
        return NOTHING
    size = abs(value if like is None else like)
    if max(size, abs(value)) >= 1e7:
        return f"{value:.2e}"
    return f"{value:,.{next(digits for digits, bound in ((0, 1e4), (1, 1e3), (2, 10), (3, 0)) if size >= bound)}f}"


def interval(part: dict[str, Any]) -> str:
    """`low–high`, with the decimals of the value between them."""
    if part["low"] is None or part["high"] is None:
        return NOTHING
    return f"{figure(part['low'], part['value'])}–{figure(part['high'], part['value'])}"


def percent_digits(share: float, like: float) -> str:
    """Percentage points without sign, with the decimals that `like` needs to show two digits."""
    size = abs(like) * 100
    return f"{share * 100:,.{1 if size >= 1 else 2 if size >= 0.1 else 3}f}"


def signed_percent(share: float | None) -> str:
    """A change in per cent with its sign; the minus is the typographic one, as wide as the plus."""
    if share is None:
        return NOTHING
    digits = percent_digits(abs(share), share)
    sign = "" if not float(digits.replace(",", "")) else "−" if share < 0 else "+"
    return f"{sign}{digits}%"


def duration(seconds: float) -> str:
    """12.3 s, 4 min 05 s, 3 h 07 min."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, left = divmod(minutes, 60)
    return f"{hours:,} h {left:02} min" if hours else f"{minutes} min {rest:02} s"


FILTERS: dict[str, Callable[..., str]] = {
    "count": count,
    "figure": figure,
    "interval": interval,
    "percent": signed_percent,
    "duration": duration,
}
"""How templates write numbers."""


def clock(seconds: float) -> str:
    """Return h:mm:ss."""
    minutes, whole = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{whole:02}"
