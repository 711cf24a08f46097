# SPDX-License-Identifier: Apache-2.0
"""A training run on disk: weights and optimiser in safetensors, the rest in JSON. A checkpoint is written atomically.

checkpoints/step-00000200/   <weights>.safetensors · optimiser.safetensors · state.json
"""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import xxhash
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from longmem.errors import CheckpointError, OutputError
from longmem.wording import reason_of

OPTIMISER_FILE = "optimiser.safetensors"
STATE_FILE = "state.json"
UNFINISHED = ".unfinished"
MOMENTS = ("exp_avg", "exp_avg_sq")
KEPT = 2
"""Number of newest checkpoints kept: one to resume from, and its predecessor in case the newest is damaged."""


@dataclass(frozen=True)
class RunState:
    """Content of a checkpoint; tensors are on the CPU."""

    state: dict[str, Any]
    weights: dict[str, Tensor]
    moments: dict[str, Tensor]

    @property
    def step(self) -> int:
        return int(self.state["step"])


def write_run_state(
    folder: Path,
    weights_file: str,
    weights: Mapping[str, Tensor],
    optimiser: torch.optim.Optimizer,
    parameters: Mapping[str, nn.Parameter],
    state: Mapping[str, Any],
) -> Path:
    """Write a checkpoint; `state` holds `step`. Deletes all but the newest `KEPT`. Raises OutputError."""
    target = folder / f"step-{state['step']:08d}"
    # one process at a time writes here (the job's folder is locked), so leftovers of a killed one are overwritten
    scratch = folder / UNFINISHED
    try:
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True)
        save_file({name: tensor.contiguous() for name, tensor in weights.items()}, scratch / weights_file)
        save_file(_moments(optimiser, parameters), scratch / OPTIMISER_FILE)
        digests = {name: _digest(scratch / name) for name in (weights_file, OPTIMISER_FILE)}
        (scratch / STATE_FILE).write_text(json.dumps({**state, "digests": digests}) + "\n", encoding="utf-8")
        shutil.rmtree(target, ignore_errors=True)
        scratch.rename(target)
        for old in checkpoints(folder)[:-KEPT]:
            shutil.rmtree(old)
    except (OSError, SafetensorError) as error:
        raise OutputError(
            f"cannot write {target}: {reason_of(error)}; repair that and run again with --resume"
        ) from error
    return target


def checkpoints(folder: Path) -> list[Path]:
    """Return complete checkpoints, oldest first."""
    return sorted(path for path in folder.glob("step-*") if (path / STATE_FILE).is_file())


def read_run_state(path: Path, weights_file: str) -> RunState:
    """Read a checkpoint. Raises CheckpointError when a file is missing or damaged.

    Digests are checked here, because safetensors itself does not detect a flipped bit.
    """
    try:
        state: dict[str, Any] = json.loads((path / STATE_FILE).read_text(encoding="utf-8"))
        for name, expected in state["digests"].items():
            if (found := _digest(path / name)) != expected:
                raise ValueError(f"{name} is not what was saved (digest {expected}, got {found})")
        return RunState(state, load_file(path / weights_file), load_file(path / OPTIMISER_FILE))
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise CheckpointError(
            f"cannot read {path}: {reason_of(error)}; delete it to go on from the one before it"
        ) from error


def restore_moments(
    path: Path, saved: RunState, optimiser: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter]
) -> None:
    """Restore the saved state of an Adam optimiser of these parameters. Raises CheckpointError."""
    for name, parameter in parameters.items():
        if not all(f"{name}.{moment}" in saved.moments for moment in MOMENTS):
            raise CheckpointError(f"{path / OPTIMISER_FILE} lacks {name}: it is of a run that trained other parameters")
        optimiser.state[parameter] = {
            "step": torch.tensor(float(saved.step)),
            **{moment: saved.moments[f"{name}.{moment}"].to(parameter.device) for moment in MOMENTS},
        }


def _moments(optimiser: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """Return the optimiser's moments; zeros for parameters without a gradient so far, as Adam would initialise them."""
    state = optimiser.state
    return {
        f"{name}.{moment}": (
            state[parameter][moment] if parameter in state else torch.zeros_like(parameter)
        ).contiguous()
        for name, parameter in parameters.items()
        for moment in MOMENTS
    }


def _digest(path: Path) -> str:
    return xxhash.xxh3_128_hexdigest(path.read_bytes())
