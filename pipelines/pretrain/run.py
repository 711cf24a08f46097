# SPDX-License-Identifier: Apache-2.0
"""Pretraining job, from its options to its output folder, in one or several time slices.

out/job.json · tokenizer/ · corpus/ · curve.csv · validation.csv · curves.png · checkpoints/ · model/ · training.json
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from datetime import UTC, datetime
from math import exp
from time import perf_counter
from typing import Any

from rich.console import Console

import longmem
from longmem.backbone.new import new_llama, save_backbone, save_tokenizer
from longmem.pretraining.config import PretrainingConfig
from longmem.pretraining.corpus import Corpus, open_corpus, read_texts, write_corpus
from longmem.pretraining.pretrainer import Pretrainer
from longmem.pretraining.tokenizer import START_ID, START_TOKEN, load_tokenizer, train_tokenizer
from longmem.pretraining.windows import Windows
from longmem.text.documents import FoundFiles
from longmem.training.run_state import checkpoints
from pipelines.command.interrupts import held_interrupts
from pipelines.job.executors import use_threads
from pipelines.job.folder import JobFolder
from pipelines.job.inputs import find_inputs
from pipelines.job.runner import run
from pipelines.job.spec import AbstractJob, JobContext, Tell
from pipelines.pretrain.job import PretrainingJob, identity
from pipelines.tracking.tracker import TrackedRun, tracked
from pipelines.train.curves import CurveFiles
from pipelines.train.job import CHECKPOINT_FOLDER, MODEL_FOLDER, RESULTS, show_step

TOKENIZER_FOLDER = "tokenizer"
CORPUS_FOLDER = "corpus"
PERPLEXITIES = {"text": "validation text", "repeated": "second copy of repeated text"}
"""Labels in the plot by column of `validation.csv`; columns are fields of `PretrainingValidation`."""


def run_pretraining(job: PretrainingJob, console: Console) -> dict[str, Any] | None:
    """Run one slice of the job and return the content of training.json; None if its time limit ended it.

    Ctrl-C leaves a checkpoint. Raises CheckpointError and the errors of `pipelines.job.runner.run`.
    """
    pretraining = Pretrain(job)
    if not job.resume:
        # before a folder is made for it
        pretraining.check_inputs(console)
    return run(pretraining, console)


class Pretrain(AbstractJob[None]):
    """Training of a backbone from scratch, in one or several time slices."""

    name = "pretrain"
    results = RESULTS
    on_cluster = False

    def __init__(self, spec: PretrainingJob) -> None:
        self._spec = spec
        self._found: FoundFiles | None = None
        self._start = perf_counter()
        self.out, self.resume, self.command = spec.out, spec.resume, spec.command

    def requested_model(self) -> None:
        return None

    def describe(self, worker: None) -> None:  # noqa: ARG002 - the job creates the model
        return None

    def given(self) -> dict[str, Any]:
        return identity(self._spec)

    def check_inputs(self, console: Console) -> None:
        if self._found is None:
            self._found = find_inputs((*self._spec.data, *self._spec.valid), console)

    def open(self, tell: Tell) -> AbstractContextManager[None]:  # noqa: ARG002
        use_threads(self._spec.threads)
        return nullcontext()

    def is_resumed(self, folder: JobFolder) -> bool:  # noqa: ARG002
        return (self.out / TOKENIZER_FOLDER).exists()

    def is_over(self) -> bool:
        """Return whether the time limit of this slice is exceeded."""
        minutes = self._spec.max_minutes
        return minutes is not None and perf_counter() - self._start > 60 * minutes

    def run(self, context: JobContext[None]) -> dict[str, Any] | None:
        spec = self._spec
        if not _prepare(spec, self.is_over, context.tell):
            return None
        windows, validation, config = _windows(spec)
        model = new_llama(spec.preset.shape, START_ID, config.seed)
        pretrainer = Pretrainer(model, windows, config, spec.device, spec.dtype)
        run = TrackedRun(self.out, self.name, context.job_id, {**asdict(config), **asdict(spec.preset.shape)})
        with tracked(spec.track, run, context.tell) as tracking:
            curves = CurveFiles(self.out, PERPLEXITIES, tracking)
            _train(spec, pretrainer, validation, curves, self.is_over, context)
        if pretrainer.step_count < config.num_steps:
            return None
        save_backbone(model, self.out / TOKENIZER_FOLDER, self.out / MODEL_FOLDER)
        assert self._found is not None, "inputs are checked before the work begins"
        return {
            "longmem_version": longmem.__version__,
            "command": spec.command,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "shape": asdict(spec.preset.shape),
            "parameters": pretrainer.num_parameters,
            "training": asdict(config),
            "corpus": asdict(_open(spec, "train").facts),
            "validation": curves.validations(),
            "left_out": self._found.left_out.as_dict(),
        }


def _prepare(job: PretrainingJob, is_over: Callable[[], bool], tell: Tell) -> bool:
    """Write tokenizer and corpus unless they exist; return False if the time limit ended the slice before."""
    tokenizer_folder, corpus_folder = job.out / TOKENIZER_FOLDER, job.out / CORPUS_FOLDER
    if not tokenizer_folder.exists():
        shape = job.preset.shape
        tell(f"learning a vocabulary of {shape.vocab_size:,} entries")
        trained = train_tokenizer(read_texts(job.data, "training"), shape.vocab_size)
        save_tokenizer(trained, START_TOKEN, shape.max_positions, tokenizer_folder)
        if is_over():
            return False
    tokenizer = load_tokenizer(tokenizer_folder)
    if job.valid and open_corpus(corpus_folder, "valid") is None:
        write_corpus(corpus_folder, "valid", read_texts(job.valid, "validation"), tokenizer, job.valid_tokens)
    if open_corpus(corpus_folder, "train") is None:
        tell("tokenising the training data")
        write_corpus(corpus_folder, "train", read_texts(job.data, "training"), tokenizer)
        return not is_over()
    return True


def _open(job: PretrainingJob, name: str) -> Corpus:
    corpus = open_corpus(job.out / CORPUS_FOLDER, name)
    assert corpus is not None, f"corpus {name} was not prepared"
    return corpus


def _windows(job: PretrainingJob) -> tuple[Windows, Windows | None, PretrainingConfig]:
    """Return training and validation windows, and the configuration with its number of steps."""
    tokens = _open(job, "train").tokens
    config = job.preset.config
    config = config.with_steps(len(Windows(tokens, config)))
    validation = Windows(_open(job, "valid").tokens, config, "validation") if job.valid else None
    return Windows(tokens, config), validation, config


def _train(
    job: PretrainingJob,
    pretrainer: Pretrainer,
    validation: Windows | None,
    curves: CurveFiles,
    is_over: Callable[[], bool],
    context: JobContext[None],
) -> None:
    """Train from the last checkpoint to the end of the job or slice, at least one step, and save a checkpoint."""
    folder, steps = job.out / CHECKPOINT_FOLDER, pretrainer.config.num_steps
    saved = checkpoints(folder)
    first = pretrainer.load(saved[-1]) if saved else 0
    curves.begin(first)
    context.tell(f"{pretrainer.num_parameters:,} parameters, steps {first} to {steps}")
    context.observer.planned("steps", steps, first)
    with held_interrupts() as is_interrupted:
        if first == 0:
            _validate(pretrainer, validation, curves, context.tell)
        while pretrainer.step_count < steps:
            start = perf_counter()
            result = pretrainer.step()
            curves.add_step(result, perf_counter() - start)
            show_step(context.observer, result, perf_counter() - start)
            if result.step % job.validate_every == 0 or result.step == steps:
                _validate(pretrainer, validation, curves, context.tell)
            stop = is_interrupted() or is_over()
            if stop or result.step % job.checkpoint_every == 0 or result.step == steps:
                pretrainer.save(folder)
            if stop:
                break
        curves.draw()
        if is_interrupted():
            raise KeyboardInterrupt


def _validate(pretrainer: Pretrainer, validation: Windows | None, curves: CurveFiles, tell: Tell) -> None:
    if validation is None:
        return
    result = pretrainer.validate(validation)
    curves.add_validation(pretrainer.step_count, {name: exp(getattr(result, name)) for name in PERPLEXITIES})
    curves.draw()
    tell(
        f"step {pretrainer.step_count}: validation perplexity {exp(result.text):.2f}, "
        f"second copy of repeated text {exp(result.repeated):.2f}"
    )
