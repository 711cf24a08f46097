# SPDX-License-Identifier: Apache-2.0
"""Groups of options that several commands share: base classes of their specs, which combine by inheritance.

A command with another help text or default for an option of a group declares the field again.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from rich.console import Console

from actors.config import ClusterShape, Placement
from longmem.config import KvDtype, SpecialTokens
from longmem.errors import ConfigError
from longmem.store.lance.fsync import Durability
from pipelines.command.choices import JobDtype, SearchEngine
from pipelines.command.command_line import local_or_hub, num_cores
from pipelines.command.compute_type import with_compute_type
from pipelines.command.fields import (
    DECIDED_BY_SERVICE,
    MEMORY_STORE,
    MODEL,
    MODEL_SETTING,
    WORKERS,
    HelpPanel,
    choice_field,
    flag_field,
    from_options,
    marked_fields,
    path_field,
    real_field,
    refuse_given,
    text_field,
    whole_field,
)
from pipelines.command.layer_options import LayerOptions
from pipelines.command.option_types import MOST_THREADS, MOST_WORKERS
from pipelines.command.summary_option import SummaryOption

if TYPE_CHECKING:
    # loads torch
    from longmem.model.source import ModelSource
    from pipelines.job.service import ServiceChoice

DEFAULT_WORKERS = 4
"""Maximum workers in one process by default. Two workers of one thread use two cores better than one of two threads.
Each takes memory for its intermediate results, up to 0.3 GiB at SmolLM2's shape, and holds segments in flight."""
IN_PROCESS = "with --address none as many as cores, at most 4, or 1 if --threads is given"
"""Default of workers in one process, for help texts."""

WHERE_TO_RUN = (
    "Where to run: none (this process), local (start Ray here), auto (join a running cluster, else start one), or a "
    "cluster address."
)


def default_workers(threads: int | None) -> int:
    """Return the number of workers in this process where it is not given; `threads` is the option, None for none."""
    return 1 if threads else min(num_cores(), DEFAULT_WORKERS)


@dataclass(frozen=True, kw_only=True)
class OutputOptions(SummaryOption):
    """Output folder of a job that continues after an interruption."""

    out: Path | None = path_field(None, "Output folder.", shown="longmem-runs/<date-time>")
    resume: bool = flag_field("Continue the job in --out.")

    @cached_property
    def folder(self) -> Path:
        """Folder for the results: a new one, named by the time, where --out is not given."""
        return self.out or Path("longmem-runs") / datetime.now().strftime("%Y%m%d-%H%M%S")

    @property
    def resumable_folder(self) -> Path | None:
        return self.folder

    @property
    def resumed_folder(self) -> Path | None:
        """Folder of the job to resume; None for a new job."""
        return self.folder if self.resume else None

    def check_resume(self) -> None:
        """Raise ConfigError for a job to resume that is not named."""
        if self.resume and self.out is None:
            raise ConfigError("--resume needs --out, the folder of the job to continue")


@dataclass(frozen=True, kw_only=True)
class RestartOption:
    """Choice for a job that has no checkpoints."""

    resume: bool = flag_field("Leave a finished job in --out as it is; begin one that was interrupted from the start.")


@dataclass(frozen=True, kw_only=True)
class BackboneOptions:
    """Changes to a backbone and its tokenizer."""

    PANEL: ClassVar[HelpPanel] = MODEL

    adapter: Path | None = path_field(
        None,
        "Folder of a PEFT adapter (LoRA and others) to merge into the backbone; needs `longmem[adapter]`.",
        shown="none",
    )
    special_tokens: SpecialTokens | None = choice_field(
        None,
        "How to read the name of a special token in a text, such as <|endoftext|>: parse (the token, as Hugging Face "
        "does) or text (its characters).",
        MODEL_SETTING,
        DECIDED_BY_SERVICE,
        shown="the model's, else parse",
    )

    def adapter_folder(self, model: str | None, option: str = "--model") -> str | None:
        """Return the absolute path of the adapter, because workers have other working directories.

        Raise ConfigError for an adapter to a `model` that is not named: the default is not the one that it was trained
        on.
        """
        if self.adapter is None:
            return None
        if model is None:
            raise ConfigError(
                f"--adapter needs {option}, the backbone that the adapter in {self.adapter} was trained on"
            )
        return str(self.adapter.absolute())


@dataclass(frozen=True, kw_only=True)
class ModelOptions(LayerOptions, BackboneOptions):
    """Model of a job, and what it reads with."""

    model: str | None = text_field(
        None,
        "LongMem folder or longmem-smollm2-135m, or a backbone: Hugging Face folder, hub id, GGUF file, smollm2-135m.",
        shown="reference model",
    )
    segment_tokens: int | None = whole_field(
        None, "Tokens of one segment, the local context.", MODEL_SETTING, DECIDED_BY_SERVICE, shown="the model's"
    )
    top_k: int | None = whole_field(
        None, "Tokens retrieved per token and head.", MODEL_SETTING, DECIDED_BY_SERVICE, shown="the model's"
    )
    chunk_tokens: int | None = whole_field(
        None, "Tokens that are found and read together.", MODEL_SETTING, DECIDED_BY_SERVICE, shown="the model's"
    )
    dtype: JobDtype = choice_field(
        "auto",
        "Compute type. auto: bfloat16 where this machine reads at least 1.1 times as fast with it and "
        "perplexity changes by less than 0.1%, else float32; measured once for each model above 64 MiB.",
        DECIDED_BY_SERVICE,
    )
    search: SearchEngine = choice_field(
        "auto",
        "Search engine for chunks; all but ivf, which is for memories far beyond 65,536 tokens, are exact. "
        "auto: native where this machine has a C compiler and readers have no GPU, else torch.",
        DECIDED_BY_SERVICE,
    )

    def settings(self) -> dict[str, Any]:
        """Return the fields of LongMemConfig that the options set."""
        return model_settings(self)

    def source(
        self,
        console: Console,
        *,
        on_gpu: bool = False,
        encoders_on_gpu: bool = False,
        resumed: Path | None = None,
        on_service: bool = False,
        inputs: Sequence[str] = (),
    ) -> "ModelSource":
        """Return the model that the options name, in its compute type (see `with_compute_type`).

        Args:
            on_gpu: Readers use a GPU.
            encoders_on_gpu: Encoders use a GPU.
            resumed: Folder of a job to resume.
            on_service: A service has decided the type already.
            inputs: Documents of the job, which are looked for before a measurement.

        Raises:
            ConfigError: The options contradict each other, or an input is not there.
        """
        from longmem.model.source import REFERENCE_MODEL, ModelSource
        from longmem.retrieval import choose_engine

        source = ModelSource(
            local_or_hub(self.model or str(REFERENCE_MODEL)),
            search=choose_engine(self.search, "cuda" if on_gpu else "cpu"),
            settings=self.settings(),
            adapter=self.adapter_folder(self.model),
        )
        if on_service:
            return source
        gpus = on_gpu or encoders_on_gpu
        return with_compute_type(source, self.dtype, console, on_gpu=gpus, resumed=resumed, inputs=inputs)


@dataclass(frozen=True, kw_only=True)
class MemoryModelOptions(ModelOptions):
    """Model of a job whose memory has a length of its own."""

    memory_tokens: int | None = whole_field(
        None, "Past tokens that a segment may read.", MODEL_SETTING, DECIDED_BY_SERVICE, shown="the model's", least=0
    )


@dataclass(frozen=True, kw_only=True)
class StoredModelOptions(MemoryModelOptions):
    """Model of a job whose memory is in a store."""

    kv_dtype: KvDtype | None = choice_field(
        None,
        "Format of stored keys and values; int8 takes half of float16's bytes.",
        MODEL_SETTING,
        DECIDED_BY_SERVICE,
        shown="the model's",
    )


@dataclass(frozen=True, kw_only=True)
class OptionalMemoryOptions(StoredModelOptions):
    """Model of a job that can do without memory."""

    no_memory: bool = flag_field("Do not read memory: local context only.", DECIDED_BY_SERVICE)

    def settings(self) -> dict[str, Any]:
        return super().settings() | without_memory(self.no_memory, self.memory_tokens)


@dataclass(frozen=True, kw_only=True)
class AddressOption:
    """Place where a job runs."""

    PANEL: ClassVar[HelpPanel] = WORKERS

    address: str = text_field("auto", WHERE_TO_RUN)


@dataclass(frozen=True, kw_only=True)
class ServiceOption(AddressOption):
    """Service whose workers a job shares with other jobs."""

    service: str | None = text_field(
        None, "Run on the workers, model and memory of this service.", shown="workers of its own"
    )

    def service_choice(self, offered: "ModelSource | None", limits_given: bool = False) -> "ServiceChoice | None":
        """Return the service to run on, if there is one; `offered` is a model that it must hold.

        Raise ConfigError for options that the service decides.
        """
        from pipelines.job.service import ServiceChoice

        if self.service is None:
            return None
        refuse_given(self, DECIDED_BY_SERVICE, f"service {self.service!r} decides that, for all its jobs; leave it out")
        return ServiceChoice(name=self.service, address=self.address, offered=offered, limits_given=limits_given)


@dataclass(frozen=True, kw_only=True)
class WorkerThreads:
    """Torch threads where several workers may share the cores."""

    PANEL: ClassVar[HelpPanel] = WORKERS

    threads: int | None = whole_field(
        None,
        "Torch threads of each worker.",
        DECIDED_BY_SERVICE,
        shown="cores divided among the workers",
        most=MOST_THREADS,
    )

    def worker_threads(self, num_workers: int) -> int:
        """Return the torch threads of each of so many workers."""
        return self.threads or max(1, num_cores() // max(1, num_workers))


@dataclass(frozen=True, kw_only=True)
class ProcessThreads:
    """Torch threads of a job in this process."""

    threads: int | None = whole_field(None, "Torch threads.", shown="all cores", most=MOST_THREADS)


@dataclass(frozen=True, kw_only=True)
class PoolOptions(WorkerThreads):
    """Memory stores and windows of a job on workers."""

    stores: int = whole_field(
        1, "Memory store actors; each document belongs to one.", DECIDED_BY_SERVICE, most=MOST_WORKERS
    )
    window_bytes: int = whole_field(
        2**30, "Bytes of memory windows that each reader keeps, and in one pass each encoder.", DECIDED_BY_SERVICE
    )


@dataclass(frozen=True, kw_only=True)
class RequestWorkerOptions(WorkerThreads, ServiceOption):
    """Workers of a job of requests, which need no readers of their own."""

    workers: int | None = whole_field(
        None,
        "Workers, which share the requests.",
        DECIDED_BY_SERVICE,
        shown="1",
        most=MOST_WORKERS,
    )
    gpus: float = real_field(0.0, "GPU share of each worker.", DECIDED_BY_SERVICE, most=64)

    @property
    def num_workers(self) -> int:
        """Number of workers on Ray, or in this process."""
        return self.workers or 1

    @property
    def threads_of_each(self) -> int:
        """Torch threads of each worker."""
        return self.worker_threads(self.num_workers)

    def request_shape(self, **settings: Any) -> ClusterShape | None:
        """Return the cluster that the options describe; None for this process."""
        if self.address == "none":
            return None
        pools = {"encoders": self.num_workers, "readers": 0, "encoder_gpus": self.gpus, "threads": self.threads_of_each}
        return from_options(ClusterShape, self, **pools, **settings)


@dataclass(frozen=True, kw_only=True)
class ClusterOptions(PoolOptions):
    """Pools of encoders and readers on Ray. Each option sets the field of ClusterShape with the same name."""

    encoders: int = whole_field(1, "Encoder actors (writers).", DECIDED_BY_SERVICE, most=MOST_WORKERS)
    readers: int = whole_field(1, "Reader actors, which score segments.", DECIDED_BY_SERVICE, most=MOST_WORKERS)
    encoder_gpus: float = real_field(0.0, "GPU share of each encoder.", DECIDED_BY_SERVICE, most=64)
    reader_gpus: float = real_field(0.0, "GPU share of each reader.", DECIDED_BY_SERVICE, most=64)
    placement: Placement = choice_field(
        "pack", "Fill one node after the other, or spread workers over all nodes.", DECIDED_BY_SERVICE
    )
    cpu_share: float = real_field(
        1.0,
        "CPUs that a worker reserves, per thread: below 1, other jobs fit on the same cores.",
        DECIDED_BY_SERVICE,
        above=True,
        most=1,
    )
    elastic: bool = flag_field("Begin with the workers that fit; the others begin when nodes join.", DECIDED_BY_SERVICE)

    def shape(self, **settings: Any) -> ClusterShape:
        """Return the cluster that the options describe; `settings` are fields that have no option of their name."""
        return from_options(ClusterShape, self, threads=self.worker_threads(self.encoders + self.readers), **settings)


@dataclass(frozen=True, kw_only=True)
class StoreOptions:
    """Limits and guarantees of the memory store."""

    PANEL: ClassVar[HelpPanel] = MEMORY_STORE

    store_quota_bytes: int | None = whole_field(
        None, "Bytes that the store may hold; a job stops there.", DECIDED_BY_SERVICE, shown="no limit"
    )
    durability: Durability = choice_field(
        "process", "What stored blocks survive: the death of processes, or also a power cut.", DECIDED_BY_SERVICE
    )


def model_settings(options: Any) -> dict[str, Any]:
    """Return the values of the options marked as fields of LongMemConfig, except those that were left out."""
    found = {name: getattr(options, name) for name in marked_fields(type(options), MODEL_SETTING)}
    return {name: value for name, value in found.items() if value is not None}


def without_memory(no_memory: bool, memory_tokens: int | None) -> dict[str, int]:
    """Return the setting of `--no-memory`. Raise ConfigError for a memory that is asked for at the same time."""
    if no_memory and memory_tokens:
        raise ConfigError("--no-memory and --memory-tokens contradict each other; give one of them")
    return {"memory_tokens": 0} if no_memory else {}
