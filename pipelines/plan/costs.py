# SPDX-License-Identifier: Apache-2.0
"""Unit costs of one segment on one machine: inputs of a plan, measured once and stored in a file."""

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from longmem.errors import ConfigError
from longmem.system.redaction import redacted_values
from pipelines.job.output import write_json

VERSION = 4
"""Version of the file's layout."""


COSTS = ("encode", "prepare", "put", "put_more", "read", "read_more", "record", "forget")
"""Fields of UnitCosts of type Cost."""


@dataclass(frozen=True)
class Cost:
    """Cost in seconds of one operation on a full segment."""

    wall_s: float
    cpu_s: float
    """CPU seconds of the whole process, including threads of libraries."""
    spread: float = 0.0
    """Interquartile range of the repetitions, relative to their median."""
    repetitions: int = 1


@dataclass(frozen=True)
class CostLine:
    """Linear cost in seconds: `base_s + per_token_s · tokens`, with the tokens in the window."""

    base_s: float
    per_token_s: float

    def at(self, window_tokens: np.ndarray) -> np.ndarray:
        return np.maximum(self.base_s + self.per_token_s * window_tokens, 0.0)


@dataclass(frozen=True)
class ScoreCost:
    """Cost of scoring one full segment, without reading its past from the store."""

    empty: Cost
    """Cost with an empty window: that of the first segment of every document."""
    wall: CostLine
    cpu: CostLine
    residual: float
    """Maximum relative error of the fitted line over the measured levels."""
    levels: tuple[tuple[int, Cost], ...]
    """Fitted points: tokens in the window and the cost there."""


@dataclass(frozen=True)
class RayCost:
    """Overhead of Ray over the same work in one process."""

    call: Cost
    """Overhead of one segment through all stages: round trips and copies. `wall_s` is latency, which pipelining hides;
    `cpu_s` is work that occupies a core."""
    start_s: float
    """Seconds from the start of Ray to workers with a loaded model."""
    encoder_bytes: int
    """Resident bytes of one encoder."""
    reader_bytes: int
    """Resident bytes of one reader, without its windows."""
    store_bytes: int
    daemon_bytes: int
    """Resident bytes of Ray's own processes on one node."""
    idle_cores: float = 0.0
    """Mean number of cores that Ray's processes on one node use while no task runs."""


@dataclass(frozen=True)
class UnitCosts:
    """Unit costs of a model with its settings, measured on a machine."""

    identity: dict[str, Any]
    """Model and settings; a plan for another model or other settings rejects these costs."""
    environment: dict[str, Any]
    """Machine and library versions."""
    segment_tokens: int
    memory_tokens: int
    encode: Cost
    prepare: Cost
    """Cost of the SideNet's layers that need no memory; part of `score`, unless an encoder runs them."""
    put: Cost
    put_more: Cost
    """Cost of each further block in the same commit."""
    read: Cost
    """Cost of reading one block from the store into a reader's window."""
    read_more: Cost
    """Cost of each further block in the same read."""
    score: ScoreCost
    record: Cost
    """Cost of the driver for one segment: scheduling it and writing its result."""
    forget: Cost
    """Cost of deleting one finished document."""
    tokenise_s: float
    """Seconds to tokenise one token."""
    load_s: float
    """Seconds to open the model."""
    block_bytes: int
    """Bytes of keys, values and token ids of a full segment."""
    state_bytes: int
    """Bytes of hidden states of a full segment."""
    window_bytes: int
    """Bytes of a reader's full window in memory."""
    store_overhead: float
    """Bytes on disk per byte of a block."""
    record_bytes: int
    """Bytes of one segment in journal and tables."""
    process_bytes: int
    """Resident bytes of a process that encodes and scores, without its window."""
    worker_bytes: int
    """Resident bytes that a worker's intermediate results take, in a process that has the weights already."""
    ray: RayCost | None = None

    @property
    def segment_bytes(self) -> int:
        return self.block_bytes + self.state_bytes


def without_waiting(costs: UnitCosts) -> UnitCosts:
    """Return the costs on an otherwise idle machine: with one thread, wall time is at most CPU time.

    With several threads, wall and CPU seconds are not comparable, and the measured costs are returned.
    """
    if costs.identity["threads"] != 1:
        return costs

    def quiet(cost: Cost) -> Cost:
        return replace(cost, wall_s=min(cost.wall_s, cost.cpu_s))

    quietened: dict[str, Any] = {name: quiet(getattr(costs, name)) for name in COSTS}
    score = replace(costs.score, empty=quiet(costs.score.empty), wall=costs.score.cpu)
    return replace(costs, score=score, **quietened)


def save_costs(costs: UnitCosts, path: Path) -> None:
    """Write costs to a file. Raises OutputError."""
    write_json(path, {"version": VERSION, **asdict(costs)}, advice="choose another --save-costs")


def load_costs(path: Path, identity: dict[str, Any], *, with_ray: bool) -> UnitCosts:
    """Load costs that were saved for this model and these settings.

    `with_ray`: the plan needs the overhead of Ray. Raises ConfigError for a foreign file, or for costs of another
    model or other settings; the message names both sides.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read --costs {path}: {error.strerror}") from error
    except ValueError as error:
        raise ConfigError(f"--costs {path} was not written by `longmem plan --save-costs` ({error})") from error
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
            f"--costs {path} was measured with --address none and holds no costs of Ray: measure again with "
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
