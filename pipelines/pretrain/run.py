"""One pretraining job from its options to its output folder, in as many slices as it takes.

out/job.json · tokenizer/ · corpus/ · curve.csv · validation.csv · curves.png · checkpoints/ · model/ · training.json
"""

from collections.abc import Callable
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
from longmem.training.run_state import checkpoints
from pipelines.command.interrupts import held_interrupts
from pipelines.job.executors import use_threads
from pipelines.job.folder import JobFolder
from pipelines.job.inputs import find_inputs
from pipelines.pretrain.job import PretrainingJob, identity
from pipelines.train.curves import CurveFiles
from pipelines.train.job import CHECKPOINT_FOLDER, MODEL_FOLDER, PRINT_EVERY_S, RESULTS, print_step

TOKENIZER_FOLDER = "tokenizer"
CORPUS_FOLDER = "corpus"
PERPLEXITIES = {"text": "validation text", "repeated": "second copy of repeated text"}
"""Columns of `validation.csv`, named as in `PretrainingValidation`, and what the picture calls them."""


def run_pretraining(job: PretrainingJob, console: Console) -> dict[str, Any] | None:
    """One slice of the job; returns what `training.json` holds, or None when the slice's time was over before the end.
    A job that had finished before gives a FinishedSummary, and nothing is changed.

    Ctrl-C leaves a checkpoint. Raises ConfigError, DocumentError, CheckpointError, NumericError, OutputError.
    """
    start = perf_counter()

    def is_over() -> bool:
        return job.max_minutes is not None and perf_counter() - start > 60 * job.max_minutes

    use_threads(job.threads)
    found = find_inputs((*job.data, *job.valid), console)
    with JobFolder(job.out, job.resume) as folder:
        folder.claim(identity(job))
        if (finished := folder.finished(RESULTS)) is not None:
            return finished
        if not _prepare(job, is_over, console):
            return None
        windows, validation, config = _windows(job)
        model = new_llama(job.preset.shape, START_ID, config.seed)
        pretrainer = Pretrainer(model, windows, config, job.device, job.dtype)
        curves = CurveFiles(job.out, PERPLEXITIES)
        _train(job, pretrainer, validation, curves, is_over, console)
        if pretrainer.step_count < config.num_steps:
            return None
        save_backbone(model, job.out / TOKENIZER_FOLDER, job.out / MODEL_FOLDER)
        summary = {
            "longmem_version": longmem.__version__,
            "command": job.command,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "shape": asdict(job.preset.shape),
            "parameters": pretrainer.num_parameters,
            "training": asdict(config),
            "corpus": asdict(_open(job, "train").facts),
            "validation": curves.validations(),
            "left_out": found.left_out.as_dict(),
        }
        folder.write_json(RESULTS, summary)
    return summary


def _prepare(job: PretrainingJob, is_over: Callable[[], bool], console: Console) -> bool:
    """Tokenizer and corpus, each written once; False when the slice was over before all were there."""
    tokenizer_folder, corpus_folder = job.out / TOKENIZER_FOLDER, job.out / CORPUS_FOLDER
    if not tokenizer_folder.exists():
        shape = job.preset.shape
        console.print(f"learning a vocabulary of {shape.vocab_size:,} entries")
        trained = train_tokenizer(read_texts(job.data, "training"), shape.vocab_size)
        save_tokenizer(trained, START_TOKEN, shape.max_positions, tokenizer_folder)
        if is_over():
            return False
    tokenizer = load_tokenizer(tokenizer_folder)
    if job.valid and open_corpus(corpus_folder, "valid") is None:
        write_corpus(corpus_folder, "valid", read_texts(job.valid, "validation"), tokenizer, job.valid_tokens)
    if open_corpus(corpus_folder, "train") is None:
        console.print("tokenising the training data")
        write_corpus(corpus_folder, "train", read_texts(job.data, "training"), tokenizer)
        return not is_over()
    return True


def _open(job: PretrainingJob, name: str) -> Corpus:
    corpus = open_corpus(job.out / CORPUS_FOLDER, name)
    assert corpus is not None, f"corpus {name} was not prepared"
    return corpus


def _windows(job: PretrainingJob) -> tuple[Windows, Windows | None, PretrainingConfig]:
    """Training and validation windows, and the settings with their steps."""
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
    console: Console,
) -> None:
    """From the last checkpoint to the end of the job or of the slice, at least one step; there is a checkpoint then."""
    folder, steps = job.out / CHECKPOINT_FOLDER, pretrainer.config.num_steps
    saved = checkpoints(folder)
    first = pretrainer.load(saved[-1]) if saved else 0
    curves.begin(first)
    console.print(f"{pretrainer.num_parameters:,} parameters, steps {first} to {steps}")
    printed = perf_counter()
    with held_interrupts() as is_interrupted:
        if first == 0:
            _validate(pretrainer, validation, curves, console)
        while pretrainer.step_count < steps:
            start = perf_counter()
            result = pretrainer.step()
            curves.add_step(result, perf_counter() - start)
            if perf_counter() - printed > PRINT_EVERY_S:
                printed = perf_counter()
                print_step(console, result, steps, perf_counter() - start)
            if result.step % job.validate_every == 0 or result.step == steps:
                _validate(pretrainer, validation, curves, console)
            stop = is_interrupted() or is_over()
            if stop or result.step % job.checkpoint_every == 0 or result.step == steps:
                pretrainer.save(folder)
            if stop:
                break
        curves.draw()
        if is_interrupted():
            raise KeyboardInterrupt


def _validate(pretrainer: Pretrainer, validation: Windows | None, curves: CurveFiles, console: Console) -> None:
    if validation is None:
        return
    result = pretrainer.validate(validation)
    curves.add_validation(pretrainer.step_count, {name: exp(getattr(result, name)) for name in PERPLEXITIES})
    curves.draw()
    console.print(
        f"step {pretrainer.step_count}: validation perplexity {exp(result.text):.2f}, "
        f"second copy of repeated text {exp(result.repeated):.2f}"
    )
