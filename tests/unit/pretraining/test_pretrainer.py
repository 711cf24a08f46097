# SPDX-License-Identifier: Apache-2.0
"""The step against its definition, accumulation, weight decay, and checkpoints."""

import copy
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from longmem.backbone.new import LlamaShape, new_llama
from longmem.errors import CheckpointError, NumericError, OutputError
from longmem.pretraining.config import PretrainingConfig
from longmem.pretraining.pretrainer import Pretrainer
from longmem.pretraining.windows import Windows
from longmem.training.run_state import checkpoints

SHAPE = LlamaShape(layers=2, hidden_size=16, heads=2, head_dim=8, intermediate_size=24, vocab_size=32, max_positions=16)
CONFIG = PretrainingConfig(
    window_tokens=8, batch_tokens=48, micro_rows=4, learning_rate=1e-2, steps=8, warmup_steps=2, repeat_share=0.3
)
TOKENS = np.random.default_rng(0).integers(0, 32, 8 * 40 + 1).astype(np.uint16)


def pretrainer(config: PretrainingConfig = CONFIG, shape: LlamaShape = SHAPE, dtype: str = "float32") -> Pretrainer:
    return Pretrainer(new_llama(shape, 0, config.seed), Windows(TOKENS, config), config, dtype=dtype)


def test_a_step_is_the_mean_loss_clipped_and_applied_by_adamw() -> None:
    trained = pretrainer(replace(CONFIG, clip_norm=0.5))
    twin = copy.deepcopy(trained.model)
    result = trained.step()

    windows = torch.from_numpy(np.stack([Windows(TOKENS, CONFIG)[number] for number in range(6)]))
    logits = twin(input_ids=windows[:, :-1]).logits
    loss = nn.CrossEntropyLoss()(logits.flatten(0, 1), windows[:, 1:].flatten())
    loss.backward()
    parameters = [parameter for parameter in twin.parameters() if parameter.requires_grad]
    norm = math.sqrt(sum(float(parameter.grad.double().square().sum()) for parameter in parameters))
    assert norm > 0.5, "the gradient must be long enough for clipping to matter"
    # sums of 48 float32 losses in another order: a few units in the last place
    assert result.loss == pytest.approx(loss.item(), rel=1e-5)
    assert result.gradient_norm == pytest.approx(norm, rel=1e-4)
    assert (result.step, result.tokens, result.learning_rate) == (1, 48, 5e-3)

    # Adam's first step is the learning rate in the direction of each gradient's sign, after the decay of matrices
    for (name, now), before in zip(trained.model.named_parameters(), parameters, strict=True):
        gradient = before.grad * min(1.0, 0.5 / norm)
        decayed = before * (1 - 5e-3 * CONFIG.weight_decay) if before.ndim > 1 else before
        torch.testing.assert_close(
            now, decayed - 5e-3 * gradient / (gradient.abs() + 1e-8), rtol=1e-3, atol=1e-5, msg=name
        )


def test_accumulation_does_not_change_the_curve() -> None:
    curves = []
    for micro_rows in (1, 4, 6, 100):
        trained = pretrainer(replace(CONFIG, micro_rows=micro_rows))
        curves.append([trained.step().loss for _ in range(4)])
    for curve in curves[1:]:
        # gradients added in another order differ in the last place; Adam keeps the difference that small
        assert curve == pytest.approx(curves[0], rel=1e-4)


def test_weights_stay_float32_under_bfloat16() -> None:
    trained = pretrainer(dtype="bfloat16")
    losses = [trained.step().loss for _ in range(2)]
    assert {parameter.dtype for parameter in trained.model.parameters()} == {torch.float32}
    # bfloat16 has three decimal digits
    assert losses == pytest.approx([pretrainer().step().loss, losses[1]], rel=1e-2)


def test_only_matrices_decay() -> None:
    decayed, rest = pretrainer().optimiser.param_groups
    assert decayed["weight_decay"] == CONFIG.weight_decay
    assert rest["weight_decay"] == 0
    assert {parameter.ndim for parameter in decayed["params"]} == {2}
    assert {parameter.ndim for parameter in rest["params"]} == {1}
    assert len(decayed["params"]) == 1 + 2 * 7, "a tied embedding once, seven matrices a layer"


def test_a_loss_that_is_not_finite_stops_before_it_is_applied() -> None:
    trained = pretrainer()
    with torch.no_grad():
        trained.model.get_input_embeddings().weight[:] = math.nan
    before = copy.deepcopy(trained.model.model.norm.weight)
    with pytest.raises(NumericError, match="step 1: expected a finite loss"):
        trained.step()
    assert torch.equal(trained.model.model.norm.weight, before)


def test_validation_is_the_mean_over_windows_and_changes_nothing() -> None:
    trained = pretrainer()
    windows = Windows(TOKENS[: 8 * 5 + 1], CONFIG, "validation")
    result = trained.validate(windows)
    rows = torch.from_numpy(np.stack([windows.plain(index) for index in range(5)]))
    twice = torch.cat([rows[:, :4], rows[:, :4], rows[:, :1]], dim=1)
    with torch.no_grad():
        nats = [
            nn.functional.cross_entropy(
                trained.model(input_ids=batch[:, :-1]).logits.transpose(1, 2), batch[:, 1:], reduction="none"
            )
            for batch in (rows, twice)
        ]
    assert result.tokens == 40
    assert result.text == pytest.approx(float(nats[0].mean()), rel=1e-5)
    assert result.repeated == pytest.approx(float(nats[1][:, 4:].mean()), rel=1e-5)
    assert trained.model.training
    assert trained.step().loss == pretrainer().step().loss


def test_a_resumed_run_goes_on_bit_for_bit(tmp_path: Path) -> None:
    whole = pretrainer()
    losses = [whole.step().loss for _ in range(6)]
    first = pretrainer()
    for _ in range(3):
        first.step()
    first.save(tmp_path)
    second = pretrainer()
    assert second.load(checkpoints(tmp_path)[-1]) == 3
    assert [second.step().loss for _ in range(3)] == losses[3:]


def test_only_the_newest_checkpoints_stay(tmp_path: Path) -> None:
    trained = pretrainer()
    for _ in range(3):
        trained.step()
        trained.save(tmp_path)
    assert [path.name for path in checkpoints(tmp_path)] == ["step-00000002", "step-00000003"]


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    trained = pretrainer()
    trained.step()
    path = trained.save(tmp_path)
    with pytest.raises(CheckpointError, match="of another model"):
        pretrainer(shape=replace(SHAPE, layers=1)).load(path)


def test_a_damaged_checkpoint_is_refused(tmp_path: Path) -> None:
    trained = pretrainer()
    trained.step()
    path = trained.save(tmp_path)
    (path / "optimiser.safetensors").write_bytes(b"\0" * 20)
    with pytest.raises(CheckpointError, match=r"cannot read .*step-00000001.*; delete it"):
        pretrainer().load(path)


def test_a_checkpoint_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("a file")
    trained = pretrainer()
    trained.step()
    with pytest.raises(OutputError, match=r"cannot write .*step-00000001"):
        trained.save(tmp_path / "checkpoints")
