# SPDX-License-Identifier: Apache-2.0
"""Parts of sentences: a count with its unit, a number with its sign, the reason of an error."""


def counted(number: int, unit: str) -> str:
    """Return a whole number with its unit, such as `1 segment` or `2,048 segments`; the plural of `unit` adds an s."""
    return f"{number:,} {unit}{'' if number == 1 else 's'}"


def signed(number: float, form: str) -> str:
    """Return a number in a form with a sign, such as `+.3%`; the minus is typographic, as wide as the plus."""
    return f"{number:{form}}".replace("-", "−")


def reason_of(error: BaseException) -> str:
    """Return why an operation failed, without the path that an OSError repeats: the sentence around it names one."""
    return getattr(error, "strerror", None) or str(error)
