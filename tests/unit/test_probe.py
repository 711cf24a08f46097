# SPDX-License-Identifier: Apache-2.0
"""Measurements of `longmem doctor --model` against their definitions."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from longmem.backbone.backbone import Backbone
from longmem.errors import DocumentError
from pipelines.cli import app
from pipelines.doctor.backbone_probe import PLACES, SCALES, SHARES, probe_backbone

SEGMENT = 32
FAMILIES = ("bloom", "gpt2", "gpt_neox", "llama", "opt", "qwen3")


def sequence_of(num_tokens: int, distinct: int = 200, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, distinct, num_tokens).astype(np.int32)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_can_be_probed(family: str, small_backbone: Callable[[str], Path]) -> None:
    backbone = Backbone.load(small_backbone(family))
    probe = probe_backbone(backbone, sequence_of(100), SEGMENT)
    assert [layer.layer for layer in probe.layers] == list(range(backbone.num_layers))
    assert probe.num_tokens == 96
    assert all(0 <= layer.induction <= 1 and 0 <= layer.found <= 1 for layer in probe.layers)
    assert math.isfinite(probe.first_loss + probe.second_loss)


def test_perplexity_is_that_of_plain_transformers(small_backbone: Callable[[str], Path]) -> None:
    folder = small_backbone("llama")
    sequence = sequence_of(97)
    plain = AutoModelForCausalLM.from_pretrained(str(folder)).eval()
    nats = 0.0
    for start in range(0, 96, SEGMENT):
        tokens = torch.from_numpy(sequence[start : start + SEGMENT].astype(np.int64))[None]
        targets = torch.from_numpy(sequence[start + 1 : start + 1 + SEGMENT].astype(np.int64))
        with torch.no_grad():
            nats += float(torch.nn.functional.cross_entropy(plain(tokens).logits[0], targets, reduction="sum"))
    assert probe_backbone(Backbone.load(folder), sequence, SEGMENT).perplexity == pytest.approx(
        math.exp(nats / 96), rel=1e-5
    )


def test_share_in_memory_is_the_count_of_known_pairs(small_backbone: Callable[[str], Path]) -> None:
    sequence = sequence_of(161, distinct=12)
    known = 0
    for place in range(160):
        segment_start = place // SEGMENT * SEGMENT
        earlier = {(int(sequence[i]), int(sequence[i + 1])) for i in range(segment_start)}
        known += (int(sequence[place]), int(sequence[place + 1])) in earlier
    probe = probe_backbone(Backbone.load(small_backbone("gpt2")), sequence, SEGMENT)
    assert probe.in_memory == pytest.approx(known / 160)


def test_a_text_read_again_is_found_and_gains(small_backbone: Callable[[str], Path]) -> None:
    once = sequence_of(2 * SEGMENT, seed=4)
    repeated = probe_backbone(Backbone.load(small_backbone("llama")), np.concatenate([once, once, once[:1]]), SEGMENT)
    random = probe_backbone(Backbone.load(small_backbone("llama")), sequence_of(4 * SEGMENT + 1, seed=5), SEGMENT)
    assert repeated.best.found > 0.45
    assert repeated.best.cache_gain < random.best.cache_gain - 0.1


def test_cache_gain_is_the_best_of_the_grid(small_backbone: Callable[[str], Path]) -> None:
    from pipelines.doctor.backbone_probe import _cache

    generator = torch.Generator().manual_seed(0)
    keys = torch.nn.functional.normalize(torch.randn((3 * SEGMENT, 8), generator=generator), dim=1)
    tokens = torch.randint(9, (3 * SEGMENT + 1,), generator=generator)
    logprobs = torch.randn(3 * SEGMENT, generator=generator) - 4
    best = math.inf
    for scale in SCALES:
        for share in SHARES:
            nats = 0.0
            for place in range(3 * SEGMENT):
                past = range(max(place // SEGMENT * SEGMENT - 1, 0))
                chance = math.exp(float(logprobs[place]))
                if len(past):
                    near = sorted(past, key=lambda i, place=place: -float(keys[place] @ keys[i]))[:PLACES]  # type: ignore[misc]
                    weights = torch.stack([keys[place].double() @ keys[i].double() for i in near]).mul(scale).softmax(0)
                    copied = sum(
                        float(w) for w, i in zip(weights, near, strict=True) if tokens[i + 1] == tokens[place + 1]
                    )
                    chance = (1 - share) * chance + share * copied
                nats -= math.log(chance)
            best = min(best, nats)
    gain, found = _cache(keys, tokens, logprobs, SEGMENT)
    assert gain == pytest.approx(math.expm1(best / len(logprobs) + float(logprobs.double().mean())), rel=1e-4)
    assert 0 < found < 1


def test_a_short_text_is_refused(small_backbone: Callable[[str], Path]) -> None:
    with pytest.raises(DocumentError, match="at least 65 tokens"):
        probe_backbone(Backbone.load(small_backbone("llama")), sequence_of(64), SEGMENT)


def test_the_command_prints_a_table_and_names_a_layer(tmp_path: Path, small_backbone: Callable[[str], Path]) -> None:
    text = tmp_path / "text.txt"
    text.write_text("It was the best of times, it was the worst of times. " * 12)
    result = CliRunner(env={"COLUMNS": "160"}).invoke(
        app, ["doctor", "--model", str(small_backbone("llama")), "--text", str(text)]
    )
    assert result.exit_code == 0, result.output
    assert "cache gain" in result.output
    assert "--memory-layer" in result.output
    assert "--memory-layers all" in result.output
    options = ["doctor", "--text", str(text), "--json", "--model"]
    read = json.loads(CliRunner().invoke(app, [*options, str(small_backbone("gpt2"))]).stdout)
    assert (read["reads_all_layers"], len(read["layers"])) == (False, 4), "gpt2 adds positions to its embeddings"
    assert read["memory_layer"] in range(4)
    refused = CliRunner().invoke(app, ["doctor", "--text", str(text)])
    assert refused.exit_code == 2
