# SPDX-License-Identifier: Apache-2.0
"""Numbers as text for terminals and reports: one function for each form.

Functions that accept None return `NOTHING` for it. All of them take plain SI values: shares in [0, 1], seconds, bytes.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from longmem.wording import counted, signed

NOTHING = "–"
"""Text of a missing figure."""
GIB = 2**30


def count(number: float | None) -> str:
    """Return a whole number with thousands separators."""
    return NOTHING if number is None else f"{number:,.0f}"


def short_count(value: float, kilo: int = 1000) -> str:
    """Return a short form such as 900, 20k or 1.5M; `kilo=1024` is for powers of two (64k is 65,536)."""
    for size, suffix in ((kilo**2, "M"), (kilo, "k")):
        if value >= size:
            return f"{value / size:g}{suffix}"
    return f"{value:g}"


def figure(value: float | None, like: float | None = None) -> str:
    """Return four significant digits, with the number of decimals that `like` (default: the value) gets."""
    if value is None:
        return NOTHING
    size = abs(value if like is None else like)
    if max(size, abs(value)) >= 1e7:
        return f"{value:.2e}"
    return f"{value:,.{next(digits for digits, bound in ((0, 1e4), (1, 1e3), (2, 10), (3, 0)) if size >= bound)}f}"


def fine_figure(value: float | None) -> str:
    """Return three decimals below 10⁵, else four significant digits: a perplexity per word can have ten digits."""
    if value is None:
        return NOTHING
    return f"{value:,.3f}" if value < 1e5 else f"{value:.4g}"


def interval(part: dict[str, Any]) -> str:
    """Return `low–high` with the decimals of the value between them."""
    if part["low"] is None or part["high"] is None:
        return NOTHING
    return f"{figure(part['low'], part['value'])}–{figure(part['high'], part['value'])}"


def fine_interval(part: dict[str, float | None]) -> str:
    """Return `low – high` as fine figures."""
    if part["low"] is None or part["high"] is None:
        return NOTHING
    return f"{fine_figure(part['low'])} – {fine_figure(part['high'])}"


def with_interval(part: dict[str, float | None], form: Callable[[float], str], label: str = "") -> str:
    """Return `value (low to high)`, each number written by `form`; `label` precedes `low`."""
    value, low, high = part["value"], part["low"], part["high"]
    if value is None:
        return NOTHING
    return form(value) if low is None or high is None else f"{form(value)} ({label}{form(low)} to {form(high)})"


def percent(share: float | None) -> str:
    """Return a share in per cent with one decimal."""
    return NOTHING if share is None else f"{share:.1%}"


def short_percent(share: float) -> str:
    """Return a share in per cent with one decimal, or none if it is 0."""
    return percent(share).replace(".0%", "%")


def distinct_percents(shares: Iterable[float]) -> dict[float, str]:
    """Return shares in ascending order, each in per cent with as many decimals as make all of them differ."""
    ordered, decimals = sorted(set(shares)), 0
    while len({f"{share:.{decimals}%}" for share in ordered}) < len(ordered):
        decimals += 1
    return {share: f"{share:.{decimals}%}" for share in ordered}


def percent_digits(share: float, like: float) -> str:
    """Return per cent without a sign, with the decimals that `like` needs to show two digits."""
    size = abs(like) * 100
    return f"{share * 100:,.{1 if size >= 1 else 2 if size >= 0.1 else 3}f}"


def signed_percent(share: float | None) -> str:
    """Return a change in per cent with its sign; the minus is typographic, as wide as the plus."""
    if share is None:
        return NOTHING
    digits = percent_digits(abs(share), share)
    sign = "" if not float(digits.replace(",", "")) else "−" if share < 0 else "+"
    return f"{sign}{digits}%"


def fine_percent(share: float) -> str:
    """Return a change in per cent with its sign and three decimals."""
    # + 0.0 turns the negative zero of rounding into zero
    return signed(round(share, 5) + 0.0, "+.3%")


def percentage_points(difference: float | None) -> str:
    """Return a difference of shares in percentage points, with its sign and one decimal."""
    if difference is None:
        return NOTHING
    return signed(difference * 100, "+.1f")


def nats(value: float) -> str:
    """Return nats per token with three decimals."""
    return f"{value:.3f}"


def signed_nats(difference: float) -> str:
    """Return a difference of nats per token with its sign and three decimals."""
    return signed(difference, "+.3f")


def duration(seconds: float) -> str:
    """Return a measured duration such as 12.3 s, 4 min 05 s or 3 h 07 min."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, left = divmod(minutes, 60)
    return f"{hours:,} h {left:02} min" if hours else f"{minutes} min {rest:02} s"


def rough_duration(seconds: float) -> str:
    """Return a predicted duration in one unit, such as 0.0123 s, 4.1 min or 3.1 h."""
    if seconds < 120:
        return f"{seconds:.3g} s"
    if seconds < 7200:
        return f"{seconds / 60:.1f} min"
    return f"{seconds / 3600:,.1f} h"


def h_mm_ss(seconds: float) -> str:
    """Return a running clock, such as 0:04:05."""
    minutes, whole = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{whole:02}"


def milliseconds(seconds: float) -> str:
    """Return milliseconds with three significant digits."""
    return f"{1000 * seconds:,.3g} ms"


def byte_size(num_bytes: float) -> str:
    """Return three significant digits in B, kB, MB or GB (powers of 1000), or two decimals in TB."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if num_bytes >= scale:
            return f"{num_bytes / scale:,.3g} {unit}" if num_bytes < 1e12 else f"{num_bytes / 1e12:,.2f} TB"
    return f"{num_bytes:.0f} B"


def megabytes(num_bytes: float) -> str:
    """Return whole MB (10⁶ bytes), which do not change their unit in a live display."""
    return f"{num_bytes / 1e6:,.0f} MB"


def gibibytes(num_bytes: float) -> str:
    """Return GiB (2³⁰ bytes) with one decimal."""
    return f"{num_bytes / GIB:,.1f} GiB"


def limits_text(limits: Mapping[str, int | None]) -> str:
    """Return what a job was limited to, such as `the first 2 documents, the first 100 tokens of each document`; empty
    for no limit."""
    parts = []
    if (number := limits.get("documents")) is not None:
        parts.append(f"the first {counted(number, 'document')}")
    if (number := limits.get("tokens")) is not None:
        parts.append(f"the first {counted(number, 'token')} of each document")
    return ", ".join(parts)


FILTERS: dict[str, Callable[..., str]] = {
    "count": count,
    "counted": counted,
    "figure": figure,
    "interval": interval,
    "limits": limits_text,
    "percent": signed_percent,
    "duration": duration,
}
"""Filters of the report templates."""
