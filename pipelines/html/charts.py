# SPDX-License-Identifier: Apache-2.0
"""Charts of a job as inline SVG, drawn with matplotlib's object API and coloured by the enclosing page.

Colours are placeholders that are replaced by the page's CSS variables, so a chart follows light and dark mode. Text
stays text: it takes the page's font, and can be selected and searched.
"""

import io
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import matplotlib
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Float64, Int64
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from longmem.wording import counted
from pipelines.job.format import short_count

SMOOTHING = 40
"""Divisor of the running mean's window: a window covers 1/40 of a document.

Single segments differ from each other far more than memory changes them.
"""
LOG_SCALE_RATIO = 20
"""Ratio of highest to lowest perplexity above which the axis is logarithmic."""
MAX_NATS = 200.0
"""Upper bound of nats per token in charts: exp(710) overflows a float, and an axis needs room above."""
WIDE_INCHES, NARROW_INCHES = (10.5, 3.4), (3.8, 2.5)

INK, FAINT, WITH_MEMORY, WITHOUT_MEMORY = "#010101", "#010102", "#010103", "#010104"
CSS_COLOURS = {
    INK: "var(--muted)",
    FAINT: "var(--line)",
    WITH_MEMORY: "var(--with-memory)",
    WITHOUT_MEMORY: "var(--without-memory)",
}
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "longmem",  # same data, same bytes
    "font.size": 9.5,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "text.color": INK,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.axisbelow": True,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "ytick.major.size": 0,
    "ytick.minor.size": 0,
    "grid.color": FAINT,
    "grid.linewidth": 0.7,
    "lines.linewidth": 1.7,
}


@dataclass(frozen=True)
class Chart:
    """Drawings of one chart for wide screens (None: the narrow one fits all) and narrow ones; CSS selects one."""

    title: str
    description: str
    """Text alternative for screen readers."""
    wide: Markup | None
    narrow: Markup


@dataclass(frozen=True)
class Curve:
    """Perplexity of one document by token position, with memory and without, from running means of nats."""

    positions: Float64[np.ndarray, " points"]
    longmem: Float64[np.ndarray, " points"]
    backbone: Float64[np.ndarray, " points"] | None
    """None in one pass: the backbone alone did not run."""
    window: int
    """Segments in one running mean; 1 if nothing was smoothed."""


def document_charts(names: list[str], segments: pa.Table, sides: tuple[str, str]) -> list[Chart]:
    """Return one chart of perplexity by position for each named document; a single document gets the page's width.

    `sides` names the two curves: that of LongMem and that of the backbone, which is absent in one pass.
    """
    charts = []
    for index, name in enumerate(names):
        curve = document_curve(name, segments)
        draw = partial(_draw_curve, curve)
        curves = zip((curve.longmem, curve.backbone), sides, strict=True)
        said = (f"from {each[0]:,.2f} to {each[-1]:,.2f} ({side})" for each, side in curves if each is not None)
        description = f"Perplexity along {name}: {', '.join(said)}."
        wide = svg(draw, WIDE_INCHES, f"w{index}") if len(names) == 1 else None
        charts.append(Chart(name, description, wide, svg(draw, NARROW_INCHES, f"n{index}")))
    return charts


def document_curve(name: str, segments: pa.Table) -> Curve:
    """Return the perplexity curve of one document.

    Means are taken in nats per token, weighted by tokens, and then converted to perplexities. A mean of perplexities
    would be dominated by the worst segment.
    """
    rows = segments.filter(pc.equal(segments["document"], name)).sort_by("segment")
    tokens = rows["num_tokens"].to_numpy()
    rows = rows.filter(pa.array(tokens > 0))
    tokens = tokens[tokens > 0].astype(np.float64)
    window = max(1, -(-len(tokens) // SMOOTHING))
    middle = rows["start_token"].to_numpy() + tokens / 2

    def running(values: Float64[np.ndarray, " segments"]) -> Float64[np.ndarray, " points"]:
        return np.convolve(values, np.ones(window), mode="valid")

    def perplexity(column: str) -> Float64[np.ndarray, " points"]:
        nats_per_token = running(rows[column].to_numpy()) / running(tokens)
        curve: np.ndarray = np.exp(np.minimum(nats_per_token, MAX_NATS))
        return curve

    absent = rows["nll_backbone"].null_count
    assert absent in (0, len(rows)), f"{name}: the backbone alone scored all but {absent} of {len(rows)} segments"
    alone = None if absent else perplexity("nll_backbone")
    return Curve(running(middle * tokens) / running(tokens), perplexity("nll_longmem"), alone, window)


def total_distances(segments: pa.Table) -> Int64[np.ndarray, " bins"]:
    """Return the number of reads by distance over all segments, without trailing empty bins.

    Bin b counts distances in [2^b, 2^(b+1)) tokens.
    """
    histograms = [histogram for histogram in segments["distance_histogram"].to_pylist() if histogram]
    total = np.zeros(max(map(len, histograms), default=0), np.int64)
    for histogram in histograms:
        total[: len(histogram)] += histogram
    return np.trim_zeros(total, "b")


def distance_chart(segments: pa.Table) -> Chart | None:
    """Return a chart of reads by distance, or None if memory was never read."""
    total = total_distances(segments)
    if not len(total):
        return None
    shares = total / total.sum()
    peak = int(shares.argmax())
    median = int(np.searchsorted(shares.cumsum(), 0.5))
    description = (
        f"Reads by distance: most, {shares[peak]:.0%}, lie {2**peak:,} to {counted(2 ** (peak + 1), 'token')} back; "
        f"half lie fewer than {counted(2 ** (median + 1), 'token')} back."
    )
    draw = partial(_draw_distances, shares)
    return Chart("Distance of reads", description, svg(draw, WIDE_INCHES, "dw"), svg(draw, NARROW_INCHES, "dn"))


def _draw_curve(curve: Curve, axes: Axes) -> None:
    marker = "o" if len(curve.positions) <= 12 else ""
    if curve.backbone is not None:
        axes.fill_between(curve.positions, curve.longmem, curve.backbone, color=WITH_MEMORY, alpha=0.15, linewidth=0)
        axes.plot(
            curve.positions,
            curve.backbone,
            color=WITHOUT_MEMORY,
            marker=marker,
            markersize=3.5,
            linestyle=(0, (4, 1.5)),
        )
    axes.plot(curve.positions, curve.longmem, color=WITH_MEMORY, marker=marker, markersize=3.5)
    curves = [each for each in (curve.longmem, curve.backbone) if each is not None]
    lowest, highest = min(each.min() for each in curves), max(each.max() for each in curves)
    if highest > LOG_SCALE_RATIO * lowest:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 3), numticks=6))
        axes.yaxis.set_minor_formatter(NullFormatter())
    else:
        axes.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]))
        if highest - lowest < 1e-3 * highest:  # equal curves: do not zoom into their rounding errors
            axes.set_ylim(lowest * 0.95, highest * 1.05)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))
    axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10], integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short_count(value)))
    axes.set_xlabel("token position")


def _draw_distances(shares: Float64[np.ndarray, " bins"], axes: Axes) -> None:
    axes.bar(np.arange(len(shares)) + 0.5, shares * 100, width=0.86, color=WITH_MEMORY)
    axes.set_xlim(0, len(shares))
    every = 1 if axes.get_figure().get_figwidth() > NARROW_INCHES[0] else -(-(len(shares) + 1) // 7)  # type: ignore[union-attr]
    edges = range(0, len(shares) + 1, every)
    axes.xaxis.set_major_locator(FixedLocator(list(edges)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda edge, _: short_count(2**edge, 1024)))
    axes.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}%"))
    axes.set_xlabel("tokens back")


def svg(draw: Callable[[Axes], None], inches: tuple[float, float], prefix: str) -> Markup:
    """Return a drawing as SVG for embedding: no prolog, no metadata, ids with `prefix`, the page's colours."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=inches)
        axes = figure.add_subplot()
        axes.grid(axis="y")
        draw(axes)
        buffer = io.StringIO()
        FigureCanvasSVG(figure)
        # a figure that has a layout engine is drawn twice
        ConstrainedLayoutEngine().execute(figure)
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    # a style element would apply to the whole page; the page sets name, size and label of the drawing
    text = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|font-family: [^;]*; ", "", text, flags=re.DOTALL)
    text = re.sub(r'^<svg .*?(viewBox="[^"]*").*?>', r'<svg \1 aria-hidden="true">', text, flags=re.DOTALL)
    text = re.sub(r'( id="|xlink:href="#|url\(#)', rf"\g<1>{prefix}-", text)
    for stand_in, colour in CSS_COLOURS.items():
        text = text.replace(stand_in, colour)
    return Markup(text)
