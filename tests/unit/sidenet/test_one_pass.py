# SPDX-License-Identifier: Apache-2.0
"""One pass: against plain transformers, which reads the whole text at once, or behind caches that are put together."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, DynamicCache
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from longmem import LongMem, MemoryStore
from longmem.backbone.families import FAMILIES
from longmem.backbone.small import SMALL_CONFIGS, save_small_backbone
from longmem.errors import CheckpointError, ConfigError, FingerprintError
from longmem.memory.context import ContextMemory, LocalMemory
from longmem.memory.view import MemoryView
from longmem.scoring.batch import Item, score_items
from longmem.scoring.text import score_sequence
from longmem.sidenet.block_choice import tokens_to_read
from longmem.sidenet.cache_reader import CacheReader
from longmem.synthetic.memory import encode
from longmem.text.segments import cut_segments
from longmem.types import DocumentKey

SETTINGS = {
    "memory_layers": "all",
    "one_pass": True,
    "segment_tokens": 16,
    "memory_tokens": 96,
    "top_k": 8,
    "near_tokens": 16,
    "read_blocks": 3,
    "block_tokens": 4,
    "kv_dtype": "float32",
}
NUM_TOKENS = 90
TOLERANCE = 2e-4
"""float32 sums in another order, over four layers with weights of magnitude 0.15."""
KEY = DocumentKey("default", "text")
TEXT = "the cat sat on the mat and the dog sat on the cat, " * 3


def open_model(folder: Path, family: str = "llama", **settings: object) -> LongMem:
    path = folder / family
    if not path.exists():
        save_small_backbone(path, family)
    return LongMem.from_backbone(path, **{**SETTINGS, **settings})


def sequence_of(model: LongMem, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    # few different tokens, so that places repeat
    return np.concatenate([[model.tokenizer.start_token], random.integers(0, 12, NUM_TOKENS)]).astype(np.int32)


def plain_logprobs(logits: torch.Tensor, targets: np.ndarray) -> np.ndarray:
    """Return the log-probability of each target after the row of logits at its place."""
    wanted = torch.tensor(targets.astype(np.int64))[:, None]
    return logits[: len(targets)].log_softmax(dim=1).gather(1, wanted)[:, 0].numpy()


# ALiBi and sliding windows: a cache behind a segment is theirs too, tests/unit/backbone/test_cache_assembly.py
PLAIN = sorted(
    name
    for name, family in FAMILIES.items()
    if not family.keys_have_positions and name != "bloom" and "sliding_window" not in SMALL_CONFIGS[name]
)


@pytest.mark.parametrize("family", PLAIN)
def test_a_near_past_that_holds_everything_is_full_attention(tmp_path: Path, family: str) -> None:
    """Every layer of a token has then read all tokens before it, as in one forward over the whole text."""
    settings = {"copy_head": False, "sink": False, "near_tokens": 96, "read_blocks": 0}
    model = open_model(tmp_path, family, **settings)
    sequence = sequence_of(model)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / family).eval()
    with torch.no_grad():
        logits = plain(torch.tensor(sequence[:-1].astype(np.int64))[None]).logits[0]
    expected = plain_logprobs(logits, sequence[1:])
    np.testing.assert_allclose(score_sequence(model, sequence).logprobs, expected, atol=TOLERANCE)
    two_passes = open_model(tmp_path, family, **settings, one_pass=False)
    assert abs(score_sequence(two_passes, sequence).logprobs - expected)[32:].max() > 10 * TOLERANCE


class NaiveLlama:
    """Plain transformers behind caches of chosen tokens. Keeps what `k_proj` and `v_proj` of each layer return."""

    def __init__(self, folder: Path) -> None:
        self._plain = AutoModelForCausalLM.from_pretrained(folder).eval()
        self._latest: dict[tuple[int, str], torch.Tensor] = {}
        for index, layer in enumerate(self._plain.model.layers):
            for name in ("k_proj", "v_proj"):
                getattr(layer.self_attn, name).register_forward_hook(self._keep(index, name))

    def _keep(self, index: int, name: str) -> Callable[..., None]:
        def hook(_module: object, _given: object, output: torch.Tensor) -> None:
            self._latest[index, name] = output

        return hook

    def run(self, tokens: np.ndarray, behind: list[dict]) -> tuple[torch.Tensor, list[dict]]:
        """Return logits, and what the projections of each token returned, behind the tokens of `behind`."""
        cache = None
        if behind:
            cache = DynamicCache()
            heads = self._plain.config.num_key_value_heads
            for index, _ in enumerate(self._plain.model.layers):
                keys, values = (
                    torch.stack([token[index, name] for token in behind])
                    .view(1, len(behind), heads, -1)
                    .transpose(1, 2)
                    for name in ("k_proj", "v_proj")
                )
                cos, sin = self._plain.model.rotary_emb(keys, torch.arange(len(behind))[None])
                cache.update(apply_rotary_pos_emb(keys, keys, cos, sin)[1], values, index)
        with torch.no_grad():
            logits = self._plain(torch.tensor(tokens.astype(np.int64))[None], past_key_values=cache).logits[0]
        kept = [{place: rows[0, at].clone() for place, rows in self._latest.items()} for at in range(len(tokens))]
        return logits, kept


def test_scores_equal_plain_attention_behind_what_earlier_segments_wrote(tmp_path: Path) -> None:
    model = open_model(tmp_path, copy_head=False)
    sequence = sequence_of(model)
    naive = NaiveLlama(tmp_path / "llama")
    sink = naive.run(sequence[:1], [])[1]
    memory, written, expected = LocalMemory(model), [], []
    for segment in cut_segments(KEY, sequence, 16):
        view = memory.view(segment.index)
        places = None if view is None else tokens_to_read(view, model.config)
        read = [] if places is None else [written[position] for position in view.starts[places].tolist()]
        logits, kept = naive.run(segment.tokens, [*sink, *read] if segment.index else [])
        written += kept
        expected.append(plain_logprobs(logits, segment.targets))
        memory.accept(model.encode_behind(segment, view).block)
    np.testing.assert_allclose(score_sequence(model, sequence).logprobs, np.concatenate(expected), atol=TOLERANCE)


def test_a_token_does_not_depend_on_later_ones(tmp_path: Path) -> None:
    model = open_model(tmp_path)
    sequence = sequence_of(model)
    changed = sequence.copy()
    changed[70:] = (changed[70:] + 5) % 12
    before, after = (score_sequence(model, each).logprobs for each in (sequence, changed))
    np.testing.assert_allclose(before[:69], after[:69], atol=TOLERANCE)
    assert abs(before[70:] - after[70:]).max() > 0.01


def test_a_store_gives_the_scores_of_a_private_memory_and_keeps_its_form(tmp_path: Path) -> None:
    model = open_model(tmp_path, kv_dtype="float16")
    alone = model.score(TEXT)
    with MemoryStore.open(tmp_path / "memory.lance") as store:
        stored = model.score(TEXT, store.document("text"))
        for other in ({"one_pass": False}, {"near_tokens": 12}, {"block_choice": "overlap"}, {"keys": "centred"}):
            with pytest.raises(
                FingerprintError, match="encoded_behind: 'memory_tokens=96, near_tokens=16, read_blocks=3"
            ):
                open_model(tmp_path, kv_dtype="float16", **other).score(TEXT, store.document("text"))
    assert np.array_equal(alone.logprobs, stored.logprobs)


def test_the_second_segment_reads_what_two_passes_write(tmp_path: Path) -> None:
    """The first segment reads nothing, so both write the same of it; from the third one on they differ.

    Copies differ earlier: the keys that ask for them have read the memory.
    """
    one, two = (open_model(tmp_path, copy_head=False, one_pass=one_pass) for one_pass in (True, False))
    sequence = sequence_of(one)
    found, expected = (score_sequence(model, sequence).logprobs for model in (one, two))
    np.testing.assert_allclose(found[:32], expected[:32], atol=TOLERANCE)
    assert abs(found - expected)[32:].max() > 10 * TOLERANCE


def test_a_text_after_a_document_reads_it(tmp_path: Path) -> None:
    """One pass and two write the same of a single segment, so that the segment after it has one score."""
    one, two = (open_model(tmp_path, copy_head=False, one_pass=one_pass) for one_pass in (True, False))
    words = "the cat sat on"
    scores = []
    for name, model in (("one", one), ("two", two)):
        with MemoryStore.open(tmp_path / f"{name}.lance") as store:
            model.score(words, store.document("before"))
            scores.append(model.score(words, store.document("before").as_read_only()))
    np.testing.assert_allclose(scores[0].logprobs, scores[1].logprobs, atol=TOLERANCE)
    assert abs(scores[0].logprobs - one.score(words).logprobs).max() > 10 * TOLERANCE


def test_the_backbone_alone_has_no_scores(tmp_path: Path) -> None:
    scores = open_model(tmp_path).score(TEXT)
    assert scores.backbone_logprobs is None
    assert np.isfinite(scores.perplexity)


def test_the_fingerprint_names_the_mean_key_by_which_blocks_are_chosen(tmp_path: Path) -> None:
    model, other = open_model(tmp_path), open_model(tmp_path)
    other.calibrate("another text, of other letters: 0123456789")
    assert "mean key" in model.fingerprint.differences(other.fingerprint)
    # tokens choose without keys
    model, other = open_model(tmp_path, block_choice="overlap"), open_model(tmp_path, block_choice="overlap")
    other.calibrate("another text, of other letters: 0123456789")
    assert model.fingerprint == other.fingerprint


def test_a_model_is_saved_without_it(tmp_path: Path) -> None:
    open_model(tmp_path).save_pretrained(tmp_path / "saved")
    again = LongMem.from_pretrained(tmp_path / "saved")
    assert again.config == replace(open_model(tmp_path).config, one_pass=False)
    path = tmp_path / "saved" / "config.json"
    description = json.loads(path.read_text())
    description["longmem"]["one_pass"] = True
    path.write_text(json.dumps(description))
    with pytest.raises(CheckpointError, match="got one_pass, which is given when a document is scored"):
        LongMem.from_pretrained(tmp_path / "saved")


def test_readings_name_the_blocks_that_every_layer_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compare them with the places whose keys and values were in the cache of the forward."""
    model = open_model(tmp_path)
    cached: list[torch.Tensor | None] = []
    assemble = CacheReader._cache

    def watched(
        reader: CacheReader, view: MemoryView | None, index: torch.Tensor | None, batch: int, room: int
    ) -> object:
        cached.append(index)
        return assemble(reader, view, index, batch, room)

    monkeypatch.setattr(CacheReader, "_cache", watched)
    memory = LocalMemory(model)
    for segment in cut_segments(KEY, sequence_of(model), 16):
        view = memory.view(segment.index)
        encoded = model.encode_behind(segment, view)
        score = model.score_segment(
            replace(segment, keep_readings=True), encoded.block.keys, encoded.state, view, encoded.backbone_logprobs
        )
        assert score.readings is not None
        assert len(cached) == (view is not None), "one forward for each segment"
        expected = set() if view is None else set(view.starts[cached.pop()].tolist())
        assert bool(expected) == (segment.index > 0)
        blocks = score.readings.blocks.tolist()
        assert {position for start, end in blocks for position in range(start, end)} == expected
        memory.accept(encoded.block)


def test_all_but_documents_is_refused(tmp_path: Path) -> None:
    """Items, prompts and contexts are encoded alone, so that their keys would not be those of one pass."""
    model = open_model(tmp_path, kv_dtype="float16")
    sequence = sequence_of(model)
    item = Item("item", sequence[:9], 5)
    uses: list[Callable[[], object]] = [
        lambda: model.encode(cut_segments(KEY, sequence, 16)[0]),
        lambda: model.generate("the cat", max_new_tokens=2),
        lambda: score_items(model, [item], [None]),
        lambda: ContextMemory(model, sequence).view(40),
        lambda: encode(model, 0, sequence[:16]),
    ]
    for use in uses:
        with pytest.raises(ConfigError, match="one_pass=True scores documents"):
            use()
    with pytest.raises(ConfigError, match="one_pass=True needs memory_layers=all, got memory_layers=one"):
        open_model(tmp_path, memory_layers="one")
    with pytest.raises(ConfigError, match="one_pass=True reads the memory while it encodes, got memory_tokens=0"):
        open_model(tmp_path, memory_tokens=0)
