# SPDX-License-Identifier: Apache-2.0
"""Whole jobs of a SideNet that is the backbone: its layers left out, and run. Plain forwards are the floor.

A job encodes each segment, writes it to LanceDB, reads it back and scores the segment with its memory, in one process.
The floor is the backbone's own forward and log-probabilities of the same segments, with the same linear layers.
"""

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from jaxtyping import Int32

from benchmarks.speed.table import BenchmarkRow, SpeedTable
from benchmarks.speed.timing import take_turns
from longmem.errors import ConfigError
from longmem.model.longmem import LongMem
from longmem.scoring.text import TextScores, score_sequence
from longmem.sidenet.sidenet import SideNet
from longmem.store.config import MemoryStore
from longmem.text.segments import cut_segments
from longmem.types import DocumentKey

LEFT_OUT, RUN, FLOOR = "layers left out", "layers run", "plain forwards"
FLOAT32 = "layers run, in float32"


def unchanged_layers(
    model: LongMem, sequence: Int32[np.ndarray, " tokens"], repeats: int, in_float32: LongMem | None = None
) -> SpeedTable:
    """Time whole jobs on one document; `in_float32`, the same model in that type, runs all of its layers.

    Raises ConfigError for a model whose layers change results.
    """
    sidenet = model.sidenet
    if not isinstance(sidenet, SideNet) or not sidenet.is_backbone:
        raise ConfigError(f"the layers of {model.backbone.name} change results; give a backbone or a copy-fitted model")
    segments = cut_segments(DocumentKey("", ""), sequence, model.config.segment_tokens)
    scores: dict[str, TextScores] = {}

    def job(name: str, scorer: LongMem) -> None:
        assert isinstance(scorer.sidenet, SideNet)
        scorer.sidenet.always_runs_layers = name != LEFT_OUT
        try:
            with (
                TemporaryDirectory(prefix="longmem-speed-") as folder,
                MemoryStore.open(Path(folder) / "memory.lance") as store,
            ):
                scores[name] = score_sequence(scorer, sequence, store.document("text"))
        finally:
            scorer.sidenet.always_runs_layers = False

    def floor() -> None:
        for segment in segments:
            hidden = model.backbone.run(torch.from_numpy(segment.tokens.copy())[None])
            model.backbone.target_logprobs(hidden[0], torch.from_numpy(segment.targets.copy()))

    cases: dict[str, Callable[[], object]] = {
        LEFT_OUT: lambda: job(LEFT_OUT, model),
        RUN: lambda: job(RUN, model),
        FLOOR: floor,
    }
    if in_float32 is not None:
        cases[FLOAT32] = lambda: job(FLOAT32, in_float32)
    with torch.no_grad():
        timings = take_turns(cases, repeats)
    ratio = _ratio(timings[RUN].wall_s, timings[LEFT_OUT].wall_s)
    differences = np.abs(scores[LEFT_OUT].logprobs - scores[RUN].logprobs)
    settings = {
        "threads": torch.get_num_threads(),
        "dtype": str(model.backbone.dtype).removeprefix("torch."),
        "tokens": len(sequence) - 1,
        "times_as_fast": ratio,
        "of_floor": _ratio(timings[LEFT_OUT].wall_s, timings[FLOOR].wall_s),
        "largest_difference_nats": float(differences.max()),
        "perplexity_changes_by": float(scores[LEFT_OUT].perplexity / scores[RUN].perplexity - 1),
    }
    if in_float32 is not None:
        settings["times_as_fast_as_in_float32"] = _ratio(timings[FLOAT32].wall_s, timings[LEFT_OUT].wall_s)
        settings["perplexity_against_float32"] = float(scores[LEFT_OUT].perplexity / scores[FLOAT32].perplexity - 1)
    title = f"{model.backbone.name}, {len(sequence) - 1:,} tokens: {ratio:.2f} times as fast without the layers"
    return SpeedTable(title, [BenchmarkRow(name, timing) for name, timing in timings.items()], settings)


def _ratio(longer: tuple[float, ...], shorter: tuple[float, ...]) -> float:
    """Return the median ratio of times of one round, which other load affects alike."""
    return float(np.median(np.divide(longer, shorter)))
