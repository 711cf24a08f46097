# SPDX-License-Identifier: Apache-2.0
"""Small finished jobs of in-context learning, of both ways to read a memory, over texts that would harm a page."""

import json
import random
from io import StringIO
from pathlib import Path
from typing import Literal

from rich.console import Console

from longmem.model.source import ModelSource
from longmem.testing import small_longmem
from pipelines.icl.job import IclJob, run_icl
from pipelines.icl.task import load_task
from tests.inputs import DEFAULT_FORM
from tests.jobs import TASK

HOSTILE = "<img src=x>\u202e&amp;"
TEMPLATE = TASK.replace("Thing: {thing} Colour: {colour}.", "{thing} is {colour}.")
"""Task of few tokens: the small model has 128 positions."""
SHARED = {**DEFAULT_FORM, "segment_tokens": 96, "memory_tokens": 960}
FORMS = {"tokens": SHARED, "whole": {**SHARED, "memory_layers": "all", "near_tokens": 16, "read_blocks": 0}}
ITEMS, SEEDS = 8, 2


def finished_icl(folder: Path, form: Literal["tokens", "whole"]) -> Path:
    """Run a job of two cells in context by two in memory and return its folder. One letter decides the label."""
    small_longmem(folder, **FORMS[form]).save_pretrained(folder / f"model {form}")
    chance = random.Random(0)
    for name, rows in (("train", 40), ("test", ITEMS)):
        lines = []
        for number in range(rows):
            colour = chance.choice(["red", "blue <b>"])
            thing = {"red": "x", "blue <b>": "w"}[colour] * chance.randrange(2, 6)
            lines.append(
                json.dumps(
                    {"thing": f"{number} {thing}" + HOSTILE * (number == 0 and name == "test"), "colour": colour}
                )
                + "\n"
            )
        (folder / f"{name}.jsonl").write_text("".join(lines), "utf-8")
    (folder / "colours.toml").write_text(TEMPLATE)
    whole = {"left_out": 8, "read_demonstrations": 2} if form == "whole" else {}
    job = IclJob(
        tasks=(load_task(str(folder / "colours.toml"), None),),
        out=folder / f"out {form}",
        model=ModelSource(str(folder / f"model {form}")),
        cluster=None,
        threads=1,
        shots=(0, 1),
        memory_shots=(0, 20),
        seeds=SEEDS,
        **whole,  # type: ignore[arg-type]
    )
    run_icl(job, Console(file=StringIO()))
    return job.out
