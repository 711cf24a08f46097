# SPDX-License-Identifier: Apache-2.0
"""The controls change only the content read; the tables count every target once."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from benchmarks import controls
from benchmarks.__main__ import app
from benchmarks.memory_scoring import OtherBook, no_memory, own_memory, score_readings, shuffled_values
from longmem.memory.view import MemoryView
from longmem.model.longmem import LongMem
from longmem.types import DocumentKey, Segment


def segment_at(index: int, start_token: int) -> Segment:
    tokens = np.arange(4, dtype=np.int32)
    return Segment(DocumentKey("", ""), index, start_token, tokens, tokens)


def sequence_of(seed: int, num_tokens: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(257, size=num_tokens).astype(np.int32)


def test_shuffled_values_keep_keys_and_move_value_and_token_together(random_view: Callable[..., MemoryView]) -> None:
    view = random_view(2, 8)
    changed = shuffled_values(segment_at(3, view.end_token), view)
    assert changed is not None
    for name in ("chunk_keys", "keys", "starts", "lengths"):
        assert getattr(changed, name) is getattr(view, name)
    assert pairs(changed) == pairs(view)
    assert not torch.equal(changed.values, view.values)
    moved = (changed.values != view.values).any(dim=3).all(dim=0)
    real = torch.arange(4) < view.lengths[:, None]
    # a random permutation of n places has one fixed point on average
    assert moved[real].float().mean() > 0.8
    assert not moved[~real].any()
    again = shuffled_values(segment_at(3, view.end_token), view)
    assert again is not None
    assert torch.equal(again.values, changed.values)


def pairs(view: MemoryView) -> list[tuple[float, ...]]:
    """Return every real place as (token, values of all heads), sorted."""
    real = torch.arange(view.tokens.shape[1]) < view.lengths[:, None]
    values = view.values.permute(1, 2, 0, 3)[real].flatten(1)
    return sorted((float(token), *row.tolist()) for token, row in zip(view.tokens[real], values, strict=True))


def test_memory_off_is_a_model_without_memory(small_model: Callable[..., LongMem]) -> None:
    sequence = sequence_of(0, 150)
    off = score_readings(small_model(), sequence, {"off": no_memory})["off"]
    none = score_readings(small_model(memory_tokens=0), sequence, {"on": own_memory})["on"]
    np.testing.assert_array_equal(off, none)


def test_readings_do_not_disturb_each_other(small_model: Callable[..., LongMem]) -> None:
    model = small_model()
    sequence = sequence_of(0, 150)
    together = score_readings(model, sequence, {"shuffled": shuffled_values, "off": no_memory, "own": own_memory})
    alone = score_readings(model, sequence, {"own": own_memory})
    np.testing.assert_array_equal(together["own"], alone["own"])
    for name in ("shuffled", "off"):
        np.testing.assert_array_equal(together[name][:32], alone["own"][:32])
        assert not np.allclose(together[name][32:], alone["own"][32:], atol=1e-3)


def test_another_book_that_is_the_same_book_changes_nothing(small_model: Callable[..., LongMem]) -> None:
    model = small_model()
    sequence = sequence_of(0, 150)
    scores = score_readings(model, sequence, {"own": own_memory, "other": OtherBook(model, sequence)})
    np.testing.assert_array_equal(scores["own"], scores["other"])


@pytest.mark.parametrize("num_tokens", [20, 32, 70])
def test_a_shorter_book_is_read_as_far_as_it_goes(small_model: Callable[..., LongMem], num_tokens: int) -> None:
    model = small_model()
    other = OtherBook(model, sequence_of(1, num_tokens))
    views = [other(segment_at(index, 32 * index), None) for index in range(6)]
    whole = num_tokens // 32 * 32
    assert [view.num_tokens if view else 0 for view in views] == [min(32 * index, whole) for index in range(6)]
    assert all(view is None or view.end_token == 32 * index for index, view in enumerate(views))


def test_tables_count_every_target_once(small_model: Callable[..., LongMem]) -> None:
    model = small_model()
    documents = {name: sequence_of(seed, 300 + seed) for seed, name in enumerate(("a", "b"))}
    *_, figures = controls.run(model, documents)
    assert list(figures["readings"]) == [controls.OWN, controls.OFF, controls.OTHER, controls.SHUFFLED]
    assert figures["readings"][controls.OFF]["change_to_memory_off"]["value"] == 0.0
    for rows in figures["memory_on_minus_off"].values():
        assert sum(row["num_targets"] for row in rows) == 299 + 300
    own, off = (figures["readings"][name]["perplexity"]["value"] for name in (controls.OWN, controls.OFF))
    for rows in figures["memory_on_minus_off"].values():
        total = sum(row["num_targets"] * row["difference"]["value"] for row in rows if row["num_targets"])
        assert total / 599 == pytest.approx(np.log(own / off), abs=1e-6)
    json.dumps(figures, allow_nan=False)


def test_buckets_by_hand() -> None:
    ours, theirs = [np.array([-1.0, -2.0, -3.0], np.float32)], [np.array([-2.0, -2.0, -5.0], np.float32)]
    found = controls.buckets(ours, theirs, [np.array([0, 5, 10])], (0, 5, 10), 3)
    assert [(each.at_least, each.below, each.num_targets) for each in found] == [(0, 5, 1), (5, 10, 1), (10, None, 1)]
    assert [each.difference.value for each in found] == pytest.approx([-1.0, 0.0, -2.0])


def test_frequencies_are_per_million_targets_of_all_books() -> None:
    found = controls.frequencies([np.array([9, 1, 1, 2], np.int32), np.array([9, 1], np.int32)])
    assert [each.tolist() for each in found] == [[750_000, 750_000, 250_000], [750_000]]


def test_one_document_has_no_other_book(small_model: Callable[..., LongMem]) -> None:
    with pytest.raises(ValueError, match="two documents"):
        next(controls.run(small_model(), {"a": sequence_of(0, 100)}))


def test_command(small_model: Callable[..., LongMem], tmp_path: Path) -> None:
    small_model().save_pretrained(tmp_path / "model")
    for name in ("one", "two"):
        (tmp_path / f"{name}.txt").write_text(f"Book {name}: the cat sat on the mat. " * 20, encoding="utf-8")
    books, out = [str(tmp_path / f"{name}.txt") for name in ("one", "two")], tmp_path / "controls.json"
    arguments = ["--model", str(tmp_path / "model"), "--out", str(out)]
    result = CliRunner().invoke(app, ["controls", *books, *arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert json.loads(out.read_text())["books"] == ["one", "two"]
    table = out.with_suffix(".md").read_text()
    assert "shuffled" in table
    assert "position in the book" in table
    assert CliRunner().invoke(app, ["controls", books[0], *arguments]).exit_code == 2
