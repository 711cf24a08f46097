# SPDX-License-Identifier: Apache-2.0
"""Small finished jobs of `probe --tokens` and `suffix --tokens`, over texts that would harm a page."""

import json
from io import StringIO
from pathlib import Path

from rich.console import Console

from longmem.model.source import ModelSource
from longmem.synthetic.pairs import PairPlan
from longmem.synthetic.passkey import PasskeyPlan
from longmem.testing import small_longmem
from pipelines.probe.job import ProbeJob, run_probe
from pipelines.suffix.job import SuffixJob, run_suffix
from pipelines.suffix.scoring import SuffixLengths
from tests.inputs import ALL_LAYERS, DEFAULT_FORM
from tests.texts import prose

HOSTILE = "<img src=x>\u202e&amp; naïve 😀"
FORMS = {"default": DEFAULT_FORM, "all layers": ALL_LAYERS}
EXAMPLES = 3
LENGTHS = (12, 128)
"""Lengths of context: without and with a memory."""


def finished_probe(folder: Path, form: str) -> Path:
    """Run a job of eight questions, two subjects and two conditions each, and return its folder."""
    model = folder / f"probing {form}"
    small_longmem(folder, **{**FORMS[form], "segment_tokens": 88, "memory_tokens": 528}).save_pretrained(model)
    plans = (
        PasskeyPlan(lengths=(160,), depths=(0.0, 1.0), trials=2, choices=3, key="digits"),
        PairPlan(subject="labels", examples=(6,), shots=(0, 1), questions=2, choices=3),
    )
    job = ProbeJob(ModelSource(str(model)), plans, None, folder / f"probe {form}", 1, keep_tokens=True)
    run_probe(job, Console(file=StringIO()))
    return job.out


def finished_suffix(folder: Path, form: str) -> Path:
    """Run a job of a few examples, whose first candidate begins as its context does, and return its folder."""
    model = folder / f"identifying {form}"
    small_longmem(folder, **{**FORMS[form], "chunk_tokens": 1}).save_pretrained(model)
    rows = []
    for seed in range(EXAMPLES):
        text = prose(seed, 60) if seed else HOSTILE + prose(seed, 60) + HOSTILE
        rows.append(
            {"prefix": text, "candidates": [text[:24], HOSTILE[::-1], prose(seed + 9, 8)], "label": 0, "book": "<b>"}
        )
    (folder / "examples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    job = SuffixJob(
        input=folder / "examples.jsonl",
        out=folder / f"suffix {form}",
        model=ModelSource(str(model)),
        lengths=SuffixLengths(context_tokens=LENGTHS, suffix_tokens=20),
        threads=1,
        keep_tokens=True,
    )
    run_suffix(job, Console(file=StringIO()))
    return job.out
