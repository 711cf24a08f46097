# SPDX-License-Identifier: Apache-2.0
"""Benchmark of the parts of a memory that every layer reads."""

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from benchmarks import parts
from benchmarks.__main__ import app
from longmem import LongMem
from longmem.backbone.small import save_small_backbone
from longmem.errors import ConfigError

SIZES = {"segment_tokens": 32, "memory_tokens": 512, "near_tokens": 32, "read_blocks": 2, "block_tokens": 8, "top_k": 8}


@pytest.fixture
def model(tmp_path: Path) -> LongMem:
    save_small_backbone(tmp_path / "llama", "llama", max_position_embeddings=1024)
    return LongMem.from_backbone(tmp_path / "llama", memory_layers="all", **SIZES)


def sequence(seed: int, num_tokens: int = 140) -> np.ndarray:
    return np.random.default_rng(seed).integers(200, size=num_tokens).astype(np.int32)


def test_every_part_scores_every_token_once_and_the_model_is_left_as_it_was(model: LongMem) -> None:
    config, copy_head = model.sidenet.config, model.sidenet.copy_head
    found = parts.score_parts(model, sequence(0, 460), sequence(1, 460), parts.PARTS)
    assert {len(each) for each in found.values()} == {459}
    assert model.sidenet.config is config
    assert model.sidenet.copy_head is copy_head
    whole = found[parts.ALL]
    # the first segment has no memory
    for name, logprobs in found.items():
        np.testing.assert_allclose(logprobs[:32], whole[:32], atol=1e-5, err_msg=name)
    # no part equals the whole, or another one
    later = {name: logprobs[-240:] for name, logprobs in found.items()}
    assert len({each.tobytes() for each in later.values()}) == len(later)


def test_parts_are_what_they_are_called(model: LongMem, tmp_path: Path) -> None:
    plain = LongMem.from_backbone(
        tmp_path / "llama", memory_layers="all", copy_head=False, **{**SIZES, "near_tokens": 0}
    )
    found = parts.score_parts(model, sequence(0), sequence(1), {"blocks": parts.PARTS["blocks only"]})["blocks"]
    own = parts.score_parts(plain, sequence(0), sequence(1), {"all": parts.PARTS[parts.ALL]})["all"]
    np.testing.assert_allclose(found, own, atol=1e-5)


def test_rows_have_intervals_against_every_reference(model: LongMem) -> None:
    documents = {"a": sequence(0), "b": sequence(1)}
    first, rows = parts.run(model, documents, [(64, 32)], ["copies only", parts.ALL])
    assert [row.name for row in first] == [row.name for row in rows]
    assert [row.name for row in rows] == [parts.ALONE, "windows of 64, stride 32", parts.ALL, "copies only"]
    assert rows[0].changes[parts.ALONE].value == 0
    table = parts.markdown(rows)
    assert "| all parts, from token | segments alone | windows of 64, stride 32 |" in table
    assert table.count("\n| 0 |") == 1
    for only, documents_given, message in ((["none"], documents, "no part is named"), ([], {"a": sequence(0)}, "two")):
        with pytest.raises(ConfigError, match=message):
            next(parts.run(model, documents_given, [], only))


def test_the_command_writes_json_and_table(model: LongMem, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "model")
    for name in ("a", "b"):
        (tmp_path / f"{name}.txt").write_text(f"the {name} sat on the mat, " * 12)
    books = [str(tmp_path / f"{name}.txt") for name in ("a", "b")]
    given = ["parts", *books, "--model", str(tmp_path / "model"), "--dtype", "float32", "--only", "copies only"]
    out = tmp_path / "parts.json"
    result = CliRunner().invoke(app, [*given, "--window", "64:32", "--out", str(out)])
    assert result.exit_code == 0, result.output
    rows = json.loads(out.read_text())["rows"]
    assert [row["name"] for row in rows] == ["segments alone", "windows of 64, stride 32", "copies only"]
    assert out.with_suffix(".md").read_text() in result.output
    assert CliRunner().invoke(app, [*given, "--window", "64"]).exit_code == 2
