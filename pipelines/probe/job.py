# SPDX-License-Identifier: Apache-2.0
"""Synthetic-test job: one request per memory, then statistics over all answers.

summary.json       model, settings, and shares of correct answers with 95% intervals by subject and condition
trials.parquet     every question (`longmem.synthetic.trial.Trial`)
readings.parquet   what the right answers read, with --tokens
report.html        summary with plots, and questions with answers
"""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import xxhash
from rich.console import Console

from actors.config import ClusterShape
from longmem.errors import DocumentError
from longmem.memory.window_cache import WindowCache
from longmem.model.longmem import LongMem
from longmem.model.source import ModelDescription, ModelSource
from longmem.runtime.executor import AbstractExecutor
from longmem.runtime.requests import Request
from longmem.runtime.steps import OnStep, Step, ignore_step
from longmem.synthetic.answer_readings import AnswerReadings, AnswerToken, ReadPlace, ShownPlace
from longmem.synthetic.pairs import PairPlan, pair_trials
from longmem.synthetic.passkey import PasskeyPlan, check_length, passkey_trials
from longmem.synthetic.trial import Trial
from longmem.text.documents import InputFile, UnreadableDocument
from longmem.text.formats import read_file
from longmem.text.language_reference import language_reference
from longmem.text.opening import compression_of
from longmem.wording import counted
from pipelines.command.command_line import num_cores
from pipelines.job.ask import RequestJob, ask_all, on_service
from pipelines.job.executors import where
from pipelines.job.inputs import check_spans
from pipelines.job.journal import JOURNAL, AbstractJournal
from pipelines.job.runner import run_to_end
from pipelines.job.service import ServiceChoice
from pipelines.job.spec import JobContext
from pipelines.job.summary import about
from pipelines.probe.tables import GROUP_ROWS, readings_table, trials_table

PART_S = 86_400.0
"""Timeout of one request (all questions about one memory) on a cluster, in seconds."""
Plan = PasskeyPlan | PairPlan
CONDITION = ("subject", "examples", "shots", "memory_tokens", "depth")
UNIT = "questions"
"""Unit of the job's progress, and of the steps of a request."""
SHARES = ("greedy", "chosen", "read", "greedy_without", "chosen_without")
Z = 1.959964
"""Normal quantile of a 95% interval."""


@dataclass(frozen=True)
class ProbeJob:
    """Validated options of the job."""

    model: ModelSource
    plans: Sequence[Plan]
    filler: Path | None
    """Text file with filler; None for the Python language reference."""
    out: Path
    threads: int | None
    """Torch threads of each worker; None for all cores together."""
    workers: int = 1
    """Workers of a job in this process."""
    cluster: ClusterShape | None = None
    """Ray cluster and its workers; None runs everything in this process."""
    service: ServiceChoice | None = None
    """Running service whose model and pools replace those given here."""
    resume: bool = False
    command: str = ""
    keep_tokens: bool = False
    """True to write what each token of a right answer read."""


@dataclass(frozen=True)
class ProbeRequest(Request):
    """Request for the questions of one part of a plan. It reads no stored document."""

    text: str
    """Filler text, and source of words."""
    part: Plan
    keep_readings: bool = False

    def answer(self, model: LongMem, windows: WindowCache) -> list[Trial]:
        """Return the trials. Raises ConfigError for an impossible plan, DocumentError, NumericError."""
        return self.answer_in_steps(model, windows, ignore_step)

    def answer_in_steps(self, model: LongMem, windows: WindowCache, on_step: OnStep) -> list[Trial]:  # noqa: ARG002
        """Return the trials, in steps of encoded segments and of answered questions. Raises what `answer` raises."""

        def encoded(done: int, total: int) -> None:
            on_step(Step("segments", "encoded", done, total))

        trials_of = passkey_trials if isinstance(self.part, PasskeyPlan) else pair_trials
        trials: list[Trial] = []
        for trial in trials_of(model, self.text, self.part, self.keep_readings, encoded):  # type: ignore[arg-type]
            trials.append(trial)
            on_step(Step(UNIT, "answered", len(trials), num_trials(self.part)))
        return trials

    def __str__(self) -> str:
        if isinstance(self.part, PasskeyPlan):
            memory = " and ".join(counted(length, "token") for length in self.part.lengths)
        else:
            memory = " and ".join(counted(examples, "line") for examples in self.part.examples)
        return f"{name_of(self.part)} with {memory} in memory"


@dataclass(frozen=True)
class PartRecord:
    """Record of the trials of one part of one plan."""

    plan: int
    part: int
    trials: list[Trial]


class ProbeJournal(AbstractJournal[PartRecord]):
    """Journal with one line per part of a plan."""

    def __init__(self, path: Path) -> None:
        self.trials: dict[tuple[int, int], list[Trial]] = {}
        super().__init__(path)

    def _encode(self, record: PartRecord) -> dict[str, Any]:
        return asdict(record)

    def _decode(self, values: dict[str, Any]) -> PartRecord:
        return PartRecord(values["plan"], values["part"], list(map(_trial, values["trials"])))

    def _accept(self, record: PartRecord) -> None:
        self.trials[record.plan, record.part] = record.trials


def _trial(values: dict[str, Any]) -> Trial:
    """Return the trial that a journal holds."""
    readings = values.get("readings")
    return Trial(**{**values, "readings": None if readings is None else _readings(readings)})


def _readings(values: dict[str, Any]) -> AnswerReadings:
    tokens = [
        AnswerToken(**{**token, "places": [ReadPlace(**place) for place in token["places"]]})
        for token in values["tokens"]
    ]
    return AnswerReadings(**{**values, "place": ShownPlace(**values["place"]), "tokens": tokens})


def run_probe(job: ProbeJob, console: Console) -> dict[str, Any]:
    """Run (or resume) a job and return its summary; see `pipelines.job.runner.run`."""
    job = on_service(job)
    return run_to_end(Probe(job, _read(job.filler)), console)


class Probe(RequestJob[ProbeJob]):
    """Synthetic tests whose answers are found only in memory."""

    name = "probe"

    def __init__(self, spec: ProbeJob, text: str) -> None:
        super().__init__(spec)
        self._text = text

    def given(self) -> dict[str, Any]:
        return {
            "job": self.name,
            "plans": [{"name": name_of(plan)} | asdict(plan) for plan in self._spec.plans],
            "filler": xxhash.xxh3_128_hexdigest(self._text.encode("utf-8")),
            "search": self._spec.model.search,
            "threads": self._spec.threads,
            # absent without, as in jobs of earlier versions
            **({"keep_tokens": True} if self._spec.keep_tokens else {}),
        }

    def cluster(self) -> ClusterShape | None:
        cluster = super().cluster()
        if cluster is None or self._spec.service is not None:
            return cluster
        # one part of a plan, with a memory of up to a million tokens, is one task
        return replace(cluster, timeouts=replace(cluster.timeouts, task_s=PART_S))

    def run(self, context: JobContext[AbstractExecutor]) -> dict[str, Any]:
        spec, slices, start = self._spec, context.slices, time.perf_counter()
        parts = {
            (number, index): part for number, plan in enumerate(spec.plans) for index, part in enumerate(parts_of(plan))
        }
        check_lengths(spec.plans, context.model.settings["chunk_tokens"])
        if spec.keep_tokens:
            check_spans(context.model, "--tokens")
        with ProbeJournal(self.out / JOURNAL) as journal:
            done = sum(len(trials) for trials in journal.trials.values())
            context.observer.planned(UNIT, sum(map(num_trials, spec.plans)), done)

            def answered(plan_and_part: tuple[int, int], trials: list[Trial], _busy_s: float) -> None:
                journal.add(PartRecord(*plan_and_part, trials))
                context.observer.advanced(len(trials))
                slices.record({"wall_s": time.perf_counter() - start})

            left = ((key, part) for key, part in parts.items() if key not in journal.trials)
            requests = ((key, ProbeRequest(self._text, part, spec.keep_tokens)) for key, part in left)
            ask_all(context.worker, requests, context.observer, answered)
        trials = [trial for key in parts for trial in journal.trials[key]]
        wall_s = slices.total({"wall_s": time.perf_counter() - start})["wall_s"]
        summary = summarise(context.model, spec, trials, wall_s, bool(done))
        context.folder.write_table("trials.parquet", trials_table(trials))
        if spec.keep_tokens:
            context.folder.write_table("readings.parquet", readings_table(trials), GROUP_ROWS)
        # only now: it loads matplotlib
        from pipelines.probe.report import write_probe_report

        write_probe_report(context.folder, summary, trials)
        return summary


def parts_of(plan: Plan) -> list[Plan]:
    """Split a plan into plans of one memory each, with the same questions in the same order."""
    if isinstance(plan, PasskeyPlan):
        return [replace(plan, lengths=(length,)) for length in plan.lengths]
    return [replace(plan, examples=(examples,)) for examples in plan.examples]


def check_lengths(plans: Sequence[Plan], chunk_tokens: int) -> None:
    """Raise ConfigError for a memory that does not end at a chunk boundary; called before any question."""
    for plan in plans:
        for length in plan.lengths if isinstance(plan, PasskeyPlan) else ():
            check_length(length, chunk_tokens)


def name_of(plan: Plan) -> str:
    return "passkey" if isinstance(plan, PasskeyPlan) else plan.subject


def num_trials(plan: Plan) -> int:
    """Return the number of questions of a plan."""
    if isinstance(plan, PasskeyPlan):
        return len(plan.lengths) * len(plan.depths) * plan.trials
    return len(plan.examples) * len(plan.shots) * plan.questions


def summarise(
    model: ModelDescription, job: ProbeJob, trials: Sequence[Trial], wall_s: float, resumed: bool
) -> dict[str, Any]:
    """Return the content of summary.json."""
    subjects = {name: [trial for trial in trials if trial.subject == name] for name in map(name_of, job.plans)}
    return {
        **about(
            job.command,
            model,
            where(job.cluster, job.workers, job.threads or max(1, num_cores() // job.workers)),
            resumed,
        ),
        "filler": "the Python language reference" if job.filler is None else str(job.filler),
        "plans": [{"name": name_of(plan)} | asdict(plan) for plan in job.plans],
        "overall": shares(trials),
        "subjects": {name: shares(part) for name, part in subjects.items()},
        "conditions": conditions(trials),
        "num_trials": len(trials),
        "wall_s": wall_s,
    }


def conditions(trials: Sequence[Trial]) -> list[dict[str, Any]]:
    """Return the shares of each condition, in order of the trials. The depth of pair questions is not a condition."""
    groups: dict[tuple[Any, ...], list[Trial]] = {}
    for trial in trials:
        depth = trial.depth if trial.subject == "passkey" else None
        groups.setdefault((trial.subject, trial.examples, trial.shots, trial.memory_tokens, depth), []).append(trial)
    rows = []
    for condition, group in groups.items():
        row: dict[str, Any] = dict(zip(CONDITION, condition, strict=True))
        rows.append(row | {"chance": 1 / group[0].choices} | shares(group))
    return rows


def shares(trials: Sequence[Trial]) -> dict[str, Any]:
    """Return the number of trials, and the share of each outcome with its interval."""
    outcomes = {name: share([bool(getattr(trial, name)) for trial in trials]) for name in SHARES}
    return {"trials": len(trials), **outcomes}


def share(outcomes: Sequence[bool]) -> dict[str, float]:
    """Return the share of true outcomes with its 95% Wilson interval, valid for few trials and shares of 0 or 1."""
    count, right = len(outcomes), sum(outcomes)
    middle = (right + Z * Z / 2) / (count + Z * Z)
    half = Z / (count + Z * Z) * (right * (count - right) / count + Z * Z / 4) ** 0.5
    return {"value": right / count, "low": max(0.0, middle - half), "high": min(1.0, middle + half)}


def _read(path: Path | None) -> str:
    if path is None:
        return language_reference().text
    # read as text, regardless of its suffix
    file = InputFile(None, str(path.absolute()), path.stem, f".txt{compression_of(path.name)}")
    (document,) = read_file(file)
    if isinstance(document, UnreadableDocument):
        raise DocumentError(f"{document.error}; --filler needs a UTF-8 text file")
    return document.text
