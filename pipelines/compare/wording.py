# SPDX-License-Identifier: Apache-2.0
"""Sentences and numbers of a comparison, the same on terminal and page."""

from collections.abc import Sequence
from typing import Any

from longmem.wording import counted, part_of, signed
from pipelines.command.console import printable
from pipelines.job.format import NOTHING, figure, percent_digits, percentage_points, short_count, signed_percent

EQUAL = "equal"
"""Text of a difference that is exactly 0."""

Row = dict[str, Any]


def title_of(names: Sequence[str]) -> str:
    """Return the title of a comparison; the first name is that of the baseline."""
    return f"{', '.join(names[1:])} compared with {names[0]}"


def verdicts(compared: Row) -> list[str]:
    """Return one sentence for each run but the baseline."""
    names = [run["name"] for run in compared["runs"]]
    if compared["kind"] == "icl":
        return [_cells_verdict(compared["cells"], index, names) for index in range(1, len(names))]
    return [_text_verdict(compared, index, names) for index in range(1, len(names))]


def _text_verdict(compared: Row, index: int, names: list[str]) -> str:
    row, unit = compared["whole"][index], compared["unit"]
    change = row["change"]
    if row["equal"]:
        return f"{names[index]} and {names[0]} predict every piece of the texts equally well."
    if change["value"] is None:
        return f"{names[index]} and {names[0]} are too far apart for a number."
    size = change_text(change["value"], unit).lstrip("+−")
    if change["low"] is None:
        return (
            f"{names[index]}: {unit} {size} {_direction(change)} than {names[0]}, measured on a single "
            f"{compared['paired'][:-1]}: too little for an interval."
        )
    bounds = f"95% interval {bounds_text(change, unit)}"
    if change["low"] <= 0 <= change["high"]:
        value = change_text(change["value"], unit)
        return f"{names[index]}: no measurable difference in {unit} to {names[0]} ({value}, {bounds})."
    return f"{names[index]}: {unit} {size} {_direction(change)} than {names[0]} ({bounds})."


def _direction(change: Row) -> str:
    return "lower" if change["value"] < 0 else "higher"


def _cells_verdict(cells: list[Row], index: int, names: list[str]) -> str:
    changes = [cell["runs"][index]["change"] for cell in cells]
    apart = [change for change in changes if is_apart(change)]
    if len(changes) == 1:
        way = "does not differ from" if not apart else "is above" if apart[0]["value"] > 0 else "is below"
        return f"{names[index]}: the only cell {way} {names[0]} beyond its 95% interval."
    if not apart:
        which = part_of(0, len(changes), "cell")
        return f"{names[index]}: {which} differs from {names[0]} beyond its 95% interval."
    above = sum(change["value"] > 0 for change in apart)
    cells_text, verb = counted(len(changes), "cell"), "is" if above == 1 else "are"
    return (
        f"{names[index]}: of {cells_text}, {above:,} {verb} above {names[0]} and {len(apart) - above:,} below, "
        f"beyond their 95% intervals; about {len(changes) * 0.05:.1f} would be by chance."
    )


def points(change: Row) -> str:
    """Return a difference of shares in points."""
    return EQUAL if change["value"] == 0 and change["low"] == change["high"] else percentage_points(change["value"])


def is_apart(change: Row) -> bool:
    """Return whether the interval of a difference excludes 0."""
    return change["low"] is not None and not change["low"] <= 0 <= change["high"]


def remarks(compared: Row) -> list[str]:
    """Return the notes, and every document that dominates a pooled figure."""
    said = list(compared["notes"])
    if compared["kind"] == "icl":
        return said
    unit = compared["unit"]
    for run, row in zip(compared["runs"], compared["whole"], strict=True):
        if found := row["dominant"]:
            said.append(
                f"{run['name']}: one document decides the pooled {unit}; without {printable(found['document'])} it is "
                f"{figure(found['without'])}."
            )
        if found := row["dominant_change"]:
            said.append(
                f"{run['name']}: one document decides the change; without {printable(found['document'])} it is "
                f"{change_text(found['without'], unit)}."
            )
    if compared["no_frequencies"]:
        said.append(f"Figures by frequency of tokens are missing: {compared['no_frequencies']}.")
    return said


def change_text(change: float | None, unit: str) -> str:
    """Return a relative change of a perplexity in per cent, or a difference of bits per byte, with its sign."""
    if change == 0:
        return EQUAL
    if unit == "perplexity":
        return signed_percent(change)
    return NOTHING if change is None else signed(change, "+.4f")


def bounds_text(change: Row | None, unit: str) -> str:
    """Return the interval of a change as `low to high`, with the decimals of its value."""
    if change is None or change["low"] is None or change["low"] == change["high"] == 0:
        return NOTHING
    if unit != "perplexity":
        return f"{change_text(change['low'], unit)} to {change_text(change['high'], unit)}"
    low, high = (
        f"{'−' if change[side] < 0 else '+'}{percent_digits(abs(change[side]), change['value'])}"
        for side in ("low", "high")
    )
    return f"{low} to {high}%"


def points_text(change: Row | None) -> str:
    """Return the interval of a difference of shares as `low to high` in points."""
    if change is None or change["low"] is None or change["low"] == change["high"] == 0:
        return NOTHING
    return f"{percentage_points(change['low'])} to {percentage_points(change['high'])}"


def value_text(value: Any) -> str:
    """Return a setting as people read it."""
    if value is None:
        return NOTHING
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,}" if isinstance(value, int) else printable(str(value))


def positions_text(row: Row) -> str:
    """Return a class of positions, such as `2,049 – 4,096`."""
    return f"{row['first']:,} – {row['last']:,}"


def positions_label(row: Row) -> str:
    """Return the last position of a class for the axis of a chart."""
    return short_count(row["last"], 1024) if row["last"] % 1024 == 0 else f"{row['last']:,}"


def occurrences_text(row: Row) -> str:
    """Return a class of frequencies, such as `10 – 99`."""
    if row["most"] is None:
        return f"{row['least']:,} or more"
    return f"{row['least']:,}" if row["most"] == row["least"] else f"{row['least']:,} – {row['most']:,}"
