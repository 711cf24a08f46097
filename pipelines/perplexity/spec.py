# SPDX-License-Identifier: Apache-2.0
"""`longmem perplexity`: options become one checked job."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rich.console import Console

from actors.config import IN_FLIGHT_BYTES
from actors.executor.timeouts import Timeouts
from longmem.errors import ConfigError
from pipelines.command.choices import Retention
from pipelines.command.command_line import (
    EXIT_FAILED_DOCUMENTS,
    check_inputs,
    check_model,
    command_text,
    loading,
    show_summary,
)
from pipelines.command.dataset_options import DatasetOptions
from pipelines.command.fields import (
    DECIDED_BY_SERVICE,
    MEMORY_STORE,
    WORKERS,
    choice_field,
    flag_field,
    from_options,
    real_field,
    text_argument_field,
    text_field,
    whole_field,
)
from pipelines.command.option_types import MOST_WORKERS
from pipelines.command.options import (
    ClusterOptions,
    OptionalMemoryOptions,
    OutputOptions,
    ServiceOption,
    StoreOptions,
    default_workers,
)
from pipelines.command.spec import CommandSpec, command

if TYPE_CHECKING:
    # loads torch
    from pipelines.perplexity.job import PerplexityJob

LEAST_OBJECT_STORE_BYTES = 75 * 2**20
"""Ray starts with no less."""


@dataclass(frozen=True, kw_only=True)
class PerplexitySpec(
    StoreOptions, ClusterOptions, ServiceOption, OptionalMemoryOptions, OutputOptions, DatasetOptions, CommandSpec
):
    """Perplexity of long documents, with memory and without.

    **Example:** `longmem perplexity moby-dick.txt --out runs/moby`
    """

    inputs: list[str] | None = text_argument_field(
        None,
        ".txt, .jsonl, .ndjson, .json (`text`, optional `id`; also .gz, .zst, .bz2, .xz), .parquet, or a "
        "folder, read whole; local or an fsspec URI. Without any: the Python language reference.",
        "INPUT",
        shown=False,
    )
    workers: int | None = whole_field(
        None,
        "With --address none: segments that are computed at a time. On Ray, see --encoders and --readers.",
        WORKERS,
        DECIDED_BY_SERVICE,
        shown="as many as cores, at most 4; 1 with --threads or --one-pass",
        most=MOST_WORKERS,
    )
    max_tries: int = whole_field(
        5, "Set a document aside when one of its segments has ended its worker this often.", WORKERS
    )
    task_deadline_s: float = real_field(
        1800.0, "Seconds one segment may take; then its worker is killed and it is tried again.", WORKERS, above=True
    )
    object_store_bytes: int = whole_field(
        2**30,
        "Bytes of Ray's object store, where Ray is started here.",
        WORKERS,
        DECIDED_BY_SERVICE,
        least=LEAST_OBJECT_STORE_BYTES,
    )
    store: str | None = text_field(
        None,
        "Memory store: LanceDB folder or URI, or memory:// (with --address none).",
        MEMORY_STORE,
        DECIDED_BY_SERVICE,
        shown="inside --out",
    )
    retention: Retention | None = choice_field(
        None,
        "How long the store keeps blocks: while a window may reach them (bounded disk, however long the "
        "document), while their document is scored, or forever.",
        MEMORY_STORE,
        shown="document",
    )
    keep_memory: bool = flag_field("The same as --retention forever.", MEMORY_STORE)
    namespace: str | None = text_field(None, "Where kept documents are filed.", MEMORY_STORE, shown="default")
    limit_documents: int | None = whole_field(
        None, "Score only the first N documents.", names=("--limit-documents", "--limit"), shown=False
    )
    limit_tokens: int | None = whole_field(
        None, "Score at most the first N tokens of each document; longmem plan does not count it.", shown="all"
    )
    tokens: bool = flag_field(
        "Also write every token's log-probabilities and what it read from memory, for `longmem view`: tokens.parquet, "
        "readings.parquet and passages.parquet, which holds the text."
    )
    window: int | None = whole_field(
        None,
        "Also evaluate the backbone alone in overlapping windows of N tokens, as published work does, for comparison "
        "with memory. `longmem plan` does not count it.",
        shown=False,
    )
    stride: int | None = whole_field(
        None,
        "With --window: distance of windows in tokens; each scores that many new ones.",
        shown="512, or the window if that is shorter",
    )
    one_pass: bool = flag_field(
        "Encode each segment behind the memory that it reads: one forward a token instead of two, without a figure of "
        "the backbone alone. For models that read the memory at every layer; segments of a document are encoded in "
        "order, so give more encoders than readers. `longmem plan` does not know it.",
        DECIDED_BY_SERVICE,
    )
    max_in_flight_segments: int | None = whole_field(
        None,
        "Encoded segments that may wait for readers.",
        WORKERS,
        shown="8 per worker, 16 in process; fewer large ones",
    )
    max_in_flight_bytes: int = whole_field(
        IN_FLIGHT_BYTES, "Maximum bytes of encoded segments that wait for readers.", WORKERS
    )

    def settings(self) -> dict[str, Any]:
        return super().settings() | ({"one_pass": True} if self.one_pass else {})

    def run(self, console: Console) -> int:
        self.check_resume()
        if not self.resume:
            check_model(self.model)
        check_inputs(*self.inputs or ())
        with loading(console):
            from pipelines.job.executors import import_executor
            from pipelines.perplexity.console import print_result
            from pipelines.perplexity.job import run_job

            import_executor(self.address)
        job = self.job(console)
        summary = run_job(job, console)
        show_summary(summary, job.out, self.as_json, lambda console: print_result(console, summary, job.out))
        return EXIT_FAILED_DOCUMENTS if summary["counts"]["failed_documents"] else 0

    def job(self, console: Console) -> "PerplexityJob":
        """Return the job that the options describe. Raise ConfigError where they contradict each other."""
        retention = self._retention()
        if self.one_pass:
            self._check_one_pass(retention)
        from longmem.runtime.scheduler import Limits
        from pipelines.job.executors import default_in_flight
        from pipelines.perplexity.job import PerplexityJob

        dataset = self.dataset_source()
        if dataset is not None and self.dtype == "auto":
            # like the files of inputs: one that is not there is told before minutes of measurement
            dataset.check()
        on_ray = None if self.address == "none" else self.encoders + self.readers
        in_process = self._workers_in_process()
        source = self.source(
            console,
            on_gpu=self.reader_gpus > 0,
            encoders_on_gpu=self.encoder_gpus > 0,
            resumed=self.resumed_folder,
            on_service=self.service is not None,
            inputs=self.inputs or (),
        )
        service = self.service_choice(source if self.model else None, self.max_in_flight_segments is not None)
        cluster = None
        if self.address != "none":
            cluster = self.shape(timeouts=Timeouts(max_tries=self.max_tries, task_s=self.task_deadline_s))
        return from_options(
            PerplexityJob,
            self,
            inputs=tuple(self.inputs or ()),
            dataset=dataset,
            out=self.folder,
            model=source,
            service=service,
            cluster=cluster,
            workers=in_process,
            threads=self.worker_threads(on_ray or in_process),
            threads_given=self.threads is not None,
            limits=Limits(
                self.max_in_flight_segments or default_in_flight(on_ray, in_process), self.max_in_flight_bytes
            ),
            limits_given=self.max_in_flight_segments is not None or self.max_in_flight_bytes != IN_FLIGHT_BYTES,
            retention=retention,
            keep_tokens=self.tokens,
            write_memory=retention == "forever" or not self.no_memory,
            command=command_text(),
        )

    def _workers_in_process(self) -> int:
        if self.workers is None:
            # in one pass, a segment waits for the one before it
            return default_workers(self.threads) if self.address == "none" and not self.one_pass else 1
        if self.address != "none":
            raise ConfigError(
                f"--workers {self.workers} is for jobs in one process: add --address none, or give --encoders and "
                "--readers"
            )
        return self.workers

    def _check_one_pass(self, retention: Retention) -> None:
        if self.no_memory or self.memory_tokens == 0:
            given = "--no-memory" if self.no_memory else "--memory-tokens 0"
            raise ConfigError(
                f"--one-pass and {given} contradict each other: one pass reads the memory while it encodes; give one "
                "of them"
            )
        if retention == "forever":
            raise ConfigError(
                "--one-pass and --keep-memory contradict each other: no later command reads what one pass wrote; give "
                "one of them"
            )

    def _retention(self) -> Retention:
        if self.keep_memory and self.retention not in (None, "forever"):
            raise ConfigError(f"--keep-memory and --retention {self.retention} contradict each other; give one of them")
        return "forever" if self.keep_memory else self.retention or "document"


perplexity = command(PerplexitySpec)
