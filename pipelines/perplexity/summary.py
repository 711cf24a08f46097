# SPDX-License-Identifier: Apache-2.0
"""Summary of a finished perplexity job: the content of summary.json."""

from collections.abc import Sequence
from dataclasses import asdict
from math import fsum
from typing import Any

from longmem.model.source import ModelDescription
from longmem.scoring.metrics import SegmentNats, compute_perplexities
from pipelines.job.summary import about
from pipelines.perplexity.records import DocumentRecord, SegmentRecord, baseline_nats
from pipelines.perplexity.run import RunTotals
from pipelines.perplexity.spread import spread_of
from pipelines.perplexity.windows import WindowResults


def summarise(
    *,
    command: str,
    model: ModelDescription,
    executor: dict[str, Any],
    totals: RunTotals,
    resumed: bool,
    documents: Sequence[DocumentRecord],
    segments: Sequence[SegmentRecord],
    left_out: dict[str, Any] | None = None,
    limits: dict[str, int | None] | None = None,
    windows: WindowResults | None = None,
) -> dict[str, Any]:
    """Return all figures of a finished job.

    Results cover the scored documents; `failures` lists the others. `left_out` counts skipped inputs
    (`longmem.text.finding.LeftOut`). `limits` has the numbers of documents, and of tokens of each, that were asked for.
    `window` is present only with the baseline in overlapping windows. Seconds, and segments and tokens of stages, are
    sums over all runs of the job (`work_slices.py`): a segment that was encoded again because its run was killed counts
    each time. In one pass the backbone alone did not run: its nats, its figures and the change to it are None.
    """
    scored = [record for record in documents if record.status == "scored"]
    num_words = sum(record.num_words or 0 for record in scored)
    num_bytes = sum(record.num_bytes or 0 for record in scored)
    nats = [SegmentNats(record.nll_longmem, record.nll_backbone, record.num_tokens) for record in segments]
    num_tokens = sum(record.num_tokens for record in segments)
    figures = asdict(compute_perplexities(nats, num_words, num_bytes)) if num_tokens else None
    alone = baseline_nats(segments)
    baseline = None if windows is None else _window_figures(windows, totals, segments, num_words, num_bytes)
    return {
        **about(command, model, executor, resumed),
        "counts": {
            "documents": len(scored),
            "failed_documents": len(documents) - len(scored),
            "segments": len(segments),
            "tokens": num_tokens,
            "unscored_tokens": sum(record.num_unscored_tokens or 0 for record in scored),
            "words": num_words,
            "bytes": num_bytes,
        },
        "nats": {
            "longmem": fsum(segment.longmem for segment in nats),
            "backbone": None if alone is None else fsum(alone),
        },
        "perplexity": figures and {name: figures[name] for name in ("token", "word", "byte")},
        "bits_per_byte": figures and figures["bits_per_byte"],
        "change": figures and figures["change"],
        "spread": spread_of(segments),
        **({"window": baseline} if baseline else {}),
        "wall_s": totals.wall_s,
        "stages": {stage: asdict(stage_totals) for stage, stage_totals in totals.stages.items()},
        "left_out": left_out or {},
        "limits": {name: limit for name, limit in (limits or {}).items() if limit is not None},
        "failures": [
            {"document": record.document, "source": record.source, "error": record.error}
            for record in documents
            if record.status != "scored"
        ],
    }


def _window_figures(
    windows: WindowResults, totals: RunTotals, segments: Sequence[SegmentRecord], num_words: int, num_bytes: int
) -> dict[str, Any]:
    """Return the figures of the backbone in overlapping windows, and the change from them to memory.

    The same segments are resampled as for the other figures, so the change is paired.
    """
    assert totals.window is not None, "windows were scored without being counted"
    scored = [record for record in segments if record.num_tokens]
    window_nats = [windows.nats[record.document, record.segment] for record in scored]
    nats = [
        SegmentNats(record.nll_longmem, alone, record.num_tokens)
        for record, alone in zip(scored, window_nats, strict=True)
    ]
    figures = asdict(compute_perplexities(nats, num_words, num_bytes)) if nats else None
    return {
        **asdict(windows.shape),
        "windows": windows.num_windows,
        "nats": fsum(window_nats),
        "perplexity": figures and {name: figures[name]["backbone"] for name in ("token", "word", "byte")},
        "bits_per_byte": figures and figures["bits_per_byte"]["backbone"],
        "change_to_memory": figures and figures["change"],
        "tokens_read": totals.window.tokens,
        "busy_s": totals.window.busy_s,
        "wall_s": totals.window.wall_s,
        "memory_busy_s": sum(stage.busy_s for stage in totals.stages.values()),
        "memory_wall_s": totals.wall_s,
    }
