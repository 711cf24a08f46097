# SPDX-License-Identifier: Apache-2.0
"""Benchmark of the peers on one pretrained backbone: every peer scores what it says, from the same history."""

from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from benchmarks.baselines.infllm import InfLLM, InfLLMSizes
from benchmarks.memory_scoring import LongMemBaseline
from benchmarks.speed import pretrained_peers as benchmark
from longmem import LongMem
from longmem.backbone.small import save_small_backbone
from longmem.errors import ConfigError
from longmem.scoring.evaluation_window import cut_windows
from longmem.scoring.text import score_sequence
from longmem.scoring.window_scores import score_window

SEGMENT = 64
SIZES = InfLLMSizes(
    initial_tokens=8, local_tokens=64, block_tokens=16, read_blocks=2, representatives=2, chunk_tokens=16
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LongMem:
    folder: Path = tmp_path_factory.mktemp("peers") / "llama"
    save_small_backbone(folder, "llama", max_position_embeddings=1024)
    sizes = {"segment_tokens": SEGMENT, "memory_tokens": 512, "near_tokens": 64, "read_blocks": 2, "block_tokens": 16}
    return LongMem.from_backbone(folder, memory_layers="all", top_k=8, **sizes)


@pytest.fixture(scope="module")
def sequence() -> np.ndarray:
    return np.random.default_rng(0).integers(257, size=5 * SEGMENT + 1).astype(np.int32)


def test_peers_score_as_their_methods_do(model: LongMem, sequence: np.ndarray) -> None:
    """Compare the two segments after three of history with a pass over the whole sequence.

    Tolerance: float32 log-probabilities below 20 in another order; bfloat16 plays no part.
    """
    short, one_pass, longmem, half, quarter, causal, _ = benchmark.lineup(
        model, [(128, SEGMENT), (128, 8)], SIZES, (16, 32)
    )
    whole = {
        short: score_sequence(benchmark.in_one_pass(model, 16, 32), sequence).logprobs,
        one_pass: score_sequence(benchmark.in_one_pass(model, SEGMENT, 64), sequence).logprobs,
        longmem: LongMemBaseline(model, "").logprobs(sequence),
        half: np.concatenate([score_window(model, each, "") for each in cut_windows(sequence, 128, SEGMENT)]),
        quarter: np.concatenate([score_window(model, each, "") for each in cut_windows(sequence, 128, 8)]),
        causal: InfLLM(model.backbone, SIZES).logprobs(sequence),
    }
    for peer, wanted in whole.items():
        peer.take_history(sequence[: 3 * SEGMENT])
        for start in (3 * SEGMENT, 4 * SEGMENT):
            found = peer.score(sequence, start, start + SEGMENT)
            chosen = peer.targets(SEGMENT)
            np.testing.assert_allclose(found, wanted[start : start + SEGMENT][chosen], atol=1e-5)
    # two of eight windows, at the middle of each half of the segment
    assert np.flatnonzero(quarter.targets(SEGMENT)).tolist() == [*range(16, 24), *range(48, 56)]
    assert half.targets(SEGMENT).all()


def test_the_table_has_every_peer(model: LongMem, sequence: np.ndarray) -> None:
    peers = benchmark.lineup(model, [(128, SEGMENT), (128, 8)], SIZES, (16, 32))
    table = benchmark.pretrained_peers(model, sequence, 3 * SEGMENT, 2, peers, Console(quiet=True))
    assert [line.name.split(",")[0] for line in table.lines] == [
        "LongMem",
        "LongMem",
        "LongMem",
        "plain transformers",
        "plain transformers",
        "InfLLM",
        "InfLLM",
    ]
    own = table.settings["peers"]["LongMem, one pass, segments of 16, near past 32"]
    assert own["perplexity"] == own["longmem_perplexity"]
    scored = [each["scored_tokens"] for each in table.settings["peers"].values()]
    assert scored == [2 * SEGMENT, 2 * SEGMENT, 2 * SEGMENT, 2 * SEGMENT, 32, 2 * SEGMENT, 2 * SEGMENT]
    fastest = max(each["tokens_per_cpu_s"] for name, each in table.settings["peers"].items() if "LongMem" not in name)
    assert table.settings["speed_against_best"] == own["tokens_per_cpu_s"] / fastest
    assert "memorizing-transformers-pytorch: not run, it cannot hold these weights" in table.markdown()


def test_some_peers_alone(model: LongMem) -> None:
    peers = benchmark.lineup(model, [(128, SEGMENT)], SIZES, (16, 32))
    assert benchmark.selected(peers, []) == peers
    some = benchmark.selected(peers, ["near past", "window"])
    assert [peer.name.split(",")[0] for peer in some] == ["LongMem", "plain transformers"]
    for only, said in (
        (["any"], "--only 'any': expected a part of one of these names: LongMem, one pass"),
        (["window"], "expected a row of LongMem and another one"),
        (["LongMem"], "expected a row of LongMem and another one"),
        (["LongMem", "the chunk itself"], "takes over the history of .* give both"),
    ):
        with pytest.raises(ConfigError, match=said):
            benchmark.selected(peers, only)
