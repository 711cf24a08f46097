# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of SideNet training: the run's state (see `run_state`) and the positions of the rows.

checkpoints/step-00000200/   sidenet.safetensors · optimiser.safetensors · state.json
"""

from pathlib import Path

import torch

from longmem.errors import CheckpointError
from longmem.training.run_state import checkpoints, read_run_state, restore_moments, write_run_state
from longmem.training.trainer import Trainer

__all__ = ["checkpoints", "load_checkpoint", "save_checkpoint"]

SIDENET_FILE = "sidenet.safetensors"


def save_checkpoint(folder: Path, trainer: Trainer, row_states: list[dict[str, int]]) -> Path:
    """Write the run's state; `row_states` are those of all rows of all workers, in row order. Older checkpoints are
    deleted.

    Raises OutputError.
    """
    weights = trainer.model.sidenet.state_dict()
    state = {"step": trainer.step_count, "rows": row_states}
    return write_run_state(folder, SIDENET_FILE, weights, trainer.optimiser, _named(trainer), state)


def load_checkpoint(path: Path, trainer: Trainer, rows: list[int]) -> None:
    """Restore the saved state of a trainer that has the rows `rows`; every row encodes its memory again.

    Raises CheckpointError when a file is missing or damaged, or when model or number of rows differ.
    """
    saved = read_run_state(path, SIDENET_FILE)
    if len(saved.state["rows"]) != trainer.config.rows:
        raise CheckpointError(f"{path} has {len(saved.state['rows'])} rows, the run has {trainer.config.rows}")
    try:
        trainer.model.sidenet.load_state_dict(saved.weights)
    except RuntimeError as error:
        raise CheckpointError(f"{path} is of another model: {error}") from error
    restore_moments(path, saved, trainer.optimiser, _named(trainer))
    trainer.step_count = saved.step
    for row, index in zip(trainer.rows, rows, strict=True):
        row.restore(saved.state["rows"][index])


def _named(trainer: Trainer) -> dict[str, torch.nn.Parameter]:
    trained = {id(parameter) for parameter in trainer.parameters}
    return {name: p for name, p in trainer.model.sidenet.named_parameters() if id(p) in trained}
