# SPDX-License-Identifier: Apache-2.0
"""Spread of a figure over documents: its median, and the document that moves the pooled figure most.

A pooled perplexity weighs every token equally, so one long or strange document can decide it. Its log is a mean over
tokens: without a document it is the mean over all others, which takes no second look at the tokens.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import TYPE_CHECKING, Any

from longmem.wording import counted
from pipelines.command.console import printable
from pipelines.job.format import figure, signed_percent
from pipelines.job.summary import side_names

if TYPE_CHECKING:
    # loads torch
    from pipelines.perplexity.records import SegmentRecord

LEAST_DOCUMENTS = 3
"""Documents below which none is said to dominate: of two, each is half of the figure."""
DOMINANT_SHARE = 0.1
"""Relative change of a pooled perplexity without one document from which the document counts as dominant."""
DOMINANT_CHANGE = 0.25
"""Difference of a pooled change without one document, relative to the change, from which the document is dominant."""
LEAST_CHANGE = 0.01
"""Difference of changes below which no document counts as dominant: rounding would name one."""
MAX_NATS = 700.0
"""Upper bound of nats per token: exp(710) overflows a float."""


@dataclass(frozen=True)
class DominantDocument:
    """Document that decides a pooled figure."""

    document: str
    without: float
    """Pooled figure of all other documents."""


@dataclass(frozen=True)
class DocumentSpread:
    """Spread of a figure over documents."""

    median: float | None
    """Median over documents, each of which counts once; None without a document or where the model did not run."""
    dominant: DominantDocument | None
    """Document without which the pooled figure differs most, if that is much."""


def perplexity_spread(names: Sequence[str], nats: Sequence[float], tokens: Sequence[int]) -> DocumentSpread:
    """Return the spread of token perplexity over documents with these sums of nats and predicted tokens."""
    return _spread(names, nats, tokens, math.exp, lambda without, pooled: abs(without / pooled - 1) > DOMINANT_SHARE)


def change_spread(names: Sequence[str], difference_nats: Sequence[float], tokens: Sequence[int]) -> DocumentSpread:
    """Return the spread of the relative change of perplexity, from each document's difference of nats."""
    return _spread(
        names,
        difference_nats,
        tokens,
        math.expm1,
        lambda without, pooled: abs(without - pooled) > max(DOMINANT_CHANGE * abs(pooled), LEAST_CHANGE),
    )


def spread_of(segments: "Sequence[SegmentRecord]") -> dict[str, Any]:
    """Return the spread over documents of both perplexities and of their change, as JSON values.

    In one pass the backbone alone did not run: the spreads of its perplexity and of the change hold None.
    """
    sums: dict[str, tuple[list[float], list[float], list[int]]] = {}
    for segment in segments:
        longmem, backbone, tokens = sums.setdefault(segment.document, ([], [], []))
        longmem.append(segment.nll_longmem)
        if segment.nll_backbone is not None:
            backbone.append(segment.nll_backbone)
        tokens.append(segment.num_tokens)
    names, counts = list(sums), [sum(tokens) for _, _, tokens in sums.values()]
    longmem_nats, backbone_nats = ([math.fsum(each[side]) for each in sums.values()] for side in (0, 1))
    known = sum(len(backbone) for _, backbone, _ in sums.values())
    assert known in (0, len(segments)), f"the backbone alone scored {known} of {len(segments)} segments"
    backbone_spread = change = DocumentSpread(None, None)
    if known:
        backbone_spread = perplexity_spread(names, backbone_nats, counts)
        difference = [ours - theirs for ours, theirs in zip(longmem_nats, backbone_nats, strict=True)]
        change = change_spread(names, difference, counts)
    return {
        "longmem": asdict(perplexity_spread(names, longmem_nats, counts)),
        "backbone": asdict(backbone_spread),
        "change": asdict(change),
    }


def spread_remarks(summary: dict[str, Any]) -> list[str]:
    """Return sentences on the median document, and on documents that decide a pooled figure of a summary.

    There are none for a single document, and for the summary of an earlier version.
    """
    spread = summary.get("spread")
    if not spread or summary["counts"]["documents"] < 2 or spread["longmem"]["median"] is None:
        return []
    sides = zip(("longmem", "backbone"), side_names(summary), strict=True)
    names = {side: name for side, name in sides if spread[side]["median"] is not None}
    medians = " and ".join(f"{figure(spread[side]['median'])} ({name})" for side, name in names.items())
    change = f", change {signed_percent(spread['change']['median'])}" if "backbone" in names else ""
    said = [
        f"Median over {counted(summary['counts']['documents'], 'document')}, each counted once: "
        f"perplexity {medians}{change}."
    ]
    for side, name in names.items():
        if found := spread[side]["dominant"]:
            value, pooled = figure(found["without"]), figure(summary["perplexity"]["token"][side]["value"])
            said.append(
                f"One document decides the perplexity ({name}): without {printable(found['document'])} it is {value}, "
                f"not {pooled}."
            )
    if found := spread["change"]["dominant"]:
        value, pooled = signed_percent(found["without"]), signed_percent(summary["change"]["value"])
        said.append(
            f"One document decides the change: without {printable(found['document'])} it is {value}, not {pooled}."
        )
    return said


def _spread(
    names: Sequence[str],
    nats: Sequence[float],
    tokens: Sequence[int],
    figure_of: Callable[[float], float],
    is_much: Callable[[float, float], bool],
) -> DocumentSpread:
    kept = [(name, sum_, number) for name, sum_, number in zip(names, nats, tokens, strict=True) if number]
    if not kept:
        return DocumentSpread(None, None)
    total_nats, total = math.fsum(sum_ for _, sum_, _ in kept), sum(number for _, _, number in kept)
    middle = figure_of(_bounded(median(sum_ / number for _, sum_, number in kept)))
    if len(kept) < LEAST_DOCUMENTS:
        return DocumentSpread(middle, None)
    pooled = figure_of(_bounded(total_nats / total))
    without = {name: figure_of(_bounded((total_nats - sum_) / (total - number))) for name, sum_, number in kept}
    name = max(without, key=lambda each: abs(without[each] - pooled))
    return DocumentSpread(middle, DominantDocument(name, without[name]) if is_much(without[name], pooled) else None)


def _bounded(nats_per_token: float) -> float:
    return min(nats_per_token, MAX_NATS)
