"""A set of synthetic tests, in this process: trials as they come, then what they say together.

summary.json     model, settings, and for every subject and condition the shares of right answers with 95% intervals
trials.parquet   every question (`longmem.synthetic.trial.Trial`)
report.html      the same with plots
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import xxhash
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from longmem.errors import DocumentError
from longmem.model.longmem import LongMem
from longmem.model.source import ModelSource, describe
from longmem.synthetic.pairs import PairPlan, pair_trials
from longmem.synthetic.passkey import PasskeyPlan, passkey_trials
from longmem.synthetic.trial import Trial
from longmem.text.documents import InputFile, UnreadableDocument
from longmem.text.formats import read_file
from longmem.text.language_reference import language_reference
from longmem.text.opening import compression_of
from pipelines.job.executors import use_threads
from pipelines.job.folder import JobFolder
from pipelines.job.requested_model import asked_model
from pipelines.probe.report import write_probe_report

RESULTS = "summary.json"
Plan = PasskeyPlan | PairPlan
CONDITION = ("subject", "examples", "shots", "memory_tokens", "depth")
SHARES = ("greedy", "chosen", "read", "greedy_without", "chosen_without")
Z = 1.959964
"""Of a 95% interval."""


@dataclass(frozen=True)
class ProbeJob:
    """Everything that decides the result, and where it goes."""

    model: ModelSource
    plans: Sequence[Plan]
    filler: Path | None
    """None: the Python language reference."""
    out: Path
    threads: int | None
    resume: bool = False
    """Leave a finished job as it is, and begin an interrupted one from the start."""
    command: str = ""


def run_probe(job: ProbeJob, console: Console) -> dict[str, Any]:
    """Run all plans and write the output folder; returns the content of summary.json: a FinishedSummary where the job
    had finished before, and nothing was changed.

    Raises ConfigError, ModelError and its kinds, DocumentError, NumericError, OutputError.
    """
    began = time.monotonic()
    with JobFolder(job.out, job.resume) as folder:
        text = _read(job.filler)
        asked = {**_given(job, text), "model": asked_model(job.model)}
        if (finished := folder.finished(RESULTS, asked)) is not None:
            return finished
        if job.threads is not None:
            use_threads(job.threads)
        model = job.model.open()
        described = describe(model)
        weights = {**asdict(described.fingerprint), "sidenet": described.sidenet}
        folder.claim({**_given(job, text), "model": weights, "settings": described.settings}, asked)
        if (finished := folder.finished(RESULTS)) is not None:
            return finished
        trials: list[Trial] = []
        with Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), console=console
        ) as progress:
            for plan in job.plans:
                task = progress.add_task(name_of(plan), total=num_trials(plan))
                for trial in trials_of(model, text, plan):
                    trials.append(trial)
                    progress.advance(task)
        summary = summarise(model, job, trials, time.monotonic() - began)
        folder.write_table("trials.parquet", pa.Table.from_pylist([asdict(trial) for trial in trials]))
        write_probe_report(folder, summary)
        # last: a job whose summary is there has finished
        folder.write_json(RESULTS, summary)
    return summary


def _given(job: ProbeJob, text: str) -> dict[str, Any]:
    """The part of a job's identity that the command and its filler give."""
    return {
        "job": "probe",
        "plans": [{"name": name_of(plan)} | asdict(plan) for plan in job.plans],
        "filler": xxhash.xxh3_128_hexdigest(text.encode("utf-8")),
        "search": job.model.search,
        "threads": job.threads,
    }


def trials_of(model: LongMem, text: str, plan: Plan) -> Iterator[Trial]:
    """The trials of one plan."""
    return passkey_trials(model, text, plan) if isinstance(plan, PasskeyPlan) else pair_trials(model, text, plan)


def name_of(plan: Plan) -> str:
    return "passkey" if isinstance(plan, PasskeyPlan) else plan.subject


def num_trials(plan: Plan) -> int:
    """Questions that a plan asks."""
    if isinstance(plan, PasskeyPlan):
        return len(plan.lengths) * len(plan.depths) * plan.trials
    return len(plan.examples) * len(plan.shots) * plan.questions


def summarise(model: LongMem, job: ProbeJob, trials: Sequence[Trial], wall_s: float) -> dict[str, Any]:
    """The content of summary.json."""
    described = describe(model)
    return {
        "command": job.command,
        "model": {"name": described.name, "sidenet": described.sidenet, "trained": described.trained},
        "settings": described.settings,
        "filler": "the Python language reference" if job.filler is None else str(job.filler),
        "plans": [{"name": name_of(plan)} | asdict(plan) for plan in job.plans],
        "conditions": conditions(trials),
        "num_trials": len(trials),
        "wall_s": wall_s,
    }


def conditions(trials: Sequence[Trial]) -> list[dict[str, Any]]:
    """Shares of each condition, in the order in which they were asked. Questions about pairs have depths of their own,
    which make no condition."""
    groups: dict[tuple[Any, ...], list[Trial]] = {}
    for trial in trials:
        depth = trial.depth if trial.subject == "passkey" else None
        groups.setdefault((trial.subject, trial.examples, trial.shots, trial.memory_tokens, depth), []).append(trial)
    rows = []
    for condition, group in groups.items():
        row: dict[str, Any] = dict(zip(CONDITION, condition, strict=True))
        row |= {"trials": len(group), "chance": 1 / group[0].choices}
        for name in SHARES:
            row[name] = share([bool(getattr(trial, name)) for trial in group])
        rows.append(row)
    return rows


def share(outcomes: Sequence[bool]) -> dict[str, float]:
    """Share of true ones with its 95% Wilson interval, which is right for few trials and for shares of 0 and 1."""
    count, right = len(outcomes), sum(outcomes)
    middle = (right + Z * Z / 2) / (count + Z * Z)
    half = Z / (count + Z * Z) * (right * (count - right) / count + Z * Z / 4) ** 0.5
    return {"value": right / count, "low": max(0.0, middle - half), "high": min(1.0, middle + half)}


def _read(path: Path | None) -> str:
    if path is None:
        return language_reference().text
    # a text file, whatever its name
    file = InputFile(None, str(path.absolute()), path.stem, f".txt{compression_of(path.name)}")
    (document,) = read_file(file)
    if isinstance(document, UnreadableDocument):
        raise DocumentError(f"{document.error}; --filler needs a UTF-8 text file")
    return document.text
