# SPDX-License-Identifier: Apache-2.0
"""The smallest job of every kind, on small real models: what contract tests run in process, on Ray and on a service."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from longmem.backbone.new import LlamaShape
from longmem.model.source import ModelSource
from longmem.pretraining.config import PretrainingConfig
from longmem.pretraining.presets import Preset
from longmem.runtime.scheduler import Limits
from longmem.synthetic.pairs import PairPlan
from longmem.testing import small_longmem
from longmem.training.config import TrainingConfig
from longmem.training.copy_head_fit import CopyFitConfig
from longmem.training.worker import TrainingTask
from pipelines.fit.job import FitJob, run_fit
from pipelines.icl.job import IclJob, run_icl
from pipelines.icl.task import load_task
from pipelines.perplexity.job import PerplexityJob, run_job
from pipelines.pretrain.job import PretrainingJob
from pipelines.pretrain.run import run_pretraining
from pipelines.probe.job import ProbeJob, run_probe
from pipelines.suffix.job import SuffixJob, run_suffix
from pipelines.suffix.scoring import SuffixLengths
from pipelines.train.job import TrainingJob, run_training
from tests.inputs import DEFAULT_FORM
from tests.texts import prose

SECRET = "hunter2-hunter2"
COMMAND = f"longmem anything s3://key:{SECRET}@bucket/books"
TASK = """
name = "colours"
train = "train.jsonl"
test = "test.jsonl"
template = "Thing: {thing} Colour: {colour}. "
target = "colour"
"""


@dataclass(frozen=True)
class Inputs:
    """Files that jobs of all kinds read."""

    books: Path
    model: ModelSource
    small: ModelSource
    examples: Path
    task: Path


def write_inputs(folder: Path) -> Inputs:
    """Write what the smallest job of every kind reads."""
    (folder / "books").mkdir()
    for number, words in enumerate((120, 90)):
        (folder / "books" / f"{number}.txt").write_text(prose(number, words), encoding="utf-8")
    small_longmem(folder, **DEFAULT_FORM, segment_tokens=96, memory_tokens=384).save_pretrained(folder / "model")
    small_longmem(folder).save_pretrained(folder / "small")
    rows = [{"prefix": prose(seed, 40), "candidates": ["one thing", "two things"], "label": 0} for seed in range(2)]
    (folder / "examples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name in ("train", "test"):
        lines = [{"thing": f"t{n}", "colour": ("red", "blue")[n % 2]} for n in range(6)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "colours.toml").write_text(TASK)
    return Inputs(
        books=folder / "books",
        model=ModelSource(str(folder / "model")),
        small=ModelSource(str(folder / "small")),
        examples=folder / "examples.jsonl",
        task=folder / "colours.toml",
    )


Spec = tuple[Callable[[Any, Console], dict[str, Any] | None], Any]


def perplexity(inputs: Inputs, out: Path) -> Spec:
    return run_job, PerplexityJob(
        inputs=(str(inputs.books),),
        out=out,
        model=inputs.small,
        cluster=None,
        threads=1,
        limits=Limits(4, 2**30),
        command=COMMAND,
    )


def icl(inputs: Inputs, out: Path) -> Spec:
    return run_icl, IclJob(
        tasks=(load_task(str(inputs.task), None),),
        out=out,
        model=inputs.model,
        cluster=None,
        threads=1,
        shots=(0,),
        memory_shots=(0, 2),
        seeds=1,
        command=COMMAND,
    )


def suffix(inputs: Inputs, out: Path) -> Spec:
    return run_suffix, SuffixJob(
        input=inputs.examples,
        out=out,
        model=inputs.small,
        lengths=SuffixLengths(context_tokens=(16, 64), suffix_tokens=8),
        threads=1,
        command=COMMAND,
    )


def probe(inputs: Inputs, out: Path) -> Spec:
    plan = PairPlan(subject="labels", examples=(4, 6), shots=(0,), questions=3, choices=2)
    return run_probe, ProbeJob(inputs.model, (plan,), None, out, 1, command=COMMAND)


def train(inputs: Inputs, out: Path) -> Spec:
    task = TrainingTask(
        model=ModelSource(str(Path(inputs.small.source).parent / "llama-0"), settings={"segment_tokens": 32}),
        data=(str(inputs.books),),
        validation=(),
        validation_tokens=64,
        config=TrainingConfig(steps=3, rows=2, micro_rows=2, warmup_steps=1),
        threads=1,
    )
    return run_training, TrainingJob(task=task, out=out, command=COMMAND)


def fit(inputs: Inputs, out: Path) -> Spec:
    return run_fit, FitJob(
        model=inputs.model,
        data=(str(inputs.books),),
        validation=(),
        document_tokens=600,
        config=CopyFitConfig(epochs=1, batch_tokens=128),
        out=out,
        threads=1,
        command=COMMAND,
    )


def pretrain(inputs: Inputs, out: Path) -> Spec:
    shape = LlamaShape(
        layers=4, hidden_size=32, heads=2, head_dim=16, intermediate_size=48, vocab_size=300, max_positions=64
    )
    config = PretrainingConfig(
        window_tokens=32, batch_tokens=64, micro_rows=2, learning_rate=1e-2, warmup_steps=1, steps=3
    )
    return run_pretraining, PretrainingJob(
        preset=Preset(shape=shape, config=config),
        data=(str(inputs.books),),
        valid=(),
        out=out,
        dtype="float32",
        command=COMMAND,
    )


SPECS: dict[str, Callable[[Inputs, Path], Spec]] = {
    each.__name__: each for each in (perplexity, icl, suffix, probe, train, fit, pretrain)
}
UNITS = {"perplexity": 2, "icl": 12, "suffix": 2, "probe": 6, "train": 3, "fit": 2, "pretrain": 3}
"""Units of work of each example: documents, items, examples, questions, steps or passes."""
