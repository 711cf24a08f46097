"""What one segment costs on one machine: the numbers that a plan multiplies, measured once and kept in a file."""

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from longmem.errors import ConfigError
from longmem.system.redaction import redacted_values
from pipelines.job.output import write_json

VERSION = 3
"""Of the file's layout."""


COSTS = ("encode", "prepare", "put", "put_more", "read", "read_more", "record", "forget")
"""Fields of UnitCosts that are a plain Cost."""


@dataclass(frozen=True)
class Cost:
    """Seconds of one operation on a full segment."""

    wall_s: float
    cpu_s: float
    """Of the whole process: a library's own threads count too."""
    spread: float = 0.0
    """Noise: the distance between the quartiles of the repetitions, as a share of their median."""
    repetitions: int = 1


@dataclass(frozen=True)
class CostLine:
    """Seconds as a straight line over the tokens in the window: `base_s + per_token_s · tokens`."""

    base_s: float
    per_token_s: float

    def at(self, window_tokens: np.ndarray) -> np.ndarray:
        return np.maximum(self.base_s + self.per_token_s * window_tokens, 0.0)


@dataclass(frozen=True)
class ScoreCost:
    """Scoring one full segment, without fetching its past."""

    empty: Cost
    """With nothing in the window: what the first segment of every document costs."""
    wall: CostLine
    cpu: CostLine
    residual: float
    """Largest distance of a measured level from the line, as a share of what was measured."""
    levels: tuple[tuple[int, Cost], ...]
    """What the lines were fitted to: tokens in the window and the cost there."""


@dataclass(frozen=True)
class RayCost:
    """What Ray adds to the same work in one process."""

    call: Cost
    """One segment through all its stages: round trips and copies. `wall_s` is latency, which pipelining hides;
    `cpu_s` is work that takes a core from somebody."""
    start_s: float
    """From nothing to workers that hold their model."""
    encoder_bytes: int
    """Resident memory of one encoder; that of a reader is without its windows."""
    reader_bytes: int
    store_bytes: int
    daemon_bytes: int
    """Of Ray's own processes on one node."""
    idle_cores: float = 0.0
    """What Ray's processes on one node keep busy while no task runs."""


@dataclass(frozen=True)
class UnitCosts:
    """Measured unit costs of a model with its settings on a machine."""

    identity: dict[str, Any]
    """Model and settings; a plan for any other refuses these costs."""
    environment: dict[str, Any]
    """Machine and versions."""
    segment_tokens: int
    memory_tokens: int
    encode: Cost
    prepare: Cost
    """The SideNet's layers that need no memory; part of `score`, unless an encoder runs them."""
    put: Cost
    put_more: Cost
    """Each further block that is written in the same commit."""
    read: Cost
    """One block from the store into a reader's window."""
    read_more: Cost
    """Each further block that is fetched in the same call."""
    score: ScoreCost
    record: Cost
    """What the driver does for one segment: planning it and writing its result."""
    forget: Cost
    """Deleting one finished document."""
    tokenise_s: float
    """Of one token."""
    load_s: float
    """Opening the model."""
    block_bytes: int
    """Keys, values and token ids of a full segment."""
    state_bytes: int
    """Hidden states of a full segment."""
    window_bytes: int
    """A reader's full window."""
    store_overhead: float
    """Bytes on disk for each byte of a block."""
    record_bytes: int
    """Journal and tables, of one segment."""
    process_bytes: int
    """Resident memory of a process that encodes and scores, without its window."""
    ray: RayCost | None = None

    @property
    def segment_bytes(self) -> int:
        return self.block_bytes + self.state_bytes


def without_waiting(costs: UnitCosts) -> UnitCosts:
    """The costs of a machine that does nothing else: with one thread, no operation takes longer than it computes.

    With more threads wall and CPU seconds do not compare, and the costs stay as they were measured.
    """
    if costs.identity["threads"] != 1:
        return costs

    def quiet(cost: Cost) -> Cost:
        return replace(cost, wall_s=min(cost.wall_s, cost.cpu_s))

    quietened: dict[str, Any] = {name: quiet(getattr(costs, name)) for name in COSTS}
    score = replace(costs.score, empty=quiet(costs.score.empty), wall=costs.score.cpu)
    return replace(costs, score=score, **quietened)


def save_costs(costs: UnitCosts, path: Path) -> None:
    """Raises OutputError."""
    write_json(path, {"version": VERSION, **asdict(costs)}, advice="choose another --save-costs")


def load_costs(path: Path, identity: dict[str, Any], *, with_ray: bool) -> UnitCosts:
    """Costs that were saved for this very model and settings.

    `with_ray`: whether the plan needs what Ray adds. Raises ConfigError for a file that is not ours, or was measured
    with another model or other settings; the message names both sides.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read --costs {path}: {error.strerror}") from error
    except ValueError as error:
        raise ConfigError(f"--costs {path} is no file of `longmem plan --save-costs` ({error})") from error
    if not isinstance(values, dict) or values.pop("version", None) != VERSION:
        raise ConfigError(f"--costs {path} was not written by this version's `longmem plan --save-costs`")
    try:
        costs = _decode(values)
    except (KeyError, TypeError) as error:
        raise ConfigError(f"--costs {path} is damaged ({error!r}); measure again with --save-costs") from error
    if differences := _differences(costs.identity, redacted_values(identity)):
        raise ConfigError(
            f"--costs {path} was measured with another model or other settings (costs != plan): {differences}; "
            "measure again with --save-costs, or plan with the same options"
        )
    if with_ray and costs.ray is None:
        raise ConfigError(
            f"--costs {path} was measured with --address none and knows nothing of Ray: measure again with "
            "--address local, or plan for --address none"
        )
    return costs


def _decode(values: dict[str, Any]) -> UnitCosts:
    costs = {name: Cost(**values[name]) for name in COSTS}
    score = values["score"]
    levels = tuple((int(tokens), Cost(**cost)) for tokens, cost in score["levels"])
    measured = ScoreCost(
        Cost(**score["empty"]), CostLine(**score["wall"]), CostLine(**score["cpu"]), score["residual"], levels
    )
    ray = values["ray"] and RayCost(**{**values["ray"], "call": Cost(**values["ray"]["call"])})
    return UnitCosts(**{**values, **costs, "score": measured, "ray": ray})


def _differences(ours: dict[str, Any], theirs: dict[str, Any]) -> str:
    flat, other = _flat(ours), _flat(theirs)
    return "; ".join(
        f"{name}: {flat.get(name)!r} != {other.get(name)!r}"
        for name in sorted(flat.keys() | other.keys())
        if flat.get(name) != other.get(name)
    )


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat
