# SPDX-License-Identifier: Apache-2.0
"""`longmem suffix`: options become one checked job."""

from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from pipelines.command.command_line import check_model, command_text, loading, parse_numbers, show_summary
from pipelines.command.fields import (
    REQUIRED,
    WORKERS,
    flag_field,
    from_options,
    path_argument_field,
    text_field,
    whole_field,
)
from pipelines.command.options import WHERE_TO_RUN, MemoryModelOptions, OutputOptions, RequestWorkerOptions
from pipelines.command.spec import CommandSpec, command


@dataclass(frozen=True, kw_only=True)
class SuffixSpec(RequestWorkerOptions, MemoryModelOptions, OutputOptions, CommandSpec):
    """Choose which of several texts follows a long context: accuracy by context length, with memory and without.

    **Example:** `longmem suffix chapterbreak_ctx_8192.json --split pg19 --out runs/suffix`
    """

    file: Path = path_argument_field(
        REQUIRED,
        ".jsonl (`prefix`, `candidates`, `label`, or `ctx`, `pos`, `negs`), or a ChapterBreak .json; also "
        "compressed as .gz, .zst, .bz2 or .xz.",
        "FILE",
    )
    address: str = text_field("none", WHERE_TO_RUN, WORKERS)
    split: str | None = text_field(None, "Part of a ChapterBreak file: pg19 or ao3.", shown=False)
    context_tokens: str = text_field(
        "512,1024,2048,4096,8192", "Lengths of context, ascending; of a longer context the last tokens are read."
    )
    suffix_tokens: int = whole_field(128, "Maximum tokens of a candidate that are scored.")
    limit_examples: int | None = whole_field(
        None, "Score only the first N examples.", names=("--limit-examples", "--limit"), shown=False
    )

    tokens: bool = flag_field(
        "Also write what each token of every candidate read from memory, for `longmem view`: readings.parquet, and "
        "texts.parquet, which holds the texts."
    )

    def run(self, console: Console) -> None:
        self.check_resume()
        if not self.resume:
            check_model(self.model)
        with loading(console):
            from pipelines.suffix.job import SuffixJob, run_suffix
            from pipelines.suffix.scoring import SuffixLengths

        lengths = parse_numbers(self.context_tokens, int, "--context-tokens must be numbers with commas between them,")
        source = self.source(
            console, on_gpu=self.gpus > 0, resumed=self.resumed_folder, on_service=self.service is not None
        )
        job = from_options(
            SuffixJob,
            self,
            input=self.file,
            out=self.folder,
            model=source,
            cluster=self.request_shape(),
            service=self.service_choice(source if self.model else None),
            lengths=SuffixLengths(context_tokens=lengths, suffix_tokens=self.suffix_tokens),
            workers=self.num_workers,
            threads=self.threads_of_each,
            keep_tokens=self.tokens,
            command=command_text(),
        )
        summary = run_suffix(job, console)
        # only now: it loads matplotlib
        from pipelines.suffix.report import print_suffix_result

        show_summary(summary, job.out, self.as_json, lambda console: print_suffix_result(console, summary, job.out))


suffix = command(SuffixSpec)
