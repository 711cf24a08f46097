# SPDX-License-Identifier: Apache-2.0
"""Benchmark of whole demonstrations: read from memory, and the same ones encoded anew."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import demonstrations
from longmem import LongMem
from longmem.errors import ConfigError
from longmem.scoring.labels import LabelPrompt
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


Request = tuple[list[LabelPrompt], list[Any]]


def asked(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[Request]]:
    """Return the requests of both ways, with their results, once they were scored."""
    found: dict[str, list[Request]] = {"read_labels": [], "score_labels": []}
    for name, requests in found.items():
        score = getattr(demonstrations, name)

        def noting(
            model: LongMem, prompts: list[LabelPrompt], *read: Any, score: Any = score, requests: Any = requests
        ) -> list[Any]:
            requests.append((prompts, results := score(model, prompts, *read)))
            return results

        monkeypatch.setattr(demonstrations, name, noting)
    return found


def test_a_demonstration_behind_the_sink_alone_gives_the_same_scores(
    model: LongMem, task: PreparedTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = asked(monkeypatch)
    monkeypatch.setattr(demonstrations, "ITEMS_AT_ONCE", 3)
    figures = demonstrations.run(model, task, 1, 1, "idf", 0)
    assert [len(prompts) for prompts, _ in found["read_labels"]] == [3, 1]
    for (_, ours), (anew, theirs) in zip(found["read_labels"], found["score_labels"], strict=True):
        for mine, prompt, score in zip(ours, anew, theirs, strict=True):
            assert len(prompt.own) > 1
            assert mine.scores.logprobs == pytest.approx(score.backbone.logprobs, abs=1e-4)
    assert figures["items"] == 4
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
    (own, ours), (anew, _) = found["read_labels"][0], found["score_labels"][0]
    for prompt, reading, longer in zip(own, ours, anew, strict=True):
        assert len(reading.read) == 2
        shown = [
            stored[memory.units.starts[index] + offset]
            for index in reading.read
            for offset in range(memory.units.lengths[index])
        ]
        assert longer.context.tolist() == prompt.context.tolist()
        assert longer.own.tolist() == [*shown, *prompt.own.tolist()]
    assert "2 of 12 demonstrations, encoded in packs of 96 tokens" in demonstrations.markdown(figures)


def test_more_demonstrations_than_there_are_is_an_error(model: LongMem, task: PreparedTask) -> None:
    with pytest.raises(ConfigError, match="are 13"):
        demonstrations.run(model, task, 13, 3, "idf", 0)
