# SPDX-License-Identifier: Apache-2.0
"""Comparison of every baseline and LongMem on one backbone and equal token sequences, as one table.

perplexity     exp of nats per token over all books, 95% bootstrap over segments
against        paired change of perplexity, on the same resamples of segments
tokens/s       of this process on this machine: ratios within one table are comparable, nothing else
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from time import perf_counter
from typing import Any

import numpy as np

from benchmarks.baselines import base
from benchmarks.baselines.base import AbstractBaseline
from benchmarks.paired import compare_scores
from longmem.scoring.metrics import Interval

NOT_RUN = {
    "Linformer": "not causal: its low-rank projection sums the keys of the whole window, later ones too (Wang et al. "
    "2020, arXiv 2006.04768), so a next-token probability would have seen the token: not run"
}


@dataclass(frozen=True)
class Row:
    """Results of one baseline on all documents."""

    name: str
    description: str
    tokens_per_s: float
    perplexity: Interval
    changes: dict[str, Interval]
    """Relative change against each reference, by its name: -0.03 is a perplexity 3% lower."""
    documents: dict[str, float]
    """Perplexity of every document."""
    scores: list[base.LogProbs] = field(repr=False)


def run(
    baselines: Sequence[AbstractBaseline],
    references: Sequence[str],
    documents: Mapping[str, base.Sequence],
    segment_tokens: int,
) -> Iterator[Row]:
    """Score everything, one row at a time. `references` are names of baselines, which must come before the others."""
    scored: dict[str, list[base.LogProbs]] = {}
    for baseline in baselines:
        start = perf_counter()
        scores = [_score(baseline, sequence) for sequence in documents.values()]
        seconds = perf_counter() - start
        if baseline.name in references:
            scored[baseline.name] = scores
        yield Row(
            name=baseline.name,
            description=baseline.description,
            tokens_per_s=sum(map(len, scores)) / seconds,
            perplexity=compare_scores(scores, scores, segment_tokens).token.longmem,
            changes={
                name: compare_scores(scores, reference, segment_tokens).change for name, reference in scored.items()
            },
            documents={
                name: float(np.exp(-logprobs.mean(dtype=np.float64)))
                for name, logprobs in zip(documents, scores, strict=True)
                if len(logprobs)
            },
            scores=scores,
        )


def figures(rows: Sequence[Row], not_run: Mapping[str, str]) -> dict[str, Any]:
    """Return all results except the single scores, in JSON form."""
    kept = [{name: value for name, value in asdict(row).items() if name != "scores"} for row in rows]
    return {"rows": kept, "not_run": dict(not_run)}


def markdown(rows: Sequence[Row], references: Sequence[str], not_run: Mapping[str, str]) -> str:
    """Return the results as a Markdown table."""
    lines = [
        "| | perplexity | " + "".join(f"against {name} | " for name in references) + "tokens/s | how |",
        "|---|---|" + "---|" * len(references) + "---|---|",
    ]
    for row in rows:
        changes = "".join(f"{_percent(row.changes.get(name))} | " for name in references)
        lines.append(
            f"| {row.name} | {_number(row.perplexity)} | {changes}{row.tokens_per_s:,.0f} | {row.description} |"
        )
    lines += [f"| {name} |  | {' | ' * len(references)} | {reason} |" for name, reason in not_run.items()]
    return "\n".join(lines) + "\n"


def _score(baseline: AbstractBaseline, sequence: base.Sequence) -> base.LogProbs:
    scores = baseline.logprobs(sequence)
    assert scores.shape == (len(sequence) - 1,), f"{baseline.name} gave {scores.shape} for {len(sequence)} tokens"
    assert np.isfinite(scores).all(), f"{baseline.name} gave a log-probability that is not finite"
    return scores


def _number(interval: Interval) -> str:
    return f"{interval.value:.2f}" + ("" if interval.low is None else f" ({interval.low:.2f} to {interval.high:.2f})")


def _percent(change: Interval | None) -> str:
    if change is None or change.value is None:
        return ""
    inside = (
        "" if change.low is None or change.high is None else f" ({100 * change.low:+.1f} to {100 * change.high:+.1f})"
    )
    return f"{100 * change.value:+.1f}%{inside}"
