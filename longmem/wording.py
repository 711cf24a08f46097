# SPDX-License-Identifier: Apache-2.0
"""Parts of sentences: a count with its unit, a number with its sign, the reason of an error."""


def counted(number: int, unit: str) -> str:
    """Return a whole number with its unit, such as `1 segment` or `2,048 segments`; the plural of `unit` adds an s."""
    return f"{number:,} {unit}{'' if number == 1 else 's'}"


def part_of(part: int, whole: int, unit: str) -> str:
    """Return how many of at least one thing are meant: `none of 4 answers`, `1 of 4 answers`, `all 4 answers`, `both
    answers`, `the only answer`; for none of a single thing `no answer`."""
    if part == 0:
        return f"none of {counted(whole, unit)}" if whole > 1 else f"no {unit}"
    if part < whole:
        return f"{part:,} of {counted(whole, unit)}"
    return f"the only {unit}" if whole == 1 else f"both {unit}s" if whole == 2 else f"all {counted(whole, unit)}"


def signed(number: float, form: str) -> str:
    """Return a number in a form with a sign, such as `+.3%`; the minus is typographic, as wide as the plus."""
    return f"{number:{form}}".replace("-", "−")


def reason_of(error: BaseException) -> str:
    """Return why an operation failed, without the path that an OSError repeats: the sentence around it names one."""
    return getattr(error, "strerror", None) or str(error)
