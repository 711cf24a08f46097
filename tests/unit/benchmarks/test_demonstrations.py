# SPDX-License-Identifier: Apache-2.0
"""Benchmark of whole demonstrations: read from memory, and the same ones encoded anew."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import demonstrations
from longmem import LongMem
from longmem.errors import ConfigError
from longmem.scoring.labels import LabelPrompt, score_labels
from longmem.testing import small_longmem
from pipelines.icl.task import load_task
from pipelines.icl.task_data import PreparedTask
from tests.inputs import DEFAULT_FORM
from tests.jobs import TASK


@pytest.fixture
def model(tmp_path: Path) -> LongMem:
    settings = {**DEFAULT_FORM, "memory_layers": "all", "segment_tokens": 96, "near_tokens": 16, "read_blocks": 0}
    settings["memory_tokens"] = 960
    return small_longmem(tmp_path, **settings, kv_dtype="float32")


@pytest.fixture
def task(tmp_path: Path, model: LongMem) -> PreparedTask:
    for name, rows in (("train", 12), ("test", 4)):
        lines = [json.dumps({"thing": "xw"[row % 2] * 3, "colour": ["red", "blue"][row % 2]}) for row in range(rows)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    (tmp_path / "colours.toml").write_text(TASK)
    return PreparedTask(load_task(str(tmp_path / "colours.toml"), None), model.tokenizer, 96, None, 0)


def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[LabelPrompt, Any]]:
    """Return the list that will hold every prompt that is scored, and its score."""
    found: list[tuple[LabelPrompt, Any]] = []

    def noting(model: LongMem, prompts: Sequence[LabelPrompt], *read: Any) -> list[Any]:
        scores = score_labels(model, prompts, *read)
        found.extend(zip(prompts, scores, strict=True))
        return scores

    monkeypatch.setattr(demonstrations, "score_labels", noting)
    return found


def test_a_demonstration_behind_the_sink_alone_gives_the_same_scores(
    model: LongMem, task: PreparedTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = asked(monkeypatch)
    figures = demonstrations.run(model, task, 1, 1, "idf", 0)
    for (_, ours), (anew, theirs) in zip(found[::2], found[1::2], strict=True):
        assert len(anew.context) > 1
        assert ours.longmem.logprobs == pytest.approx(theirs.backbone.logprobs, abs=1e-4)
    assert figures["items"] == len(found) / 2 == 4
    assert figures["accuracy_difference"]["value"] == 0
    assert figures["cases"]["read from memory"]["accuracy"] == 0.5


def test_the_same_demonstrations_are_encoded_anew_in_the_same_order(
    model: LongMem, task: PreparedTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = asked(monkeypatch)
    figures = demonstrations.run(model, task, 12, 2, "idf", 0)
    memory = task.memory(0, 12)
    assert memory is not None
    stored = {
        segment.start_token + offset: token
        for segment in memory.segments
        for offset, token in enumerate(segment.tokens.tolist())
    }
    assert len({segment.index for segment in memory.segments}) > 1
    for (own, ours), (anew, _) in zip(found[::2], found[1::2], strict=True):
        assert len(ours.read) == 2
        shown = [
            stored[memory.units.starts[index] + offset]
            for index in ours.read
            for offset in range(memory.units.lengths[index])
        ]
        assert anew.context.tolist() == [*own.context.tolist(), *shown]
        assert np.array_equal(anew.own, own.own)
    assert "2 of 12 demonstrations" in demonstrations.markdown(figures)


def test_more_demonstrations_than_there_are_is_an_error(model: LongMem, task: PreparedTask) -> None:
    with pytest.raises(ConfigError, match="are 13"):
        demonstrations.run(model, task, 13, 3, "idf", 0)
