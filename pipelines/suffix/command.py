"""`longmem suffix`: options become one checked job."""

from pathlib import Path
from typing import Annotated

from longmem.errors import ConfigError
from pipelines.command.command_line import (
    JobDtype,
    SearchEngine,
    command_text,
    exit_codes,
    num_cores,
    say_if_finished,
)
from pipelines.command.console import open_console
from pipelines.command.option_types import MOST_THREADS, path_argument, text_option, whole_option
from pipelines.command.options import (
    Adapter,
    ChunkTokens,
    Dtype,
    MemoryTokens,
    Model,
    Out,
    Resume,
    Search,
    SegmentTokens,
    SpecialTokens,
    TopK,
    check_resume,
    model_source,
    output_folder,
)


def suffix(
    file: Annotated[
        Path,
        path_argument(
            metavar="FILE",
            help=".jsonl (`prefix`, `candidates`, `label`, or `ctx`, `pos`, `negs`), or a ChapterBreak .json; also "
            "compressed as .gz, .zst, .bz2 or .xz.",
        ),
    ],
    model: Model = None,
    adapter: Adapter = None,
    out: Out = None,
    resume: Resume = False,
    split: Annotated[
        str | None, text_option(help="Part of a ChapterBreak file: pg19 or ao3.", show_default=False)
    ] = None,
    context_tokens: Annotated[
        str, text_option(help="Lengths of context, ascending; of a longer context the last tokens are read.")
    ] = "512,1024,2048,4096,8192",
    suffix_tokens: Annotated[int, whole_option(help="Of a longer candidate the first tokens are scored.")] = 128,
    limit_examples: Annotated[
        int | None, whole_option(help="Score only the first N examples.", show_default=False)
    ] = None,
    segment_tokens: SegmentTokens = None,
    memory_tokens: MemoryTokens = None,
    top_k: TopK = None,
    chunk_tokens: ChunkTokens = None,
    special_tokens: SpecialTokens = None,
    threads: Annotated[
        int | None, whole_option(help="Torch threads.", show_default="all cores", most=MOST_THREADS)
    ] = None,
    dtype: Dtype = JobDtype.FLOAT32,
    search: Search = SearchEngine.AUTO,
) -> None:
    """Which of several texts follows a long context? Accuracy by context length, with memory and without.

    **Example:** `longmem suffix chapterbreak_ctx_8192.json --split pg19 --out runs/suffix`
    """
    console = open_console(stderr=True)
    folder = output_folder(out)
    with exit_codes(console, folder):
        # torch and transformers take seconds to load: not for --help, and not outside of what handles Ctrl-C
        from pipelines.suffix.job import SuffixJob, run_suffix
        from pipelines.suffix.report import print_suffix_result
        from pipelines.suffix.scoring import SuffixLengths

        check_resume(resume, out)
        job = SuffixJob(
            input=file,
            out=folder,
            model=model_source(
                model,
                dtype,
                search,
                console,
                adapter=adapter,
                segment_tokens=segment_tokens,
                memory_tokens=memory_tokens,
                top_k=top_k,
                chunk_tokens=chunk_tokens,
                special_tokens=special_tokens,
            ),
            lengths=SuffixLengths(context_tokens=_lengths(context_tokens), suffix_tokens=suffix_tokens),
            threads=num_cores() if threads is None else threads,
            split=split,
            limit_examples=limit_examples,
            resume=resume,
            command=command_text(),
        )
        summary = run_suffix(job, console)
        if not say_if_finished(summary, folder):
            print_suffix_result(open_console(), summary, folder)


def _lengths(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ConfigError(f"--context-tokens must be numbers with commas between them, got {text!r}") from None
