"""Groups of options that several commands share: base classes of their specs, which combine by inheritance.

A command with another help text or default for an option of a group declares the field again.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import typer
from rich.console import Console
from rich.markup import escape

from actors.config import ClusterShape, Placement
from longmem.config import KvDtype
from longmem.config import SpecialTokens as SpecialTokenRule
from longmem.errors import ConfigError
from longmem.store.lance.fsync import Durability
from pipelines.command.choices import JobDtype, SearchEngine
from pipelines.command.command_line import local_inputs, local_or_hub, num_cores
from pipelines.command.option_types import (
    MOST_THREADS,
    MOST_WORKERS,
    path_option,
    real_option,
    text_option,
    whole_option,
)
from pipelines.command.spec import DECIDED_BY_SERVICE, MEMORY_STORE, MODEL, MODEL_SETTING, WORKERS, Panel, marked_fields

if TYPE_CHECKING:
    # loads torch
    from longmem.model.source import ModelSource

Adapter = Annotated[
    Path | None,
    path_option(
        help="Folder of a PEFT adapter (LoRA and others) to merge into the backbone; needs `longmem[adapter]`.",
        show_default="none",
    ),
]
SpecialTokens = Annotated[
    SpecialTokenRule | None,
    typer.Option(
        help="What a special token is that a text spells, such as <|endoftext|>: parse (the token, as Hugging Face has "
        "it) or text (its characters).",
        show_default="the model's, else parse",
    ),
    MODEL_SETTING,
    DECIDED_BY_SERVICE,
]


@dataclass(frozen=True, kw_only=True)
class OutputOptions:
    """Output folder of a job that continues after an interruption."""

    out: Annotated[Path | None, path_option(help="Output folder.", show_default="longmem-runs/<date-time>")] = None
    resume: Annotated[bool, typer.Option("--resume", help="Continue the job in --out.")] = False

    @cached_property
    def folder(self) -> Path:
        """Folder for the results: a new one, named by the time, where --out is not given."""
        return self.out or Path("longmem-runs") / datetime.now().strftime("%Y%m%d-%H%M%S")

    @property
    def resumable_folder(self) -> Path | None:
        return self.folder

    def check_resume(self) -> None:
        """Raise ConfigError for a job to resume that is not named."""
        if self.resume and self.out is None:
            raise ConfigError("--resume needs --out, the folder of the job to continue")


@dataclass(frozen=True, kw_only=True)
class RestartOption:
    """Choice for a job that has no checkpoints."""

    resume: Annotated[
        bool,
        typer.Option(
            "--resume", help="Leave a finished job in --out as it is; begin one that was interrupted from the start."
        ),
    ] = False


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """Model of a job, and what it reads with."""

    PANEL: ClassVar[Panel] = MODEL

    model: Annotated[
        str | None,
        text_option(
            help="LongMem folder, or a Hugging Face backbone (folder or hub id).", show_default="reference model"
        ),
    ] = None
    adapter: Adapter = None
    segment_tokens: Annotated[
        int | None, whole_option(help="Local context.", show_default="the model's"), MODEL_SETTING, DECIDED_BY_SERVICE
    ] = None
    top_k: Annotated[
        int | None,
        whole_option(help="Tokens retrieved per token and head.", show_default="the model's"),
        MODEL_SETTING,
        DECIDED_BY_SERVICE,
    ] = None
    chunk_tokens: Annotated[
        int | None,
        whole_option(help="Tokens that are found and read together.", show_default="the model's"),
        MODEL_SETTING,
        DECIDED_BY_SERVICE,
    ] = None
    special_tokens: SpecialTokens = None
    dtype: Annotated[
        JobDtype,
        typer.Option(
            help="Compute type. auto: bfloat16 where this machine reads at least 1.1 times as fast with it and "
            "perplexity changes by less than 0.1%, else float32; it measures both and says what it chose."
        ),
        DECIDED_BY_SERVICE,
    ] = "float32"
    search: Annotated[
        SearchEngine,
        typer.Option(
            help="Search engine for chunks; all but ivf, which is for memories far beyond 65,536 tokens, are exact. "
            "auto: native where this machine has a C compiler and readers have no GPU, else torch."
        ),
        DECIDED_BY_SERVICE,
    ] = "auto"

    def settings(self) -> dict[str, Any]:
        """Return the fields of LongMemConfig that the options set."""
        return model_settings(self)

    def source(
        self,
        console: Console,
        *,
        on_gpu: bool = False,
        encoders_on_gpu: bool = False,
        inputs: Sequence[str] = (),
    ) -> "ModelSource":
        """Return the model that the options name.

        With `--dtype auto`, measure the compute types on the first document of `inputs` and print which one was chosen.

        Args:
            on_gpu: Readers use a GPU.
            encoders_on_gpu: Encoders use a GPU.

        Raises:
            ConfigError: The options contradict each other, or an input is not there.
        """
        from longmem.model.precision import choose_dtype
        from longmem.model.source import REFERENCE_MODEL, ModelSource
        from longmem.retrieval import choose_engine
        from longmem.text.documents import first_document

        source = ModelSource(
            local_or_hub(self.model or str(REFERENCE_MODEL)),
            dtype="float32" if self.dtype == "auto" else self.dtype,
            search=choose_engine(self.search, "cuda" if on_gpu else "cpu"),
            settings=self.settings(),
            adapter=adapter_folder(self.adapter, self.model),
        )
        if self.dtype != "auto":
            return source
        if on_gpu or encoders_on_gpu:
            raise ConfigError(
                "--dtype auto measures this machine's CPU, workers are to use GPUs: give --dtype float32 or bfloat16"
            )
        choice = choose_dtype(replace(source, search="auto"), first_document(inputs))
        console.print(escape(str(choice)), soft_wrap=True)
        return replace(source, dtype=choice.dtype)


@dataclass(frozen=True, kw_only=True)
class MemoryModelOptions(ModelOptions):
    """Model of a job whose memory has a length of its own."""

    memory_tokens: Annotated[
        int | None,
        whole_option(help="Past tokens that a segment may read.", show_default="the model's", least=0),
        MODEL_SETTING,
        DECIDED_BY_SERVICE,
    ] = None


@dataclass(frozen=True, kw_only=True)
class StoredModelOptions(MemoryModelOptions):
    """Model of a job whose memory is in a store."""

    kv_dtype: Annotated[
        KvDtype | None,
        typer.Option(
            help="Format of stored keys and values; int8 takes half of float16's bytes.", show_default="the model's"
        ),
        MODEL_SETTING,
        DECIDED_BY_SERVICE,
    ] = None


@dataclass(frozen=True, kw_only=True)
class OptionalMemoryOptions(StoredModelOptions):
    """Model of a job that can do without memory."""

    no_memory: Annotated[bool, typer.Option("--no-memory", help="Local context only."), DECIDED_BY_SERVICE] = False

    def settings(self) -> dict[str, Any]:
        return super().settings() | without_memory(self.no_memory, self.memory_tokens)


@dataclass(frozen=True, kw_only=True)
class AddressOption:
    """Place where a job runs."""

    PANEL: ClassVar[Panel] = WORKERS

    address: Annotated[
        str,
        text_option(
            help="Where to run: none (this process), local (start Ray here), auto (join a running cluster, else "
            "start one), or a cluster address."
        ),
    ] = "auto"


@dataclass(frozen=True, kw_only=True)
class WorkerThreads:
    """Torch threads where several workers may share the cores."""

    PANEL: ClassVar[Panel] = WORKERS

    threads: Annotated[
        int | None,
        whole_option(
            help="Torch threads of each worker.", show_default="cores divided among the workers", most=MOST_THREADS
        ),
        DECIDED_BY_SERVICE,
    ] = None

    def worker_threads(self, num_workers: int) -> int:
        """Return the torch threads of each of so many workers."""
        return self.threads or max(1, num_cores() // max(1, num_workers))


@dataclass(frozen=True, kw_only=True)
class ProcessThreads:
    """Torch threads of a job in this process."""

    threads: Annotated[int | None, whole_option(help="Torch threads.", show_default="all cores", most=MOST_THREADS)] = (
        None
    )


@dataclass(frozen=True, kw_only=True)
class PoolOptions(WorkerThreads):
    """Memory stores and windows of a job on workers."""

    stores: Annotated[
        int,
        whole_option(help="Memory store actors; each document belongs to one.", most=MOST_WORKERS),
        DECIDED_BY_SERVICE,
    ] = 1
    window_bytes: Annotated[
        int, whole_option(help="Bytes of memory windows that each reader keeps."), DECIDED_BY_SERVICE
    ] = 2**30


@dataclass(frozen=True, kw_only=True)
class ClusterOptions(PoolOptions):
    """Pools of encoders and readers on Ray. Each option is the field of ClusterShape with the same name."""

    encoders: Annotated[int, whole_option(help="Encoder actors (writers).", most=MOST_WORKERS), DECIDED_BY_SERVICE] = 1
    readers: Annotated[int, whole_option(help="SideNet actors (readers).", most=MOST_WORKERS), DECIDED_BY_SERVICE] = 1
    encoder_gpus: Annotated[float, real_option(help="GPU share of each encoder.", most=64), DECIDED_BY_SERVICE] = 0.0
    reader_gpus: Annotated[float, real_option(help="GPU share of each reader.", most=64), DECIDED_BY_SERVICE] = 0.0
    placement: Annotated[
        Placement,
        typer.Option(help="Fill one node after the other, or spread workers over all nodes."),
        DECIDED_BY_SERVICE,
    ] = "pack"
    cpu_share: Annotated[
        float,
        real_option(
            help="CPUs that a worker reserves, per thread: below 1, other jobs fit on the same cores.",
            above=True,
            most=1,
        ),
        DECIDED_BY_SERVICE,
    ] = 1.0
    elastic: Annotated[
        bool,
        typer.Option("--elastic", help="Begin with the workers that fit; the others begin when nodes join."),
        DECIDED_BY_SERVICE,
    ] = False

    def shape(self, address: str, **settings: Any) -> ClusterShape:
        """Return the cluster that the options describe, with further fields in `settings`."""
        own = {each.name: getattr(self, each.name) for each in fields(ClusterOptions)}
        own["threads"] = self.worker_threads(self.encoders + self.readers)
        return ClusterShape(address=address, **own, **settings)


@dataclass(frozen=True, kw_only=True)
class StoreOptions:
    """Limits and guarantees of the memory store."""

    PANEL: ClassVar[Panel] = MEMORY_STORE

    store_quota_bytes: Annotated[
        int | None,
        whole_option(help="Bytes that the store may hold; a job stops there.", show_default="no limit"),
        DECIDED_BY_SERVICE,
    ] = None
    durability: Annotated[
        Durability,
        typer.Option(help="What stored blocks survive: the death of processes, or also a power cut."),
        DECIDED_BY_SERVICE,
    ] = "process"


@dataclass(frozen=True, kw_only=True)
class TrainingDataOptions:
    """Documents of a job that trains."""

    data: Annotated[list[str], text_option(help="Documents to learn from: files and folders as in perplexity.")]
    valid: Annotated[list[str] | None, text_option(help="Documents to judge by.", show_default="none")] = None

    @property
    def data_paths(self) -> tuple[str, ...]:
        return local_inputs(self.data)

    @property
    def validation_paths(self) -> tuple[str, ...]:
        return local_inputs(self.valid or [])


@dataclass(frozen=True, kw_only=True)
class TrainingRunOptions(TrainingDataOptions):
    """Device and intervals of a job that trains step by step."""

    device: Annotated[str, text_option(help="cpu or cuda.")] = "cpu"
    validate_every: Annotated[int, whole_option(help="Steps between validations.")] = 200
    checkpoint_every: Annotated[int, whole_option(help="Steps between checkpoints.")] = 200


def model_settings(options: Any) -> dict[str, Any]:
    """Return the values of the options marked as fields of LongMemConfig, except those that were left out."""
    found = {name: getattr(options, name) for name in marked_fields(type(options), MODEL_SETTING)}
    return {name: value for name, value in found.items() if value is not None}


def without_memory(no_memory: bool, memory_tokens: int | None) -> dict[str, int]:
    """Return the setting of `--no-memory`. Raise ConfigError for a memory that is asked for at the same time."""
    if no_memory and memory_tokens:
        raise ConfigError("--no-memory and --memory-tokens contradict each other; give one of them")
    return {"memory_tokens": 0} if no_memory else {}


def adapter_folder(adapter: Path | None, model: str | None, option: str = "--model") -> str | None:
    """Return an absolute path, because workers have other working directories. Raises ConfigError for an adapter to a
    model that is not named: the default is not the one that it was trained on."""
    if adapter is None:
        return None
    if model is None:
        raise ConfigError(f"--adapter needs {option}, the backbone that the adapter in {adapter} was trained on")
    return str(adapter.absolute())
