"""`longmem plan`: options become a workload and a cluster; costs are measured or read; the plan is printed."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from longmem.errors import ConfigError
from pipelines.command.command_line import (
    JobDtype,
    Retention,
    SearchEngine,
    check_inputs,
    exit_codes,
    local_inputs,
    num_cores,
)
from pipelines.command.console import open_console, say_json
from pipelines.command.interrupts import tidying
from pipelines.command.option_types import (
    MOST_THREADS,
    MOST_WORKERS,
    path_option,
    real_option,
    text_argument,
    text_option,
    whole_option,
)
from pipelines.command.options import (
    Adapter,
    ChunkTokens,
    Dtype,
    KvDtype,
    MemoryTokens,
    Model,
    NoMemory,
    Search,
    SegmentTokens,
    SpecialTokens,
    TopK,
    model_source,
)

if TYPE_CHECKING:
    from longmem.model.source import ModelSource
    from pipelines.plan.costs import UnitCosts

EXIT_OFF = 1
"""The check found throughput off by more than a quarter."""


def plan(
    inputs: Annotated[
        list[str] | None,
        text_argument(
            metavar="INPUT", show_default=False, help="Documents, as in `longmem perplexity`; or give --tokens."
        ),
    ] = None,
    tokens: Annotated[
        int | None, whole_option(help="Instead of INPUT: tokens of each document.", show_default=False)
    ] = None,
    documents: Annotated[int, whole_option(help="With --tokens: how many documents.")] = 1,
    limit_documents: Annotated[int | None, whole_option(help="Only the first N documents.", show_default=False)] = None,
    nodes: Annotated[int, whole_option(help="Machines like this one.", most=MOST_WORKERS)] = 1,
    cores_per_node: Annotated[
        float | None, real_option(help="Cores of each.", show_default="this machine's", above=True, most=1e6)
    ] = None,
    encoders: Annotated[
        int | None, whole_option(help="Encoder actors.", show_default="the best number", most=MOST_WORKERS)
    ] = None,
    readers: Annotated[
        int | None, whole_option(help="SideNet actors.", show_default="the best number", most=MOST_WORKERS)
    ] = None,
    stores: Annotated[
        int | None, whole_option(help="Store actors.", show_default="the best number", most=MOST_WORKERS)
    ] = None,
    retention: Annotated[
        Retention, typer.Option(help="What stays in the store: a document's window, it until it is scored, or all.")
    ] = Retention.DOCUMENT,
    address: Annotated[str, text_option(help="local (pools on Ray) or none (one process).")] = "local",
    model: Model = None,
    adapter: Adapter = None,
    threads: Annotated[
        int | None,
        whole_option(
            help="Torch threads of each worker.", show_default="1, all cores with --address none", most=MOST_THREADS
        ),
    ] = None,
    segment_tokens: SegmentTokens = None,
    memory_tokens: MemoryTokens = None,
    top_k: TopK = None,
    chunk_tokens: ChunkTokens = None,
    kv_dtype: KvDtype = None,
    special_tokens: SpecialTokens = None,
    no_memory: NoMemory = False,
    dtype: Dtype = JobDtype.FLOAT32,
    search: Search = SearchEngine.AUTO,
    seconds: Annotated[float, real_option(help="About how long to measure.", above=True)] = 40.0,
    costs: Annotated[
        Path | None, path_option(help="Costs from an earlier --save-costs, instead of measuring.", show_default=False)
    ] = None,
    save_costs: Annotated[Path | None, path_option(help="Write the measured costs there.", show_default=False)] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Also run the job on this machine and compare; exit code 1 if off by 25%.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Time, memory, disk and network of a job before it starts, from what one segment costs on this machine.

    **Example:** `longmem plan books/ --nodes 4 --cores-per-node 16`, or `longmem plan --tokens 100000 --documents 5000`
    """
    console = open_console(stderr=True)
    with exit_codes(console):
        if address not in ("none", "local"):
            raise ConfigError(f"--address must be local or none, got {address!r}: a plan is measured on this machine")
        if (tokens is None) == (not inputs):
            raise ConfigError("a plan needs documents: give INPUT, or --tokens (and --documents), and not both")
        if check and not inputs:
            raise ConfigError("--check runs the job, so it needs INPUT instead of --tokens")
        for name, value in (("--seconds", seconds), ("--threads", threads), ("--tokens", tokens)):
            if value is not None and value <= 0:
                raise ConfigError(f"{name} must be positive, got {value}")
        if documents < 1:
            raise ConfigError(f"--documents must be at least 1, got {documents}")
        check_inputs(*inputs or ())
        # torch and transformers take seconds to load: not for --help
        from pipelines.doctor.machine import usable_cores
        from pipelines.job.inputs import find_inputs
        from pipelines.plan import console as plan_view
        from pipelines.plan.input import document_tokens
        from pipelines.plan.predict import predict, suggest
        from pipelines.plan.workload import Cluster, Workload

        in_process = address == "none"
        source = model_source(
            model,
            dtype,
            search,
            console,
            adapter=adapter,
            no_memory=no_memory,
            segment_tokens=segment_tokens,
            memory_tokens=memory_tokens,
            top_k=top_k,
            chunk_tokens=chunk_tokens,
            kv_dtype=kv_dtype,
            special_tokens=special_tokens,
        )
        here = Cluster(
            cores_per_node=usable_cores(),
            threads=threads or (num_cores() if in_process else 1),
            in_process=in_process,
        )
        cluster = Cluster(
            nodes=nodes,
            cores_per_node=here.cores_per_node if cores_per_node is None else cores_per_node,
            threads=here.threads,
            in_process=in_process,
        )
        left_out = {}
        if inputs:
            found = find_inputs(local_inputs(inputs), console)
            lengths, left_out = document_tokens(found, source, limit_documents), found.left_out.as_dict()
        else:
            lengths = (tokens or 0,) * min(documents, limit_documents or documents)
        workload = Workload(lengths, retention.value)
        unit_costs = _costs(source, here.threads, in_process, seconds, costs, console)
        if save_costs is not None:
            from pipelines.plan.costs import save_costs as save

            save(unit_costs, save_costs)
        best = suggest(unit_costs, workload, cluster)
        chosen = suggest(unit_costs, workload, cluster, encoders=encoders, readers=readers, stores=stores)
        planned, suggested = predict(unit_costs, workload, chosen), predict(unit_costs, workload, best)
        comparison = None
        if not as_json:
            plan_view.print_plan(open_console(), planned, suggested, unit_costs)
        if check:
            from pipelines.plan.check import check_plan

            tried = suggest(unit_costs, workload, here, encoders=encoders, readers=readers, stores=stores)
            comparison = check_plan(
                local_inputs(inputs or []), source, workload, tried, unit_costs, limit_documents, seconds, console
            )
            if not as_json:
                plan_view.print_comparison(open_console(), comparison)
        if as_json:
            figures = plan_view.as_json(planned, suggested, unit_costs, comparison) | {"left_out": left_out}
            say_json(figures, indent=2)
    if comparison is not None and not comparison.passed:
        raise typer.Exit(EXIT_OFF)


def _costs(
    source: "ModelSource", threads: int, in_process: bool, seconds: float, saved: Path | None, console: Console
) -> "UnitCosts":
    from longmem.model.source import describe
    from pipelines.plan.costs import load_costs
    from pipelines.plan.measure import identity_of, measure_apart

    if saved is not None:
        return load_costs(saved, identity_of(describe(source.open()), source, threads), with_ray=not in_process)
    # what is measured runs in other processes
    with tidying(), console.status("measuring what one segment costs") as status:
        costs = measure_apart(source, threads, seconds)
        if not in_process:
            from pipelines.plan.measure_ray import with_ray_costs

            status.update("measuring what Ray adds")
            costs = with_ray_costs(costs, source, threads, seconds / 3)
    return costs
