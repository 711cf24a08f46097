# SPDX-License-Identifier: Apache-2.0
"""Measurements of `longmem doctor --model --reading`, against models that have the settings from the start."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from longmem import LongMem
from longmem.errors import ConfigError, DocumentError
from pipelines.cli import app
from pipelines.doctor.reading_probe import ReadingProbe, ReadingWay, probe_reading, ways_of
from tests.texts import prose

SETTINGS: dict[str, Any] = {
    "memory_layers": "all",
    "segment_tokens": 32,
    "near_tokens": 8,
    "read_blocks": 2,
    "block_tokens": 4,
    "kv_dtype": "float32",
}
TEXT = prose(0, 400)


def model_of(folder: Path, **changes: Any) -> LongMem:
    return LongMem.from_backbone(folder, **{**SETTINGS, **changes})


def test_each_way_has_the_perplexity_of_a_model_with_its_settings(small_backbone: Callable[[str], Path]) -> None:
    folder = small_backbone("llama")
    model = model_of(folder)
    told: list[tuple[int, int]] = []
    probe = probe_reading(model, TEXT, lambda done, total: told.append((done, total)))
    assert [way.perplexity for way in probe.ways] == sorted(way.perplexity for way in probe.ways)
    assert {way.name for way in probe.ways} == {"nothing", *ways_of(model)}
    # four segments, of which the last three have blocks to choose from in six ways
    assert probe.num_tokens == 96
    assert told == [(done, 22) for done in range(1, 23)]
    for way in probe.ways:
        changes = {"near_tokens": 0, "read_blocks": 0} if way.settings is None else way.settings
        logprobs = model_of(folder, copy_head=False, **changes).score(TEXT).logprobs
        assert way.perplexity == pytest.approx(math.exp(-logprobs[32:128].astype(np.float64).mean()), rel=1e-5), way


def test_the_model_is_left_as_it_was(small_backbone: Callable[[str], Path]) -> None:
    model = model_of(small_backbone("llama"))
    before = model.score(TEXT).perplexity
    probe_reading(model, TEXT)
    assert model.score(TEXT).perplexity == before


def way(settings: dict[str, Any] | None, change: float, error: float) -> ReadingWay:
    return ReadingWay("a way", settings, 10.0, change, error)


@pytest.mark.parametrize(
    ("best", "advised"),
    [
        (way({"block_choice": "both"}, -0.03, 0.01), True),
        (way({"block_choice": "both"}, -0.01, 0.01), False),
        (way(None, -0.03, 0.01), False),
        (way({"block_choice": "random"}, -0.03, 0.01), False),
        (way({}, 0.0, 0.0), False),
    ],
)
def test_only_what_is_clearly_better_is_advised(best: ReadingWay, advised: bool) -> None:
    assert ReadingProbe([best, way({}, 0.0, 0.0)], 100).advice == (best if advised else None)


def test_a_clear_second_is_advised_and_nothing_may_be_best() -> None:
    first, second = way({"read_blocks": 0}, -0.03, 0.02), way({"block_choice": "both"}, -0.02, 0.005)
    assert ReadingProbe([first, second], 100).advice == second
    assert ReadingProbe([way(None, -0.03, 0.01), way({}, 0.0, 0.0)], 100).is_useless
    assert not ReadingProbe([way(None, -0.01, 0.01), way({}, 0.0, 0.0)], 100).is_useless


def test_a_model_that_reads_one_layer_is_refused(small_backbone: Callable[[str], Path]) -> None:
    with pytest.raises(ConfigError, match="--memory-layers all"):
        probe_reading(LongMem.from_backbone(small_backbone("llama"), segment_tokens=32), TEXT)


def test_a_text_without_blocks_to_choose_is_refused(small_backbone: Callable[[str], Path]) -> None:
    with pytest.raises(DocumentError, match="give a longer text"):
        probe_reading(model_of(small_backbone("llama")), prose(0, 5))


def test_the_command_prints_a_table_and_json(small_backbone: Callable[[str], Path], tmp_path: Path) -> None:
    model, text = tmp_path / "model", tmp_path / "book.txt"
    model_of(small_backbone("llama")).save_pretrained(model)
    text.write_text(TEXT)
    command = ["doctor", "--model", str(model), "--reading", "--text", str(text)]
    shown = CliRunner(env={"COLUMNS": "100"}).invoke(app, command)
    assert shown.exit_code == 0, shown.output
    assert "near past and blocks by overlap" in shown.output
    sizes = ["--segment-tokens", "16", "--limit-tokens", "96", "--near-tokens", "8", "--read-blocks", "2"]
    found = json.loads(CliRunner().invoke(app, [*command, *sizes, "--json"]).stdout)
    # six segments of 16 tokens; those from 32 on have more than two blocks of four beyond the newest eight
    assert found["num_tokens"] == 96 - 32
    model = LongMem.from_pretrained(tmp_path / "model", segment_tokens=16, near_tokens=8, read_blocks=2)
    expected = {way.name: way.perplexity for way in probe_reading(model, TEXT, limit_tokens=96).ways}
    assert {way["name"]: way["perplexity"] for way in found["ways"]} == pytest.approx(expected)
    short = CliRunner().invoke(app, [*command, *sizes, "--limit-tokens", "20"])
    assert (short.exit_code, "--limit-tokens must be at least 33 with these sizes, got 20" in short.output) == (2, True)
    alone = CliRunner().invoke(app, ["doctor", "--model", str(tmp_path / "model"), "--near-tokens", "8"])
    assert (alone.exit_code, "needs --reading" in alone.output) == (2, True)
    found = json.loads(CliRunner().invoke(app, [*command, "--json"]).stdout)
    assert len(found["ways"]) == 7
    assert found["num_tokens"] == 96
