# SPDX-License-Identifier: Apache-2.0
"""`longmem generate`: text after a prompt, written to stdout as it comes."""

import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import track

from longmem.errors import ConfigError, DocumentError
from longmem.types import DEFAULT_NAMESPACE, DocumentKey, Segment
from longmem.wording import counted
from pipelines.command.command_line import check_inputs, check_model
from pipelines.command.console import say, say_json, say_piece
from pipelines.command.fields import HelpPanel, flag_field, path_field, real_field, text_field, whole_field
from pipelines.command.interrupts import tidying
from pipelines.command.options import ProcessThreads, StoredModelOptions
from pipelines.command.spec import CommandSpec, command

if TYPE_CHECKING:
    # loads torch
    from longmem.model.longmem import LongMem
    from longmem.store.document import DocumentMemory

SOURCE, CHOICE = HelpPanel("Memory to read"), HelpPanel("Choice of tokens")


@dataclass(frozen=True, kw_only=True)
class GenerateSpec(ProcessThreads, StoredModelOptions, CommandSpec):
    """Continue a prompt, reading the memory of a stored document, of a file, or of the prompt alone.

    Without --prompt and --prompt-file, the prompt is read from standard input. The new text goes to standard output.

    **Example:** `longmem generate --prompt "Call me" --memory-file moby-dick.txt`
    """

    prompt: str | None = text_field(None, "Text to continue.", shown="standard input")
    prompt_file: Path | None = path_field(
        None, "File with the text to continue; a newline at its end does not count.", shown=False
    )
    store: str | None = text_field(None, "Memory store with --document, which the model wrote.", SOURCE, shown="none")
    document: str | None = text_field(None, "With --store: document whose memory is read.", SOURCE, shown=False)
    namespace: str = text_field(DEFAULT_NAMESPACE, "With --store: namespace of the document.", SOURCE)
    memory_file: str | None = text_field(
        None, "Instead of --store: document whose memory is written first, and kept nowhere.", SOURCE, shown="none"
    )
    max_new_tokens: int = whole_field(50, "Most tokens to write; the end token ends the text before.", CHOICE)
    temperature: float = real_field(
        0.0, "0 takes the most probable token; 1 samples from the model's distribution.", CHOICE, most=1e6
    )
    top_p: float = real_field(
        1.0, "Sample from the most probable tokens that have this probability together.", CHOICE, above=True, most=1
    )
    seed: int = whole_field(0, "Seed of the sampling.", CHOICE, least=0)
    as_json: bool = flag_field("Print prompt and text as one JSON object, at the end.", names=("--json",))

    def run(self, console: Console) -> None:
        self._refuse_contradictions()
        check_model(self.model)
        if self.memory_file is not None:
            check_inputs(self.memory_file)
        prompt = self._prompt()
        from longmem.scoring.generate import Sampling
        from pipelines.command.command_line import num_cores
        from pipelines.job.executors import use_threads

        use_threads(self.threads or num_cores())
        source = self.source(console, inputs=[self.memory_file] if self.memory_file else ())
        sampling = Sampling(temperature=self.temperature, top_p=self.top_p, seed=self.seed)
        # Ctrl-C ends the text, and what was written stays
        with tidying(), self._memory(source.open(), console) as (model, memory):
            begun_s = perf_counter()
            text = model.generate(
                prompt,
                memory,
                max_new_tokens=self.max_new_tokens,
                sampling=sampling,
                written=(lambda _: None) if self.as_json else say_piece,
            )
            if self.as_json:
                tokens = 0 if memory is None else memory.num_tokens
                seconds = perf_counter() - begun_s
                say_json({"prompt": prompt, "text": text, "memory_tokens": tokens, "seconds": seconds})
            else:
                say("")

    def _refuse_contradictions(self) -> None:
        if self.prompt is not None and self.prompt_file is not None:
            raise ConfigError("--prompt and --prompt-file contradict each other; give one of them")
        if self.store is not None and self.memory_file is not None:
            raise ConfigError("--store and --memory-file contradict each other; give one of them")
        if (self.store is None) != (self.document is None):
            raise ConfigError(
                "--store and --document name one memory together; give both (`longmem memory ls --store STORE` lists "
                "the documents of a store)"
            )
        if "namespace" in self.given and self.store is None:
            raise ConfigError("--namespace needs --store and --document")
        if self.temperature == 0 and (idle := sorted({"top_p", "seed"} & self.given)):
            names = " and ".join(f"--{name.replace('_', '-')}" for name in idle)
            raise ConfigError(f"{names} need --temperature above 0: at 0 the most probable token is taken")

    def _prompt(self) -> str:
        if self.prompt is not None:
            return self.prompt
        try:
            if self.prompt_file is not None:
                where, text = str(self.prompt_file), self.prompt_file.read_text(encoding="utf-8")
            elif sys.stdin.isatty():
                raise ConfigError("there is no prompt: give --prompt or --prompt-file, or pipe it to standard input")
            else:
                where, text = "standard input", sys.stdin.read()
        except OSError as error:
            raise ConfigError(f"cannot read --prompt-file {self.prompt_file}: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise ConfigError(f"the prompt is not UTF-8: {error}; convert it first") from error
        if not (prompt := text.removesuffix("\n").removesuffix("\r")):
            raise ConfigError(f"the prompt from {where} is empty; expected a text to continue")
        return prompt

    @contextmanager
    def _memory(self, model: "LongMem", console: Console) -> "Iterator[tuple[LongMem, DocumentMemory | None]]":
        """Give the model, and the memory that it reads besides the prompt's own past."""
        if self.memory_file is not None:
            yield model, _encoded(model, self.memory_file, console)
        elif self.store is not None and self.document is not None:
            from pipelines.store.command import opened_store, unknown_document

            with opened_store(self.store) as store:
                memory = store.document(self.document, namespace=self.namespace).as_read_only()
                if not memory.segments:
                    raise unknown_document(DocumentKey(self.namespace, self.document), self.store)
                yield model, memory
        else:
            yield model, None


def _encoded(model: "LongMem", path: str, console: Console) -> "DocumentMemory":
    """Return the memory of a file's document, in this process; only segments that a text after it may read are encoded.

    Raises DocumentError for a file that is not one readable document.
    """
    from longmem.scoring.text import remembered_text
    from longmem.text.documents import UnreadableDocument, read_documents
    from pipelines.job.inputs import find_inputs

    documents = list(read_documents(find_inputs([path], console)))
    if len(documents) != 1:
        held = counted(len(documents), "document")
        raise DocumentError(f"--memory-file {path} holds {held}; expected one, for one memory")
    document = documents[0]
    if isinstance(document, UnreadableDocument):
        raise document.error

    def shown(segments: Sequence[Segment]) -> Iterable[Segment]:
        return track(segments, "memory", console=console, transient=True)

    return remembered_text(model, document.text, document.id, shown)


generate = command(GenerateSpec)
