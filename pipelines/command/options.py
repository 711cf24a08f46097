"""Options that several commands share, so that they read alike everywhere."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape

from longmem.errors import ConfigError
from pipelines.command.command_line import (
    Durability,
    JobDtype,
    Placement,
    SearchEngine,
    SpecialTokenRule,
    StoredFormat,
    local_or_hub,
)
from pipelines.command.option_types import (
    MOST_THREADS,
    MOST_WORKERS,
    path_option,
    real_option,
    text_option,
    whole_option,
)

if TYPE_CHECKING:
    # loads torch
    from longmem.model.source import ModelSource

Out = Annotated[Path | None, path_option(help="Output folder.", show_default="longmem-runs/<date-time>")]
Resume = Annotated[bool, typer.Option("--resume", help="Continue the job in --out.")]
ResumeFromStart = Annotated[
    bool,
    typer.Option(
        "--resume", help="Leave a finished job in --out as it is; begin one that was interrupted from the start."
    ),
]
Address = Annotated[
    str,
    text_option(
        help="Where to run: none (this process), local (start Ray here), auto (join a running cluster, else "
        "start one), or a cluster address."
    ),
]
Model = Annotated[
    str | None,
    text_option(help="LongMem folder, or a Hugging Face backbone (folder or hub id).", show_default="reference model"),
]
Adapter = Annotated[
    Path | None,
    path_option(
        help="Folder of a PEFT adapter (LoRA and others) to merge into the backbone; needs `longmem[adapter]`.",
        show_default="none",
    ),
]
SegmentTokens = Annotated[int | None, whole_option(help="Local context.", show_default="the model's")]
MemoryTokens = Annotated[
    int | None, whole_option(help="Past tokens that a segment may read.", show_default="the model's", least=0)
]
TopK = Annotated[int | None, whole_option(help="Tokens retrieved per token and head.", show_default="the model's")]
ChunkTokens = Annotated[
    int | None, whole_option(help="Tokens that are found and read together.", show_default="the model's")
]
KvDtype = Annotated[
    StoredFormat | None,
    typer.Option(
        help="Format of stored keys and values; int8 takes half of float16's bytes.", show_default="the model's"
    ),
]
SpecialTokens = Annotated[
    SpecialTokenRule | None,
    typer.Option(
        help="What a special token is that a text spells, such as <|endoftext|>: parse (the token, as Hugging Face has "
        "it) or text (its characters).",
        show_default="the model's, else parse",
    ),
]
NoMemory = Annotated[bool, typer.Option("--no-memory", help="Local context only.")]
Dtype = Annotated[
    JobDtype,
    typer.Option(
        help="Compute type. auto: bfloat16 where this machine reads at least 1.1 times as fast with it and perplexity "
        "changes by less than 0.1%, else float32; it measures both and says what it chose."
    ),
]
Search = Annotated[
    SearchEngine,
    typer.Option(
        help="Search engine for chunks; all but ivf, which is for memories far beyond 65,536 tokens, are exact. auto: "
        "native where this machine has a C compiler and readers have no GPU, else torch."
    ),
]

Encoders = Annotated[int, whole_option(help="Encoder actors (writers).", most=MOST_WORKERS)]
Readers = Annotated[int, whole_option(help="SideNet actors (readers).", most=MOST_WORKERS)]
Stores = Annotated[int, whole_option(help="Memory store actors; each document belongs to one.", most=MOST_WORKERS)]
Threads = Annotated[
    int | None,
    whole_option(
        help="Torch threads of each worker.", show_default="cores divided among the workers", most=MOST_THREADS
    ),
]
EncoderGpus = Annotated[float, real_option(help="GPU share of each encoder.", most=64)]
ReaderGpus = Annotated[float, real_option(help="GPU share of each reader.", most=64)]
Placed = Annotated[Placement, typer.Option(help="Fill one node after the other, or spread workers over all nodes.")]
CpuShare = Annotated[
    float,
    real_option(
        help="CPUs that a worker reserves, per thread: below 1, other jobs fit on the same cores.", above=True, most=1
    ),
]
Elastic = Annotated[
    bool, typer.Option("--elastic", help="Begin with the workers that fit; the others begin when nodes join.")
]
WindowBytes = Annotated[int, whole_option(help="Bytes of memory windows that each reader keeps.")]

StoreQuotaBytes = Annotated[
    int | None, whole_option(help="Bytes that the store may hold; a job stops there.", show_default="no limit")
]
Durable = Annotated[
    Durability, typer.Option(help="What stored blocks survive: the death of processes, or also a power cut.")
]


def output_folder(out: Path | None) -> Path:
    """Where results go."""
    return out or Path("longmem-runs") / datetime.now().strftime("%Y%m%d-%H%M%S")


def check_resume(resume: bool, out: Path | None) -> None:
    """Raises ConfigError for a job to resume that is not named."""
    if resume and out is None:
        raise ConfigError("--resume needs --out, the folder of the job to continue")


def adapter_folder(adapter: Path | None, model: str | None, option: str = "--model") -> str | None:
    """Return an absolute path, because workers have other working directories. Raises ConfigError for an adapter to a
    model that is not named: the default is not the one that it was trained on."""
    if adapter is None:
        return None
    if model is None:
        raise ConfigError(f"--adapter needs {option}, the backbone that the adapter in {adapter} was trained on")
    return str(adapter.absolute())


def model_source(
    model: str | None,
    dtype: JobDtype,
    search: SearchEngine,
    console: Console,
    *,
    adapter: Path | None = None,
    on_gpu: bool = False,
    encoders_on_gpu: bool = False,
    no_memory: bool = False,
    segment_tokens: int | None,
    memory_tokens: int | None,
    top_k: int | None,
    chunk_tokens: int | None,
    kv_dtype: StoredFormat | None = None,
    special_tokens: SpecialTokenRule | None = None,
    inputs: Sequence[str] = (),
) -> "ModelSource":
    """The model that the options name, `on_gpu` where readers use one. Where the type that it computes in is chosen
    here, with the first document of `inputs` as a sample, prints which. Raises ConfigError for options that contradict
    each other and for inputs that are not there."""
    from longmem.model.precision import choose_dtype
    from longmem.model.source import REFERENCE_MODEL, ModelSource
    from longmem.retrieval import choose_engine
    from longmem.text.documents import first_document

    if no_memory and memory_tokens:
        raise ConfigError("--no-memory and --memory-tokens contradict each other; give one of them")
    settings = {
        "segment_tokens": segment_tokens,
        "memory_tokens": 0 if no_memory else memory_tokens,
        "top_k": top_k,
        "chunk_tokens": chunk_tokens,
        "kv_dtype": None if kv_dtype is None else kv_dtype.value,
        "special_tokens": None if special_tokens is None else special_tokens.value,
    }
    source = ModelSource(
        local_or_hub(model or str(REFERENCE_MODEL)),
        dtype="bfloat16" if dtype == JobDtype.BFLOAT16 else "float32",
        search=choose_engine(search.value, "cuda" if on_gpu else "cpu"),
        settings={name: value for name, value in settings.items() if value is not None},
        adapter=adapter_folder(adapter, model),
    )
    if dtype != JobDtype.AUTO:
        return source
    if on_gpu or encoders_on_gpu:
        raise ConfigError(
            "--dtype auto measures this machine's CPU, workers are to use GPUs: give --dtype float32 or bfloat16"
        )
    choice = choose_dtype(replace(source, search="auto"), first_document(inputs))
    console.print(escape(str(choice)), soft_wrap=True)
    return replace(source, dtype=choice.dtype)
