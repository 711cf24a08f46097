# SPDX-License-Identifier: Apache-2.0
"""`longmem.pipeline`: one call from texts to results, in the forms of `transformers.pipeline`."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from inspect import signature
from pathlib import Path
from typing import Any

from longmem.errors import ConfigError
from longmem.model.longmem import LongMem
from longmem.model.source import REFERENCE_MODEL, ModelSource
from longmem.scoring.generate import Sampling
from longmem.scoring.text import remembered_text
from longmem.store.document import DocumentMemory
from longmem.text.dataset_rows import Rows, read_dataset

Texts = str | Iterable[str] | Rows
Memory = DocumentMemory | str
"""Memory of a stored document, or a text whose memory is made for the call."""


def pipeline(task: str, model: LongMem | str | Path | None = None, **options: Any) -> "TaskPipeline":
    """Return a callable for a task, as `transformers.pipeline` does.

        generate = longmem.pipeline("text-generation", "longmem-smollm2-135m")
        generate("Who is the captain?", memory=book, max_new_tokens=20)   # [{"generated_text": "…"}]
        score = longmem.pipeline("perplexity")
        score(["first text", "second text"])                             # [{"perplexity": …, …}, …]

    Args:
        task: `text-generation` or `perplexity`.
        model: Opened model, or its folder, name or hub id; the reference model by default.
        options: Fields of `ModelSource` for a model that is opened here (`dtype`, `device`, `search`, `adapter`) and of
            its `LongMemConfig`.

    Raises ConfigError for an unknown task or option, ModelError and its kinds.
    """
    if task not in TASKS:
        raise ConfigError(f"there is no task {task!r}; known are {', '.join(TASKS)}")
    if isinstance(model, LongMem):
        if options:
            raise ConfigError(f"{', '.join(options)}: options of a model that is opened here, and this one is open")
        return TaskPipeline(task, model)
    how = {name: options.pop(name) for name in ("dtype", "device", "search", "adapter") if name in options}
    source = ModelSource(str(model or REFERENCE_MODEL), settings=options, **how)
    return TaskPipeline(task, source.open())


class TaskPipeline:
    """A task on texts. A text gives one result; a list or dataset gives a list of results, in order."""

    def __init__(self, task: str, model: LongMem) -> None:
        self.task = task
        self.model = model

    def __repr__(self) -> str:
        return f"TaskPipeline({self.task!r}, {self.model!r})"

    def __call__(
        self, inputs: Texts, *, memory: Memory | None = None, text_column: str = "text", **options: Any
    ) -> Any:
        """Return the result of one text, or a list of results.

        Args:
            inputs: Text, iterable of texts, or dataset.
            memory: Memory that every text follows and reads. Nothing is written to it.
            text_column: Column of a dataset that has the texts.
            options: Arguments of `generated_text` for `text-generation`.

        Raises ConfigError, DocumentError (a text without tokens), FingerprintError (memory of another model).
        """
        read = None
        if memory is not None:
            read = memory.as_read_only() if isinstance(memory, DocumentMemory) else remembered_text(self.model, memory)
        run = TASKS[self.task]
        if unknown := sorted(set(options) - set(signature(run).parameters)):
            raise ConfigError(f"{self.task} has no option {unknown[0]!r}; see the documentation of longmem.pipeline")
        if isinstance(inputs, str):
            return run(self.model, inputs, read, **options)
        return [run(self.model, text, read, **options) for text in _texts(inputs, text_column)]


def generated_text(
    model: LongMem,
    prompt: str,
    memory: DocumentMemory | None,
    *,
    max_new_tokens: int = 50,
    do_sample: bool = False,
    temperature: float = 1.0,
    top_p: float = 1.0,
    seed: int = 0,
    return_full_text: bool = True,
) -> list[dict[str, str]]:
    """Return `[{"generated_text": …}]`, which begins with the prompt unless `return_full_text` is False.

    Without `do_sample` the most probable token is taken. Names and result are those of transformers.
    """
    sampling = Sampling(temperature=temperature if do_sample else 0.0, top_p=top_p, seed=seed)
    written = model.generate(prompt, memory, max_new_tokens=max_new_tokens, sampling=sampling)
    return [{"generated_text": prompt + written if return_full_text else written}]


def perplexities(model: LongMem, text: str, memory: DocumentMemory | None) -> dict[str, float | int | None]:
    """Return perplexities with memory and without, their change, and the number of predicted tokens."""
    scores = model.score(text, memory)
    return {
        "perplexity": scores.perplexity,
        "backbone_perplexity": scores.backbone_perplexity,
        "change": scores.change,
        "tokens": len(scores.logprobs),
    }


TASKS: dict[str, Callable[..., Any]] = {"text-generation": generated_text, "perplexity": perplexities}
"""Function of each task, by the name that `pipeline` takes."""


def _texts(inputs: Any, text_column: str) -> Iterator[str]:
    if hasattr(inputs, "column_names"):
        return (document.text for document in read_dataset(inputs, text_column=text_column))
    expected = "expected a text, a list of texts or a dataset"
    if isinstance(inputs, Mapping) or not isinstance(inputs, Iterable):
        raise ConfigError(f"{expected}, got {type(inputs).__name__}")
    texts = list(inputs)
    if wrong := [type(each).__name__ for each in texts if not isinstance(each, str)]:
        raise ConfigError(f"{expected}, got {wrong[0]} in the list")
    return iter(texts)
