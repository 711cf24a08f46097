"""`longmem probe`: options become one checked set of synthetic tests."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from longmem.errors import ConfigError
from pipelines.command.command_line import (
    JobDtype,
    SearchEngine,
    command_text,
    exit_codes,
    say_if_finished,
)
from pipelines.command.console import open_console
from pipelines.command.option_types import path_option, text_option, whole_option
from pipelines.command.options import (
    Adapter,
    ChunkTokens,
    Dtype,
    Model,
    Out,
    ResumeFromStart,
    Search,
    SegmentTokens,
    SpecialTokens,
    Threads,
    TopK,
    check_resume,
    model_source,
    output_folder,
)


class Subject(StrEnum):
    """What is tested."""

    PASSKEY = "passkey"
    LOOKUP = "lookup"
    LABELS = "labels"


class Key(StrEnum):
    """What a pass key is made of."""

    WORDS = "words"
    DIGITS = "digits"


def probe(
    subjects: Annotated[
        list[Subject] | None, typer.Argument(metavar="SUBJECT", show_default="all", help="passkey, lookup or labels.")
    ] = None,
    model: Model = None,
    adapter: Adapter = None,
    out: Out = None,
    filler: Annotated[
        Path | None,
        path_option(help="UTF-8 text to hide keys in and take words from.", show_default="the language reference"),
    ] = None,
    lengths: Annotated[
        str, text_option(help="passkey: tokens of memory, by commas.")
    ] = "4096,16384,65536,262144,1048576",
    depths: Annotated[str, text_option(help="passkey: 0 (oldest) to 1 (newest), by commas.")] = "0,0.25,0.5,0.75,1",
    trials: Annotated[int, whole_option(help="passkey: for each length and depth.")] = 10,
    key: Annotated[Key, typer.Option(help="passkey: a key of four words or five digits.")] = Key.WORDS,
    examples: Annotated[str, text_option(help="lookup, labels: lines in memory, by commas.")] = "20,200,2000",
    shots: Annotated[str, text_option(help="lookup, labels: other lines in the local context, by commas.")] = "0,16",
    questions: Annotated[int, whole_option(help="lookup, labels: for each number of lines and shots.")] = 50,
    choices: Annotated[
        int, whole_option(help="Answers offered for each question; the number of labels.", least=2)
    ] = 10,
    seed: Annotated[int, whole_option(help="Decides texts, keys, places and questions.", least=0)] = 0,
    segment_tokens: SegmentTokens = None,
    top_k: TopK = None,
    chunk_tokens: ChunkTokens = None,
    special_tokens: SpecialTokens = None,
    dtype: Dtype = JobDtype.FLOAT32,
    search: Search = SearchEngine.AUTO,
    threads: Threads = None,
    resume: ResumeFromStart = False,
) -> None:
    """Synthetic tests whose answer stands only in memory: pass keys at any depth, dictionary lookup, random labels.

    **Example:** `longmem probe passkey --lengths 4096,65536 --out runs/passkey`
    """
    console = open_console(stderr=True)
    with exit_codes(console):
        # torch and transformers take seconds to load: not for --help, and not outside of what handles Ctrl-C
        from longmem.synthetic.pairs import PairPlan
        from longmem.synthetic.passkey import PasskeyPlan
        from pipelines.probe.console import print_trials
        from pipelines.probe.job import ProbeJob, run_probe

        check_resume(resume, out)
        asked = list(dict.fromkeys(subjects or list(Subject)))
        plans: list[PasskeyPlan | PairPlan] = []
        for subject in asked:
            if subject == Subject.PASSKEY:
                plans.append(
                    PasskeyPlan(
                        lengths=_numbers("--lengths", lengths),
                        depths=_fractions("--depths", depths),
                        trials=trials,
                        choices=choices,
                        key=key.value,
                        seed=seed,
                    )
                )
            else:
                plans.append(
                    PairPlan(
                        subject="lookup" if subject == Subject.LOOKUP else "labels",
                        examples=_numbers("--examples", examples),
                        shots=_numbers("--shots", shots),
                        questions=questions,
                        choices=choices,
                        seed=seed,
                    )
                )
        if threads is not None and threads < 1:
            raise ConfigError(f"--threads must be at least 1, got {threads}")
        job = ProbeJob(
            model=model_source(
                model,
                dtype,
                search,
                console,
                adapter=adapter,
                segment_tokens=segment_tokens,
                memory_tokens=None,
                top_k=top_k,
                chunk_tokens=chunk_tokens,
                special_tokens=special_tokens,
            ),
            plans=plans,
            filler=filler,
            out=output_folder(out),
            threads=threads,
            resume=resume,
            command=command_text(),
        )
        summary = run_probe(job, console)
        if not say_if_finished(summary, job.out):
            print_trials(open_console(), summary, job.out)


def _numbers(option: str, text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ConfigError(f"{option} needs whole numbers by commas, got {text!r}") from None


def _fractions(option: str, text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise ConfigError(f"{option} needs numbers by commas, got {text!r}") from None
