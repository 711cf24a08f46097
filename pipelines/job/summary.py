"""`summary.json`: everything a reader needs to cite, question or repeat a result."""

from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from math import fsum
from platform import machine, python_version
from typing import Any

import longmem
from longmem.model.source import ModelDescription
from longmem.scoring.metrics import SegmentNats, compute_perplexities
from pipelines.perplexity.records import DocumentRecord, SegmentRecord
from pipelines.perplexity.run import RunTotals

LIBRARIES = ("torch", "transformers", "ray", "lancedb", "faiss-cpu", "pyarrow", "numpy")


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
) -> dict[str, Any]:
    """Return all figures of a finished job. Results count the documents that were scored; `failures` lists the others,
    `left_out` counts what stands in the inputs and is no document (`longmem.text.finding.LeftOut`).

    Seconds, and segments and tokens of stages, are sums over all runs that worked on the job (`work_slices.py`): a
    segment that was encoded again because its run was killed counts each time.
    """
    scored = [record for record in documents if record.status == "scored"]
    num_words = sum(record.num_words or 0 for record in scored)
    num_bytes = sum(record.num_bytes or 0 for record in scored)
    nats = [SegmentNats(record.nll_longmem, record.nll_backbone, record.num_tokens) for record in segments]
    num_tokens = sum(record.num_tokens for record in segments)
    figures = asdict(compute_perplexities(nats, num_words, num_bytes)) if num_tokens else None
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
        "nats": {"longmem": fsum(each.longmem for each in nats), "backbone": fsum(each.backbone for each in nats)},
        "perplexity": figures and {name: figures[name] for name in ("token", "word", "byte")},
        "bits_per_byte": figures and figures["bits_per_byte"],
        "change": figures and figures["change"],
        "wall_s": totals.wall_s,
        "stages": {stage: asdict(each) for stage, each in totals.stages.items()},
        "left_out": left_out or {},
        "failures": [
            {"document": record.document, "source": record.source, "error": record.error}
            for record in documents
            if record.status != "scored"
        ],
    }


def about(command: str, model: ModelDescription, executor: dict[str, Any], resumed: bool) -> dict[str, Any]:
    """What made a result: command, model, settings, where it ran, and every version."""
    return {
        "longmem_version": longmem.__version__,
        "command": command,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "resumed": resumed,
        "model": {
            "name": model.name,
            "family": model.family,
            "trained": model.trained,
            "num_parameters": model.num_parameters,
            "memory_layer": model.settings["memory_layer"],
            "fingerprint": {**asdict(model.fingerprint), "sidenet": model.sidenet},
        },
        "settings": model.settings,
        "executor": executor,
        "versions": {"python": f"{python_version()} ({machine()})", **{name: version(name) for name in LIBRARIES}},
    }


def copies(summary: dict[str, Any]) -> bool:
    """Whether the model's copy head had a memory to copy from: without that an untrained SideNet is its backbone."""
    settings = summary["settings"]
    return bool(settings["copy_head"] and settings["memory_tokens"])
