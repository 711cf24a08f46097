"""A training run on disk: weights and optimiser in safetensors, places of the rows in JSON; written whole or not.

checkpoints/step-00000200/   sidenet.safetensors · optimiser.safetensors · state.json
"""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from longmem.errors import CheckpointError
from longmem.training.trainer import Trainer

SIDENET_FILE = "sidenet.safetensors"
OPTIMISER_FILE = "optimiser.safetensors"
STATE_FILE = "state.json"
MOMENTS = ("exp_avg", "exp_avg_sq")
KEPT = 2
"""Newest checkpoints that stay: one to go on from, and the one before it should that be damaged."""


def save_checkpoint(folder: Path, trainer: Trainer, row_states: list[dict[str, int]]) -> Path:
    """Write the run's state; `row_states` are those of all rows of all workers, in row order. Older ones go."""
    target = folder / f"step-{trainer.step_count:08d}"
    scratch = folder / f".{target.name}.{os.getpid()}"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    save_file({name: t.contiguous() for name, t in trainer.model.sidenet.state_dict().items()}, scratch / SIDENET_FILE)
    save_file(_moments(trainer), scratch / OPTIMISER_FILE)
    state = {"step": trainer.step_count, "rows": row_states}
    (scratch / STATE_FILE).write_text(json.dumps(state) + "\n", encoding="utf-8")
    shutil.rmtree(target, ignore_errors=True)
    scratch.rename(target)
    for old in checkpoints(folder)[:-KEPT]:
        shutil.rmtree(old)
    return target


def checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    return sorted(path for path in folder.glob("step-*") if (path / STATE_FILE).is_file())


def load_checkpoint(path: Path, trainer: Trainer, rows: list[int]) -> None:
    """Bring a trainer that has these rows to the saved state; every row reads its memory again.

    Raises CheckpointError when a file is missing, damaged, or of another model or number of rows.
    """
    try:
        state: dict[str, Any] = json.loads((path / STATE_FILE).read_text(encoding="utf-8"))
        weights, moments = load_file(path / SIDENET_FILE), load_file(path / OPTIMISER_FILE)
    except (OSError, ValueError, SafetensorError) as error:
        raise CheckpointError(f"cannot read {path}: {error}; delete it to go on from the one before it") from error
    if len(state["rows"]) != trainer.config.rows:
        raise CheckpointError(f"{path} has {len(state['rows'])} rows, the run has {trainer.config.rows}")
    try:
        trainer.model.sidenet.load_state_dict(weights)
    except RuntimeError as error:
        raise CheckpointError(f"{path} is of another model: {error}") from error
    for name, parameter in _named(trainer).items():
        if not all(f"{name}.{moment}" in moments for moment in MOMENTS):
            raise CheckpointError(f"{path / OPTIMISER_FILE} lacks {name}: it is of a run that trained other parameters")
        trainer.optimiser.state[parameter] = {
            "step": torch.tensor(float(state["step"])),
            **{moment: moments[f"{name}.{moment}"].to(parameter.device) for moment in MOMENTS},
        }
    trainer.step_count = int(state["step"])
    for row, index in zip(trainer.rows, rows, strict=True):
        row.restore(state["rows"][index])


def _named(trainer: Trainer) -> dict[str, torch.nn.Parameter]:
    trained = {id(parameter) for parameter in trainer.parameters}
    return {name: p for name, p in trainer.model.sidenet.named_parameters() if id(p) in trained}


def _moments(trainer: Trainer) -> dict[str, torch.Tensor]:
    """Zeros for parameters that no gradient has reached yet, as Adam would start them."""
    state = trainer.optimiser.state
    return {
        f"{name}.{moment}": (
            state[parameter][moment] if parameter in state else torch.zeros_like(parameter)
        ).contiguous()
        for name, parameter in _named(trainer).items()
        for moment in MOMENTS
    }
