# SPDX-License-Identifier: Apache-2.0
"""Status of a running job: the message from the job to its monitor, and the content of status.json.

Does not import Ray, so that a command reads it without loading Ray. Sums grow monotonically within one process; a
resumed job begins at zero again, while `summary.json` has the sums over all processes of the job.
"""

from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from longmem.errors import OutputError
from longmem.stages import STAGES, Stage

State = Literal["running", "finished", "failed", "interrupted"]
STATES: tuple[State, ...] = get_args(State)


@dataclass(frozen=True, kw_only=True)
class StageSnapshot:
    """Counters and levels of one stage, in the process that runs the job now."""

    segments: int = 0
    tokens: int = 0
    num_bytes: int = 0
    """Bytes of encoded segments (encode), or of blocks that the store acknowledged (put)."""
    busy_s: float = 0.0
    failed_tasks: int = 0
    retries: int = 0
    stalls: int = 0
    lost_workers: int = 0
    queue_depth: int = 0
    """Number of tasks that run or could run now."""
    tokens_per_s: float = 0.0
    """Throughput over the last seconds."""


@dataclass(frozen=True, kw_only=True)
class JobSnapshot:
    """Status of a running job. Times are Unix seconds."""

    job: str
    """Id of the job, as in job.json."""
    name: str
    """Name of the output folder."""
    out: str
    state: State
    started: float
    """Time at which this process began or resumed the job."""
    updated: float
    pid: int
    host: str
    total_documents: int | None
    """Number of documents in the inputs; None while the inputs are still being read."""
    admitted_documents: int
    scored_documents: int
    failed_documents: int
    stages: dict[Stage, StageSnapshot]
    in_flight_bytes: int
    """Bytes of encoded segments that wait for the store or a reader."""
    lag_segments: int
    """Number of segments that are encoded and not scored: the lag of readers behind encoders."""
    tokens_left: int
    """Number of tokens of admitted documents that are not scored yet."""
    eta_s: float | None
    """Remaining seconds at the measured pace of this run; None before there is one."""
    checksum_failures: int
    duplicate_puts: int
    blocks_encoded_again: int
    gate_mean: float | None
    """Mean gate of the last segments that had a memory; None without one."""
    copy_mean: float | None
    store_bytes: int
    """Bytes of blocks that the store holds for this job's documents."""
    store_limit_bytes: int | None
    """Quota of the store; None if it has none."""
    recent_failures: tuple[str, ...] = ()
    """Last failed documents, as `document: error`."""
    kind: str = "perplexity"
    """Name of the kind of job, as in job.json."""
    unit: str = "documents"
    """Unit of `units_done`: documents, items, examples, questions or steps."""
    units_done: int = 0
    """Units that are done, by earlier runs too."""
    units_total: int | None = None
    """Units of the whole job; None while that is unknown."""
    detail: str = ""
    """Newest figures of a training, or newest step of a request that takes long."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "JobSnapshot":
        """Return the status that `to_json` wrote. Raises OutputError for the status of another version."""
        try:
            if "units_done" not in values:
                # written before jobs had units: its only kind counted documents
                ended = values["scored_documents"] + values["failed_documents"]
                values = {**values, "units_done": ended, "units_total": values["total_documents"]}
            stages = {stage: StageSnapshot(**values["stages"][stage]) for stage in STAGES}
            snapshot = cls(**{**values, "stages": stages, "recent_failures": tuple(values["recent_failures"])})
        except (KeyError, TypeError) as error:
            raise OutputError(
                f"this is not the status of a job of this version of longmem ({error}); use the version that runs it"
            ) from error
        if snapshot.state not in STATES:
            raise OutputError(f"the state of a job is one of {', '.join(STATES)}, got {snapshot.state!r}")
        return snapshot
