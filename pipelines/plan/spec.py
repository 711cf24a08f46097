# SPDX-License-Identifier: Apache-2.0
"""`longmem plan`: options become a workload and a cluster; costs are measured or read; the plan is printed."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from longmem.errors import ConfigError
from pipelines.command.choices import Retention
from pipelines.command.command_line import check_inputs, check_model, loading, local_inputs, num_cores
from pipelines.command.console import open_console, say_json
from pipelines.command.fields import (
    choice_field,
    flag_field,
    path_field,
    real_field,
    text_argument_field,
    text_field,
    whole_field,
)
from pipelines.command.interrupts import tidying
from pipelines.command.option_types import MOST_THREADS, MOST_WORKERS
from pipelines.command.options import OptionalMemoryOptions, default_workers
from pipelines.command.spec import CommandSpec, command

if TYPE_CHECKING:
    # loads torch
    from longmem.model.source import ModelSource
    from pipelines.plan.costs import UnitCosts

EXIT_OFF = 1
"""The check found throughput off by more than a quarter."""


@dataclass(frozen=True, kw_only=True)
class PlanSpec(OptionalMemoryOptions, CommandSpec):
    """Time, memory, disk and network of a job before it starts, from what one segment costs on this machine.

    **Example:** `longmem plan books/ --nodes 4 --cores-per-node 16`, or `longmem plan --tokens 100000 --documents 5000`
    """

    inputs: list[str] | None = text_argument_field(
        None, "Documents, as in `longmem perplexity`; or give --tokens.", "INPUT", shown=False
    )
    tokens: int | None = whole_field(None, "Instead of INPUT: tokens of each document.", shown=False)
    documents: int = whole_field(1, "With --tokens: how many documents.")
    limit_documents: int | None = whole_field(
        None, "Only the first N documents.", names=("--limit-documents", "--limit"), shown=False
    )
    nodes: int = whole_field(1, "Machines like this one.", most=MOST_WORKERS)
    cores_per_node: float | None = real_field(None, "Cores of each.", shown="this machine's", above=True, most=1e6)
    encoders: int | None = whole_field(None, "Encoder actors.", shown="the best number", most=MOST_WORKERS)
    readers: int | None = whole_field(None, "Reader actors.", shown="the best number", most=MOST_WORKERS)
    stores: int | None = whole_field(None, "Store actors.", shown="the best number", most=MOST_WORKERS)
    retention: Retention = choice_field(
        "document",
        "What stays in the store: the window of each document, each document until it is scored, or everything.",
    )
    address: str = text_field("local", "local (pools on Ray) or none (one process).")
    threads: int | None = whole_field(
        None,
        "Torch threads of each worker.",
        shown="1; with --address none cores divided among the workers",
        most=MOST_THREADS,
    )
    workers: int | None = whole_field(
        None,
        "With --address none: segments that are computed at a time.",
        shown="as many as cores, at most 4; 1 with --threads",
        most=MOST_WORKERS,
    )
    seconds: float = real_field(40.0, "About how long to measure.", above=True)
    costs: Path | None = path_field(None, "Costs from an earlier --save-costs, instead of measuring.", shown=False)
    save_costs: Path | None = path_field(None, "Write the measured costs there.", shown=False)
    check: bool = flag_field("Also run the job on this machine and compare; exit code 1 if off by 25%.")
    as_json: bool = flag_field("Print JSON.", names=("--json",))

    def run(self, console: Console) -> int:
        self._refuse_contradictions()
        check_model(self.model)
        check_inputs(*self.inputs or ())
        with loading(console):
            from pipelines.doctor.machine import usable_cores
            from pipelines.plan import console as plan_view
            from pipelines.plan.predict import predict, suggest
            from pipelines.plan.workload import Cluster, Workload

        in_process = self.address == "none"
        source = self.source(console)
        workers = self.workers or (default_workers(self.threads) if in_process else 1)
        threads = self.threads or (max(1, num_cores() // workers) if in_process else 1)
        here = Cluster(cores_per_node=usable_cores(), threads=threads, in_process=in_process, workers=workers)
        cluster = replace(here, nodes=self.nodes, cores_per_node=self.cores_per_node or here.cores_per_node)
        lengths, left_out = self._documents(source, console)
        workload = Workload(lengths, self.retention)
        unit_costs = self._unit_costs(source, threads, console)
        if self.save_costs is not None:
            from pipelines.plan.costs import save_costs

            save_costs(unit_costs, self.save_costs)
        pools = {"encoders": self.encoders, "readers": self.readers, "stores": self.stores}
        planned = predict(unit_costs, workload, suggest(unit_costs, workload, cluster, **pools))
        suggested = predict(unit_costs, workload, suggest(unit_costs, workload, cluster))
        if not self.as_json:
            plan_view.print_plan(open_console(), planned, suggested, unit_costs, self._bfloat16_helps(source))
        comparison = None
        if self.check:
            from pipelines.plan.check import check_plan

            comparison = check_plan(
                local_inputs(self.inputs or []),
                source,
                workload,
                suggest(unit_costs, workload, here, **pools),
                unit_costs,
                self.limit_documents,
                self.seconds,
                console,
            )
            if not self.as_json:
                plan_view.print_comparison(open_console(), comparison)
        if self.as_json:
            figures = plan_view.as_json(planned, suggested, unit_costs, comparison) | {"left_out": left_out}
            say_json(figures, indent=2)
        return EXIT_OFF if comparison is not None and not comparison.passed else 0

    def _bfloat16_helps(self, source: "ModelSource") -> bool:
        """Return whether the planned dtype is float32, and this machine is faster in bfloat16."""
        from longmem.model.precision import MIN_SPEEDUP, bfloat16_speedup

        # costs of a file may be those of another machine
        return source.dtype == "float32" and self.costs is None and bfloat16_speedup() >= MIN_SPEEDUP

    def _refuse_contradictions(self) -> None:
        if self.address not in ("none", "local"):
            raise ConfigError(
                f"--address must be local or none, got {self.address!r}: a plan is measured on this machine"
            )
        if self.workers is not None and self.address != "none":
            raise ConfigError(f"--workers {self.workers} is for --address none; on Ray, give --encoders and --readers")
        if (self.tokens is None) == (not self.inputs):
            raise ConfigError("a plan needs documents: give INPUT, or --tokens (and --documents), and not both")
        if self.check and not self.inputs:
            raise ConfigError("--check runs the job, so it needs INPUT instead of --tokens")

    def _documents(self, source: "ModelSource", console: Console) -> tuple[tuple[int, ...], dict[str, Any]]:
        """Return the tokens of each document, and what `find_inputs` left out."""
        if not self.inputs:
            return (self.tokens or 0,) * min(self.documents, self.limit_documents or self.documents), {}
        from pipelines.job.inputs import find_inputs
        from pipelines.plan.input import document_tokens

        found = find_inputs(local_inputs(self.inputs), console)
        return document_tokens(found, source, self.limit_documents), found.left_out.as_dict()

    def _unit_costs(self, source: "ModelSource", threads: int, console: Console) -> "UnitCosts":
        """Return the costs of one segment: those of `--costs`, else measured ones."""
        from longmem.model.source import describe
        from pipelines.plan.costs import load_costs
        from pipelines.plan.measure import identity_of, measure_apart

        with_ray = self.address != "none"
        if self.costs is not None:
            return load_costs(self.costs, identity_of(describe(source.open()), source, threads), with_ray=with_ray)
        # the measurements run in other processes
        with tidying(), console.status("measuring what one segment costs") as status:
            costs = measure_apart(source, threads, self.seconds)
            if with_ray:
                from pipelines.plan.measure_ray import with_ray_costs

                status.update("measuring what Ray adds")
                costs = with_ray_costs(costs, source, threads, self.seconds / 3)
        return costs


plan = command(PlanSpec)
