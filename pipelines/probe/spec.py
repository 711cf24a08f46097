"""`longmem probe`: options become one checked set of synthetic tests."""

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console

from pipelines.command.command_line import command_text, parse_numbers, say_if_finished
from pipelines.command.console import open_console
from pipelines.command.option_types import path_option, text_option, whole_option
from pipelines.command.options import ModelOptions, OutputOptions, RestartOption, WorkerThreads
from pipelines.command.spec import CommandSpec, command

if TYPE_CHECKING:
    # loads torch
    from pipelines.probe.job import Plan


class Subject(StrEnum):
    """Kind of test. An enumeration, because Typer takes no list of a `Literal`."""

    PASSKEY = "passkey"
    LOOKUP = "lookup"
    LABELS = "labels"


@dataclass(frozen=True, kw_only=True)
class ProbeSpec(WorkerThreads, ModelOptions, RestartOption, OutputOptions, CommandSpec):
    """Synthetic tests whose answer stands only in memory: pass keys at any depth, dictionary lookup, random labels.

    **Example:** `longmem probe passkey --lengths 4096,65536 --out runs/passkey`
    """

    subjects: Annotated[
        list[Subject] | None, typer.Argument(metavar="SUBJECT", show_default="all", help="passkey, lookup or labels.")
    ] = None
    filler: Annotated[
        Path | None,
        path_option(help="UTF-8 text to hide keys in and take words from.", show_default="the language reference"),
    ] = None
    lengths: Annotated[str, text_option(help="passkey: tokens of memory, by commas.")] = (
        "4096,16384,65536,262144,1048576"
    )
    depths: Annotated[str, text_option(help="passkey: 0 (oldest) to 1 (newest), by commas.")] = "0,0.25,0.5,0.75,1"
    trials: Annotated[int, whole_option(help="passkey: for each length and depth.")] = 10
    key: Annotated[Literal["words", "digits"], typer.Option(help="passkey: a key of four words or five digits.")] = (
        "words"
    )
    examples: Annotated[str, text_option(help="lookup, labels: lines in memory, by commas.")] = "20,200,2000"
    shots: Annotated[str, text_option(help="lookup, labels: other lines in the local context, by commas.")] = "0,16"
    questions: Annotated[int, whole_option(help="lookup, labels: for each number of lines and shots.")] = 50
    choices: Annotated[int, whole_option(help="Answers offered for each question; the number of labels.", least=2)] = 10
    seed: Annotated[int, whole_option(help="Decides texts, keys, places and questions.", least=0)] = 0

    @property
    def resumable_folder(self) -> None:
        return None

    def run(self, console: Console) -> None:
        from pipelines.probe.console import print_trials
        from pipelines.probe.job import ProbeJob, run_probe

        self.check_resume()
        job = ProbeJob(
            plans=[self._plan(subject) for subject in dict.fromkeys(self.subjects or Subject)],
            model=self.source(console),
            filler=self.filler,
            out=self.folder,
            threads=self.threads,
            resume=self.resume,
            command=command_text(),
        )
        summary = run_probe(job, console)
        if not say_if_finished(summary, job.out):
            print_trials(open_console(), summary, job.out)

    def _plan(self, subject: Subject) -> "Plan":
        from longmem.synthetic.pairs import PairPlan
        from longmem.synthetic.passkey import PasskeyPlan

        if subject == Subject.PASSKEY:
            return PasskeyPlan(
                lengths=_numbers("--lengths", self.lengths),
                depths=parse_numbers(self.depths, float, "--depths needs numbers by commas,"),
                trials=self.trials,
                choices=self.choices,
                key=self.key,
                seed=self.seed,
            )
        return PairPlan(
            subject="lookup" if subject == Subject.LOOKUP else "labels",
            examples=_numbers("--examples", self.examples),
            shots=_numbers("--shots", self.shots),
            questions=self.questions,
            choices=self.choices,
            seed=self.seed,
        )


def _numbers(option: str, text: str) -> tuple[int, ...]:
    return parse_numbers(text, int, f"{option} needs whole numbers by commas,")


probe = command(ProbeSpec)
