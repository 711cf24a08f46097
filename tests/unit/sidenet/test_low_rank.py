# SPDX-License-Identifier: Apache-2.0
"""A SideNet of low-rank changes: it starts as the backbone, learns only them, and is saved without the layers."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from longmem import LongMem
from longmem.backbone.families import FAMILIES
from longmem.training.checkpoint import load_checkpoint, save_checkpoint
from longmem.training.config import TrainingConfig
from longmem.training.trainer import Trainer
from longmem.training.worker import save_trained

RANK = 2
TEXT = "the cat sat on the mat and the dog sat on the cat, " * 4


def sequences(count: int) -> list:
    random = np.random.default_rng(0)
    found = [random.integers(0, 250, 6 * 32 + 1).astype(np.int32) for _ in range(count)]
    return [lambda sequence=sequence: sequence for sequence in found]


def trainer_of(model: LongMem) -> Trainer:
    return Trainer(model, sequences(3), TrainingConfig(steps=4, rows=2, micro_rows=1, warmup_steps=0))


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_before_training_it_computes_what_whole_layers_compute(
    small_model: Callable[..., LongMem], family: str
) -> None:
    whole = small_model(family, unsettled=True).score(TEXT)
    changed = small_model(family, unsettled=True, delta_rank=RANK).score(TEXT)
    np.testing.assert_allclose(changed.logprobs, whole.logprobs, atol=1e-5)


def test_training_moves_every_change_and_no_matrix(small_model: Callable[..., LongMem]) -> None:
    model = small_model("llama", unsettled=True, delta_rank=RANK)
    projection = model.sidenet.layers[0].mlp.down_proj
    base = projection.parametrizations.weight[0].base.clone()
    before = {name: tensor.clone() for name, tensor in model.sidenet.state_dict().items()}
    trainer = trainer_of(model)
    for _ in range(4):
        trainer.step()
    after = model.sidenet.state_dict()
    layers = [name for name in before if name.startswith("layers.")]
    assert not [name for name in layers if torch.equal(before[name], after[name])]
    assert torch.equal(projection.parametrizations.weight[0].base, base)
    change = projection.weight - base
    assert 0 < int(torch.linalg.matrix_rank(change, rtol=1e-4)) <= RANK


def test_what_is_saved_is_small_and_opens_as_it_was(small_model: Callable[..., LongMem], tmp_path: Path) -> None:
    model = small_model("llama", unsettled=True, delta_rank=RANK)
    trainer = trainer_of(model)
    for _ in range(2):
        trainer.step()
    save_trained(model, tmp_path / "deltas", trained_steps=2)
    save_trained(small_model("llama", unsettled=True), tmp_path / "whole", trained_steps=2)
    small, large = ((tmp_path / name / "sidenet.safetensors").stat().st_size for name in ("deltas", "whole"))
    assert small < 0.6 * large
    opened = LongMem.from_pretrained(tmp_path / "deltas")
    assert opened.config.delta_rank == RANK
    rounded = {name: tensor.bfloat16().float() for name, tensor in model.sidenet.state_dict().items()}
    model.sidenet.load_state_dict(rounded)
    np.testing.assert_allclose(opened.score(TEXT).logprobs, model.score(TEXT).logprobs, atol=1e-5)
    again = tmp_path / "again"
    opened.save_pretrained(again)
    assert (again / "sidenet.safetensors").read_bytes() == (tmp_path / "deltas" / "sidenet.safetensors").read_bytes()


def test_a_run_is_resumed_as_if_it_had_not_stopped(small_model: Callable[..., LongMem], tmp_path: Path) -> None:
    whole = trainer_of(small_model("llama", unsettled=True, delta_rank=RANK))
    for _ in range(2):
        whole.step()
    path = save_checkpoint(tmp_path, whole, [row.state() for row in whole.rows])
    expected = [whole.step().loss for _ in range(2)]
    resumed = trainer_of(small_model("llama", unsettled=True, delta_rank=RANK))
    load_checkpoint(path, resumed, [0, 1])
    assert [resumed.step().loss for _ in range(2)] == pytest.approx(expected, abs=1e-6)
