# SPDX-License-Identifier: Apache-2.0
"""Training: trained and frozen weights, one worker or many, and learned use of the memory."""

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from longmem.config import PAPER_FORM
from longmem.errors import CheckpointError, ConfigError, NumericError
from longmem.model.longmem import LongMem
from longmem.training.checkpoint import checkpoints, load_checkpoint, save_checkpoint
from longmem.training.config import TrainingConfig
from longmem.training.row_stream import Sequences
from longmem.training.trainer import Trainer, parameter_groups
from longmem.training.validation import validate
from tests.inputs import ALL_LAYERS

SEGMENT = 32
BEST_FORM = {
    "query": "key_space",
    "keys": "unit",
    "values": "next",
    "retrieval": "joint",
    "copy_head": True,
    "chunk_tokens": 1,
    "segment_tokens": SEGMENT,
}


def texts(count: int, segments: int, seed: int = 0) -> Sequences:
    random = np.random.default_rng(seed)
    sequences = [random.integers(0, 250, segments * SEGMENT + 1).astype(np.int32) for _ in range(count)]
    return [lambda sequence=sequence: sequence for sequence in sequences]


def recall_texts(count: int, seed: int = 0) -> list[np.ndarray]:
    """Return two segments of random tokens, then a copy of them: the second half is predictable from memory alone."""
    random = np.random.default_rng(seed)
    halves = [random.integers(0, 250, 2 * SEGMENT).astype(np.int32) for _ in range(count)]
    return [np.concatenate([half, half, half[:1]]) for half in halves]


@pytest.fixture(params=["paper", "best"])
def model(request: pytest.FixtureRequest, small_model: Callable[..., LongMem]) -> LongMem:
    form = PAPER_FORM if request.param == "paper" else BEST_FORM
    return small_model("llama", unsettled=True, **{**form, "segment_tokens": SEGMENT})


def test_the_backbone_stays_and_every_part_of_the_sidenet_moves(model: LongMem) -> None:
    backbone = model.backbone.digest()
    before = {name: tensor.clone() for name, tensor in model.sidenet.state_dict().items()}
    trainer = Trainer(model, texts(3, 6), TrainingConfig(steps=4, rows=2, micro_rows=1, warmup_steps=0))
    for _ in range(4):
        trainer.step()
    assert model.backbone.digest() == backbone
    # with random text a single run length may never occur, so single entries may stay; whole tensors may not
    unmoved = {name for name, tensor in model.sidenet.state_dict().items() if torch.equal(tensor, before[name])}
    assert unmoved <= {"reader.key_mean"}


def test_frozen_layers_stay(model: LongMem) -> None:
    before = {name: tensor.clone() for name, tensor in model.sidenet.state_dict().items()}
    trainer = Trainer(model, texts(3, 6), TrainingConfig(steps=2, rows=2, frozen_layers=True))
    trainer.step()
    trainer.step()
    after = model.sidenet.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in after if name.startswith(("layers.", "norm.")))
    assert not torch.equal(after["gate"], before["gate"])


def gradients(model: LongMem, rows: range, all_rows: int, micro_rows: int, steps: int) -> Tensor:
    """Return the gradient of the last of some steps whose updates are zero."""
    config = TrainingConfig(steps=steps, rows=all_rows, micro_rows=micro_rows, learning_rate=1e-12)
    taken: list[Tensor] = []
    trainer = Trainer(model, texts(4, 5), config, rows, lambda tensor: taken.append(tensor.clone()))
    for _ in range(steps):
        trainer.step()
    return taken[-1]


def test_two_workers_give_the_gradient_of_one_with_all_rows(model: LongMem) -> None:
    one = gradients(model, range(4), 4, 4, steps=3)
    two = gradients(model, range(2), 4, 2, steps=3) + gradients(model, range(2, 4), 4, 1, steps=3)
    # equal numbers added in another order: float32 sums of some thousand terms
    torch.testing.assert_close(two, one, rtol=1e-3, atol=1e-6 * float(one.abs().max()))


def test_loss_is_that_of_scoring(small_model: Callable[..., LongMem]) -> None:
    model = small_model("llama", unsettled=True, **BEST_FORM)
    sequence = texts(1, 4, seed=3)[0]()
    trainer = Trainer(model, [lambda: sequence], TrainingConfig(steps=4, rows=1, learning_rate=1e-12))
    nats = sum(trainer.step().nats for _ in range(4))
    result = validate(model, [sequence])
    assert result.with_memory * result.tokens == pytest.approx(nats, rel=1e-5)
    # validation reads like `score`
    text = model.tokenizer.decode(list(range(97, 97 + 26)) * 8)
    scored = model.score(text)
    judged = validate(model, [model.tokenizer.sequence(text)])
    kept = judged.tokens
    assert -scored.logprobs[:kept].mean(dtype=np.float64) == pytest.approx(judged.with_memory, rel=1e-5)
    assert -scored.backbone_logprobs[:kept].mean(dtype=np.float64) == pytest.approx(judged.backbone, rel=1e-5)


def test_recall_goes_from_chance_to_nearly_certain(small_model: Callable[..., LongMem]) -> None:
    model = small_model("llama", unsettled=False, **{**BEST_FORM, "memory_tokens": 2 * SEGMENT})
    judged = recall_texts(6, seed=99)

    documents = [lambda each=each: each for each in recall_texts(64)]
    with torch.no_grad():
        # the fitted start would copy at once; this one does not, so the recall was learned here
        model.sidenet.copy_head.bias.fill_(-8.0)
        model.sidenet.copy_head.repeats.bias.fill_(-20.0)
    before = validate(model, judged)
    trainer = Trainer(model, documents, TrainingConfig(steps=90, rows=4, learning_rate=1e-2, warmup_steps=5))
    for _ in range(90):
        trainer.step()
    after = validate(model, judged)
    # half of the tokens are always random; the other half is predictable from memory
    unknown = after.without_memory
    recalled = 2 * after.with_memory - unknown
    at_first = np.exp(-(2 * before.with_memory - before.without_memory))
    assert at_first < 0.05, f"before training, tokens to recall have probability {at_first:.3f}"
    assert np.exp(-recalled) > 0.95, f"recalled tokens have probability {np.exp(-recalled):.3f}"
    assert after.without_memory > 4.5, "without memory nothing can be recalled"


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt"])
def test_a_killed_run_goes_on_as_if_it_had_not_been(
    family: str, tmp_path: Path, small_model: Callable[..., LongMem]
) -> None:
    """Check that dropout, which GPT-2 and OPT have, stays off in the copy of a frozen backbone."""
    model = small_model(family, unsettled=True, **BEST_FORM)
    config = TrainingConfig(steps=8, rows=2, warmup_steps=2)
    start = {name: tensor.clone() for name, tensor in model.sidenet.state_dict().items()}
    trainer = Trainer(model, texts(3, 5), config)
    losses = [trainer.step().loss for _ in range(8)]

    model.sidenet.load_state_dict(start)
    killed = Trainer(model, texts(3, 5), config)
    for _ in range(5):
        killed.step()
    save_checkpoint(tmp_path, killed, [row.state() for row in killed.rows])
    model.sidenet.load_state_dict(start)
    resumed = Trainer(model, texts(3, 5), config)
    load_checkpoint(checkpoints(tmp_path)[-1], resumed, [0, 1])
    assert resumed.step_count == 5
    # the memory is encoded again row by row with different rounding, which three updates amplify
    assert [resumed.step().loss for _ in range(3)] == pytest.approx(losses[5:], rel=1e-4)


def test_damaged_checkpoints_are_refused(tmp_path: Path, small_model: Callable[..., LongMem]) -> None:
    model = small_model("llama", **BEST_FORM)
    trainer = Trainer(model, texts(2, 3), TrainingConfig(steps=2, rows=2))
    trainer.step()
    path = save_checkpoint(tmp_path, trainer, [row.state() for row in trainer.rows])
    other = Trainer(model, texts(2, 3), TrainingConfig(steps=2, rows=1))
    with pytest.raises(CheckpointError, match="has 2 rows, the run has 1"):
        load_checkpoint(path, other, [0])
    weights = bytearray((path / "sidenet.safetensors").read_bytes())
    weights[-5] ^= 1
    (path / "sidenet.safetensors").write_bytes(weights)
    with pytest.raises(CheckpointError, match="is not what was saved"):
        load_checkpoint(path, trainer, [0, 1])
    (path / "optimiser.safetensors").write_bytes(b"not safetensors")
    with pytest.raises(CheckpointError, match="delete it to go on from the one before"):
        load_checkpoint(path, trainer, [0, 1])


def test_only_the_newest_checkpoints_stay(tmp_path: Path, small_model: Callable[..., LongMem]) -> None:
    trainer = Trainer(small_model("llama", **BEST_FORM), texts(2, 6), TrainingConfig(steps=4, rows=1))
    for _ in range(4):
        trainer.step()
        save_checkpoint(tmp_path, trainer, [row.state() for row in trainer.rows])
    assert [path.name for path in checkpoints(tmp_path)] == ["step-00000003", "step-00000004"]


def test_a_loss_that_is_not_finite_stops_before_anything_is_applied(small_model: Callable[..., LongMem]) -> None:
    model = small_model("llama", **BEST_FORM)
    with torch.no_grad():
        model.sidenet.scale[0] = torch.nan
    before = model.sidenet.gate.detach().clone()
    with pytest.raises(NumericError, match="step 1: expected a finite loss"):
        Trainer(model, texts(2, 3), TrainingConfig(steps=2, rows=1)).step()
    assert torch.equal(model.sidenet.gate, before)


def test_a_model_without_a_sidenet_is_refused(small_model: Callable[..., LongMem]) -> None:
    model = small_model(**ALL_LAYERS)
    with pytest.raises(ConfigError, match="longmem fit"):
        Trainer(model, [], TrainingConfig())


def test_only_copied_matrices_decay(model: LongMem) -> None:
    names = {id(parameter): name for name, parameter in model.sidenet.named_parameters()}
    for group in parameter_groups(model.sidenet, TrainingConfig()):
        for parameter in group["params"]:  # type: ignore[attr-defined]
            copied_matrix = names[id(parameter)].startswith("layers.") and parameter.ndim > 1
            assert (group["weight_decay"] == TrainingConfig().weight_decay) == copied_matrix, names[id(parameter)]


def test_groups_hold_every_trained_parameter_once(model: LongMem) -> None:
    groups = parameter_groups(model.sidenet, TrainingConfig())
    grouped = [id(parameter) for group in groups for parameter in group["params"]]  # type: ignore[attr-defined]
    trained = [id(parameter) for parameter in model.sidenet.parameters() if parameter.requires_grad]
    assert sorted(grouped) == sorted(trained)


def test_learning_rate_warms_up_and_cools_down() -> None:
    config = TrainingConfig(steps=100, warmup_steps=10, final_fraction=0.1)
    rates = [config.rate(step) for step in range(101)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == rates[9] == rates[10] == pytest.approx(1.0)
    assert all(a > b for a, b in pairwise(rates[10:]))
    assert rates[100] == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("name", "value"),
    [("steps", 0), ("rows", 1.5), ("micro_rows", True), ("learning_rate", 0), ("clip_norm", float("nan")),
     ("warmup_steps", -1), ("final_fraction", 2), ("weight_decay", -0.1)],
)  # fmt: skip
def test_values_that_cannot_work_are_named(name: str, value: object, as_users_run: None) -> None:
    with pytest.raises(ConfigError, match=name):
        TrainingConfig.from_dict({name: value})
