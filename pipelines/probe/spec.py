# SPDX-License-Identifier: Apache-2.0
"""`longmem probe`: options become one checked set of synthetic tests."""

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import typer
from rich.console import Console

from pipelines.command.command_line import check_model, command_text, loading, parse_numbers, show_summary
from pipelines.command.fields import (
    WORKERS,
    choice_field,
    flag_field,
    from_options,
    path_field,
    text_field,
    typer_field,
    whole_field,
)
from pipelines.command.options import WHERE_TO_RUN, ModelOptions, OutputOptions, RequestWorkerOptions
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
class ProbeSpec(RequestWorkerOptions, ModelOptions, OutputOptions, CommandSpec):
    """Synthetic tests whose answer is only in memory: pass keys at any depth, dictionary lookup, random labels.

    **Example:** `longmem probe passkey --lengths 4096,65536 --out runs/passkey`
    """

    subjects: list[Subject] | None = typer_field(
        None, typer.Argument(metavar="SUBJECT", show_default="all", help="passkey, lookup or labels.")
    )
    address: str = text_field("none", WHERE_TO_RUN, WORKERS)
    filler: Path | None = path_field(
        None, "UTF-8 text to hide keys in and take words from.", shown="the language reference"
    )
    lengths: str = text_field("4096,16384,65536,262144,1048576", "passkey: tokens of memory, separated by commas.")
    depths: str = text_field("0,0.25,0.5,0.75,1", "passkey: 0 (oldest) to 1 (newest), separated by commas.")
    trials: int = whole_field(10, "passkey: for each length and depth.")
    key: Literal["words", "digits"] = choice_field("words", "passkey: a key of four words or five digits.")
    examples: str = text_field("20,200,2000", "lookup, labels: lines in memory, separated by commas.")
    shots: str = text_field("0,16", "lookup, labels: other lines in the local context, separated by commas.")
    questions: int = whole_field(50, "lookup, labels: for each number of lines and shots.")
    choices: int = whole_field(10, "Answers offered for each question; the number of labels.", least=2)
    tokens: bool = flag_field(
        "Also write what each token of every right answer read from memory, for `longmem view`: readings.parquet."
    )
    seed: int = whole_field(0, "Decides texts, keys, places and questions.", least=0)

    def run(self, console: Console) -> None:
        self.check_resume()
        if not self.resume:
            check_model(self.model)
        with loading(console):
            from pipelines.probe.console import print_trials
            from pipelines.probe.job import ProbeJob, run_probe

        source = self.source(
            console, on_gpu=self.gpus > 0, resumed=self.resumed_folder, on_service=self.service is not None
        )
        job = from_options(
            ProbeJob,
            self,
            plans=[self._plan(subject) for subject in dict.fromkeys(self.subjects or Subject)],
            model=source,
            cluster=self.request_shape(),
            service=self.service_choice(source if self.model else None),
            out=self.folder,
            workers=self.num_workers,
            keep_tokens=self.tokens,
            command=command_text(),
        )
        summary = run_probe(job, console)
        show_summary(summary, job.out, self.as_json, lambda console: print_trials(console, summary, job.out))

    def _plan(self, subject: Subject) -> "Plan":
        from longmem.synthetic.pairs import PairPlan
        from longmem.synthetic.passkey import PasskeyPlan

        if subject == Subject.PASSKEY:
            lengths = _numbers("--lengths", self.lengths)
            depths = parse_numbers(self.depths, float, "--depths needs numbers separated by commas,")
            return from_options(PasskeyPlan, self, lengths=lengths, depths=depths)
        examples, shots = _numbers("--examples", self.examples), _numbers("--shots", self.shots)
        return from_options(PairPlan, self, subject=subject.value, examples=examples, shots=shots)


def _numbers(option: str, text: str) -> tuple[int, ...]:
    return parse_numbers(text, int, f"{option} needs whole numbers separated by commas,")


probe = command(ProbeSpec)
