# SPDX-License-Identifier: Apache-2.0
"""The main job on complete novels: equal numbers in this process, on Ray, and from plain transformers.

The test is slow (some minutes) and needs the data folder: `pytest -m slow tests/end_to_end/test_novels.py`.
"""

import json
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from longmem.model.source import REFERENCE_MODEL

pytestmark = [pytest.mark.slow, pytest.mark.data, pytest.mark.timeout(1800)]

NOVELS = (
    "henry-james_the-turn-of-the-screw",
    "james-otis_the-adventures-of-a-country-boy-at-a-country-fair",
)
SEGMENT_TOKENS = 512
TABLES = ("documents", "segments", "tokens")


@pytest.fixture(scope="module")
def novels(data_folder: Path) -> list[Path]:
    return [data_folder / "books_test" / f"{name}.txt" for name in NOVELS]


def run(novels: list[Path], out: Path, *options: str) -> dict:
    command = [str(Path(sys.executable).parent / "longmem"), "perplexity", *map(str, novels), "--out", str(out)]
    subprocess.run([*command, "--tokens", "--threads", "1", *options], check=True)
    return json.loads((out / "summary.json").read_text())


@pytest.fixture(scope="module")
def inline(novels: list[Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    out = tmp_path_factory.mktemp("inline") / "run"
    return out, run(novels, out, "--address", "none")


@pytest.mark.ray
def test_ray_gives_the_same_chunks_and_log_probabilities(
    novels: list[Path], inline: tuple[Path, dict], tmp_path: Path
) -> None:
    run(novels, tmp_path / "run", "--address", "local", "--encoders", "2", "--readers", "2")
    for name in TABLES:
        ours, theirs = inline[0] / f"{name}.parquet", tmp_path / "run" / f"{name}.parquet"
        assert ours.read_bytes() == theirs.read_bytes(), name
    assert all(pq.read_table(inline[0] / "segments.parquet")["chunks_digest"].to_pylist())


def test_memory_lowers_perplexity(inline: tuple[Path, dict]) -> None:
    assert inline[1]["change"]["high"] < 0


def test_the_backbone_agrees_with_plain_transformers(novels: list[Path], inline: tuple[Path, dict]) -> None:
    """Compare with an independent computation: tokenise, cut and predict with transformers alone."""
    backbone = REFERENCE_MODEL / "backbone"
    tokenizer = AutoTokenizer.from_pretrained(backbone)
    model = AutoModelForCausalLM.from_pretrained(backbone, dtype=torch.float32).eval()
    nats, count = 0.0, 0
    for novel in novels:
        text = novel.read_text(encoding="utf-8")
        ids = [tokenizer.bos_token_id, *tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]]
        for start in range(0, len(ids), SEGMENT_TOKENS):
            tokens = torch.tensor([ids[start : start + SEGMENT_TOKENS]])
            targets = torch.tensor(ids[start + 1 : start + SEGMENT_TOKENS + 1])
            with torch.no_grad():
                logits = model(tokens).logits[0, : len(targets)]
            nats += torch.nn.functional.cross_entropy(logits.double(), targets, reduction="sum").item()
            count += len(targets)
    assert count == inline[1]["counts"]["tokens"]
    expected = torch.tensor(nats / count).exp().item()
    assert inline[1]["perplexity"]["token"]["backbone"]["value"] == pytest.approx(expected, rel=1e-4)
