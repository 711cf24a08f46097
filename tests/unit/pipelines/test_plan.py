# SPDX-License-Identifier: Apache-2.0
"""The prediction against invariants of any plan, and against an example computed by hand."""

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.config import STORES_RECENT_BYTES
from longmem.errors import ConfigError
from pipelines.plan.console import advice
from pipelines.plan.costs import Cost, CostLine, RayCost, ScoreCost, UnitCosts, without_waiting
from pipelines.plan.predict import Plan, predict, suggest
from pipelines.plan.workload import Cluster, Workload

SIZE, MEMORY = 100, 300


def cost(seconds: float) -> Cost:
    return Cost(seconds, seconds, 0.0, 5)


def costs(
    *,
    encode: float = 0.1,
    prepare: float = 0.0,
    put: float = 0.01,
    score: float = 0.2,
    slope: float = 0.001,
    driver: float = 0.001,
) -> UnitCosts:
    """Return round unit costs: scoring costs `score` + `slope` for each token in the window."""
    line = CostLine(score, slope)
    return UnitCosts(
        identity={"threads": 1},
        environment={},
        segment_tokens=SIZE,
        memory_tokens=MEMORY,
        encode=cost(encode),
        prepare=cost(prepare),
        put=cost(put),
        put_more=cost(put / 4),
        read=cost(0.004),
        read_more=cost(0.002),
        score=ScoreCost(cost(score / 2), line, line, 0.0, ((MEMORY, cost(score + slope * MEMORY)),)),
        record=cost(driver),
        forget=cost(0.5),
        tokenise_s=1e-5,
        load_s=2.0,
        block_bytes=1000,
        state_bytes=5000,
        window_bytes=9000,
        store_overhead=1.1,
        record_bytes=400,
        process_bytes=10**6,
        worker_bytes=10**5,
        ray=RayCost(Cost(0.02, 0.006), 8.0, 2 * 10**6, 3 * 10**6, 10**5, 10**7),
    )


def on_ray(encoders: int = 1, readers: int = 1, *, nodes: int = 1, cores: float = 64.0, stores: int = 1) -> Cluster:
    return Cluster(nodes=nodes, cores_per_node=cores, encoders=encoders, readers=readers, stores=stores)


# --- by hand ----------------------------------------------------------------------------------------------------


def test_one_process_adds_everything_up() -> None:
    """Compute 550 tokens: five full segments with 0, 100, 200, 300, 300 tokens in the window, and half of one with
    300."""
    plan = predict(costs(), Workload((550,)), Cluster(in_process=True))
    encode = 5.5 * 0.1
    put = 6 * (0.01 + 7 * 0.0025) / 8
    read = 5 * (0.004 + 7 * 0.002) / 8
    score = 0.1 + 0.3 + 0.4 + 0.5 + 0.5 + 0.5 * 0.5 + read
    driver = 6 * 0.001
    tokenise, forget = 550 * 1e-5, 0.5
    assert plan.num_segments == 6
    assert {name: stage.busy_s for name, stage in plan.stages.items()} == pytest.approx(
        {"encode": encode, "put": put, "score": score, "driver": driver}
    )
    assert plan.wall_s == pytest.approx(encode + put + score + driver + tokenise + forget)
    assert plan.cpu_s == pytest.approx(plan.wall_s)
    assert plan.start_s == 2.0
    assert plan.tokens_per_s == pytest.approx(550 / plan.wall_s)
    assert plan.bottleneck == "score"
    assert plan.disk_bytes == int(5.5 * 1000 * 1.1)
    assert plan.ram_bytes_per_node == 10**6 + 9000
    assert plan.object_store_bytes == 0
    assert plan.result_bytes == 6 * 400
    assert sum(plan.network_bytes.values()) == 0


@pytest.mark.parametrize(
    ("workers", "cores", "put", "bottleneck"), [(2, 4, 0.01, "score"), (4, 2, 0.01, "cores"), (2, 4, 1.0, "put")]
)
def test_workers_of_one_process_share_the_work_the_cores_or_wait_for_puts(
    workers: int, cores: int, put: float, bottleneck: str
) -> None:
    """Compute four full segments, of which the last has the whole window."""
    cluster = Cluster(in_process=True, workers=workers, cores_per_node=cores)
    plan = predict(costs(put=put), Workload((400,)), cluster)
    reads = 0.004 + 7 * 0.002
    windows = (0, 100, 200, 300)
    models = [0.1 + (0.2 + 0.001 * window + reads / 8 if window else 0.1) for window in windows]
    puts = (put + 7 * put / 4) / 8
    expected = sum(max(each / workers, puts, (each + puts + 0.001) / cores) for each in models)
    assert plan.wall_s == pytest.approx(expected + 400 * 1e-5 + 0.5)
    assert plan.cpu_s == pytest.approx(sum(models) + 4 * (puts + 0.001) + 400 * 1e-5 + 0.5)
    assert plan.bottleneck == bottleneck
    assert sum(plan.limited_s.values()) == pytest.approx(expected)
    assert plan.ram_bytes_per_node == 10**6 + 9000 + (workers - 1) * 10**5


def test_pools_take_as_long_as_the_slowest_stage_of_each_segment() -> None:
    """Compute two readers, which halve scoring but each fetch every block: 4 ms for their own turn, 2 for the
    other's."""
    plan = predict(costs(encode=0.21, slope=0.001), Workload((400,)), on_ray(1, 2))
    first = max(0.21, 0.1 / 2)
    later = [max(0.21, (0.2 + 0.001 * window + 0.006) / 2) for window in (100, 200, 300)]
    assert later[0] == 0.21  # while the window fills, the encoder is slower
    assert later[2] == pytest.approx(0.253)
    edges = 400 * 1e-5 + 0.5 + 0.21 + (0.2 + 0.001 * 300) + 0.02
    assert plan.wall_s == pytest.approx(first + sum(later) + edges)
    assert plan.limited_s["encode"] == pytest.approx(3 * 0.21)
    assert plan.limited_s["score"] == pytest.approx(0.253)
    # Ray's own work counts as CPU time, its latency does not add up
    assert plan.cpu_s == pytest.approx(
        sum(stage.busy_s for stage in plan.stages.values()) + 4 * 0.006 + 400 * 1e-5 + 0.5
    )


@pytest.mark.parametrize(
    ("encode", "score", "readers", "moved"),
    [
        (0.10, 0.20, 1, 0.05),  # both take 0.15
        (0.10, 0.30, 1, 0.08),  # no more than there is
        (0.10, 0.15, 2, 0.0),  # readers are faster
        (0.10, 0.26, 2, 0.02),  # 0.12 with one encoder, 0.24 with two readers
    ],
)
def test_encoders_prepare_for_readers_as_much_as_makes_both_equal(
    encode: float, score: float, readers: int, moved: float
) -> None:
    given = costs(encode=encode, score=score - 0.004, slope=0.0, prepare=0.08, driver=0.0)
    without = replace(given, read=cost(0.004), read_more=cost(0.0), put=cost(0.0), put_more=cost(0.0))
    plan = predict(without, Workload((40_000,)), on_ray(1, readers))
    each = {stage: plan.stages[stage].busy_s / 400 for stage in ("encode", "score")}
    assert each["encode"] == pytest.approx(encode + moved, rel=0.03)
    assert each["score"] == pytest.approx(score - moved, rel=0.03)


def test_a_store_commits_what_comes_while_it_commits_and_pauses() -> None:
    """Compute commits: 10 ms plus 2.5 for each further block, a pause of 200, and a segment every 50."""
    plan = predict(costs(encode=0.05, score=0.02, slope=0.0), Workload((400,)), on_ray())
    together = (0.01 - 0.0025 + 0.2) / (0.05 - 0.0025)
    assert 4 < together < 5
    assert plan.stages["put"].busy_s == pytest.approx(4 * (0.01 + (together - 1) * 0.0025) / together)
    # and at most eight at a time
    fast = predict(costs(encode=0.001, score=0.001, slope=0.0), Workload((400,)), on_ray())
    assert fast.stages["put"].busy_s == pytest.approx(4 * (0.01 + 7 * 0.0025) / 8)


def test_between_two_nodes_half_of_everything_travels() -> None:
    plan = predict(costs(), Workload((400,)), on_ray(2, 4, nodes=2))
    assert plan.network_bytes == {
        "encoded segments to readers": 4 * 6000 // 2,
        "block to the store": 4 * 1000 // 2,
        "blocks from the store": 4 * 4 * 1000 // 2,
    }
    assert plan.network_bytes_per_node == (12000 + 2000 + 8000) // 2
    assert plan.network_mb_per_s == pytest.approx(11000 / plan.wall_s / 1e6)
    # one encoder, two readers with a window each, the store, Ray, and half of the in-flight data: all four segments,
    # and the blocks that four readers fetch, which are all
    objects = 4 * 6000 + 16 * 1000
    assert plan.object_store_bytes == objects
    assert plan.ram_bytes_per_node == 2 * 10**6 + 2 * (3 * 10**6 + 9000) + 10**5 + 10**7 + objects // 2


def test_stores_keep_their_newest_blocks_in_the_object_store() -> None:
    """Check blocks beyond the 16 in flight: all of a short document, and a store's capacity of a long one."""
    in_flight = 16 * 6000 + 8 * 1000
    assert predict(costs(), Workload((100 * SIZE,)), on_ray()).object_store_bytes == in_flight + (100 - 16) * 1000
    kept = STORES_RECENT_BYTES - 16 * 1000
    assert predict(costs(), Workload((300_000 * SIZE,)), on_ray()).object_store_bytes == in_flight + kept


@pytest.mark.parametrize(
    ("retention", "segments"),
    # in one process a document is deleted before the next one is written
    [("forever", 10 + 5 + 20), ("document", 20), ("window", 3 + 1)],
)
def test_disk_follows_what_is_kept(retention: str, segments: int) -> None:
    workload = Workload((10 * SIZE, 5 * SIZE, 20 * SIZE), retention)  # type: ignore[arg-type]
    plan = predict(costs(), workload, Cluster(in_process=True))
    assert plan.disk_bytes == int(segments * 1000 * 1.1)


# --- bottlenecks ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "cluster", "limit"),
    [
        (costs(encode=5.0), on_ray(1, 1), "encode"),
        (costs(encode=5.0), on_ray(50, 1), "score"),
        (costs(score=5.0), on_ray(1, 1), "score"),
        (costs(score=5.0), on_ray(1, 60), "encode"),
        (costs(put=5.0), on_ray(4, 4), "put"),
        (costs(driver=5.0), on_ray(4, 4), "driver"),
        (costs(), on_ray(4, 8, cores=2), "cores"),
        (costs(), on_ray(1, 1, cores=0.5), "cores"),
    ],
)
def test_the_slowest_is_named(given: UnitCosts, cluster: Cluster, limit: str) -> None:
    assert predict(given, Workload((5000,)), cluster).bottleneck == limit


def test_cores_limit_workers_that_outnumber_them() -> None:
    few = predict(costs(), Workload((50_000,)), on_ray(8, 24, cores=4))
    assert few.limited_s["cores"] == pytest.approx(few.wall_s, rel=0.03)
    work = sum(stage.busy_s for stage in few.stages.values()) + 500 * 0.006
    assert few.limited_s["cores"] == pytest.approx(work / 4)


def test_what_ray_does_by_itself_is_no_core_of_the_job() -> None:
    base = costs()
    assert base.ray is not None
    busy = replace(base, ray=replace(base.ray, idle_cores=1.0))
    plan, more = (predict(busy, Workload((50_000,)), on_ray(8, 24, cores=cores)) for cores in (4, 5))
    free = predict(base, Workload((50_000,)), on_ray(8, 24, cores=4))
    assert more.wall_s == pytest.approx(free.wall_s)
    assert more.cpu_s == pytest.approx(free.cpu_s + more.wall_s)
    assert plan.wall_s > free.wall_s


def test_stores_work_together_only_as_far_as_documents_overlap() -> None:
    slow = costs(put=5.0)
    one = predict(slow, Workload((100_000,) * 4), on_ray(2, 2, stores=1))
    many = predict(slow, Workload((100_000,) * 4), on_ray(2, 2, stores=4))
    short = predict(slow, Workload((400,) * 1000), on_ray(2, 2, stores=4))
    assert one.wall_s > many.wall_s > 0.9 * one.wall_s
    assert short.stages["put"].workers == 4


def test_the_suggestion_balances_the_stages() -> None:
    chosen = suggest(costs(encode=0.1, score=0.3, slope=0.0), Workload((100_000,) * 10), on_ray(cores=16))
    plan = predict(costs(encode=0.1, score=0.3, slope=0.0), Workload((100_000,) * 10), chosen)
    assert chosen.encoders + chosen.readers <= 16
    assert 2 <= chosen.readers / chosen.encoders <= 4
    assert plan.stages["encode"].tokens_per_s == pytest.approx(plan.stages["score"].tokens_per_s, rel=0.35)


def test_the_suggestion_keeps_what_is_given() -> None:
    chosen = suggest(costs(), Workload((9000,)), on_ray(cores=8), encoders=3, stores=2)
    assert (chosen.encoders, chosen.stores) == (3, 2)
    assert suggest(costs(), Workload((9000,)), on_ray(cores=1)).readers == 1


# --- for any plan -----------------------------------------------------------------------------------------------

documents = st.lists(st.integers(1, 5000), min_size=1, max_size=6).map(tuple)
seconds = st.floats(0.001, 2.0)


@settings(max_examples=25)
@given(documents, seconds, seconds, st.integers(1, 8), st.integers(1, 8))
def test_more_nodes_are_never_slower(
    lengths: tuple[int, ...], encode: float, score: float, encoders: int, readers: int
) -> None:
    given_costs, workload = costs(encode=encode, score=score), Workload(lengths)
    walls = []
    for nodes in (1, 2, 3, 5):
        cluster = on_ray(encoders, readers, nodes=nodes, cores=4)
        walls.append((predict(given_costs, workload, cluster).wall_s, best(given_costs, workload, cluster).wall_s))
    for given_wall, best_wall in pairwise(walls):
        assert best_wall[0] <= given_wall[0] * (1 + 1e-9)
        assert best_wall[1] <= given_wall[1] * (1 + 1e-6) + 1e-5


def best(given_costs: UnitCosts, workload: Workload, cluster: Cluster) -> Plan:
    return predict(given_costs, workload, suggest(given_costs, workload, cluster))


@given(st.integers(4, 50), st.integers(1, 50), st.booleans())
def test_time_is_linear_once_windows_are_full(first: int, more: int, in_process: bool) -> None:
    cluster = Cluster(in_process=True) if in_process else on_ray(2, 3)
    shorter, longer, longest = (
        predict(costs(), Workload((SIZE * each,)), cluster) for each in (first, first + more, first + 2 * more)
    )
    assert longest.wall_s - longer.wall_s == pytest.approx(longer.wall_s - shorter.wall_s)
    assert longest.cpu_s - longer.cpu_s == pytest.approx(longer.cpu_s - shorter.cpu_s)


@given(documents, st.integers(1, 6), st.integers(1, 6), st.integers(1, 4), st.booleans())
def test_nothing_is_lost_in_a_plan(
    lengths: tuple[int, ...], encoders: int, readers: int, nodes: int, in_process: bool
) -> None:
    cluster = Cluster(in_process=True) if in_process else on_ray(encoders, readers, nodes=nodes, cores=3)
    plan = predict(costs(), Workload(lengths), cluster)
    assert plan.num_segments == sum(-(-each // SIZE) for each in lengths)
    assert plan.tokens_per_s * plan.wall_s == pytest.approx(sum(lengths))
    # every second of the run belongs to the slowest stage; the rest is start and end
    assert sum(plan.limited_s.values()) < plan.wall_s
    # no core is busy longer than the run; later documents are tokenised in parallel
    beside_s = 1e-5 * sum(lengths[1:])
    assert plan.cpu_s - beside_s <= plan.wall_s * cluster.nodes * max(cluster.cores_per_node, 1) * (1 + 1e-9)
    for stage in plan.stages.values():
        assert stage.busy_s <= plan.wall_s * stage.workers * (1 + 1e-9)
    assert (sum(plan.network_bytes.values()) > 0) == (cluster.nodes > 1)


@given(documents)
def test_the_order_and_grouping_of_documents_do_not_change_the_work(lengths: tuple[int, ...]) -> None:
    whole = predict(costs(), Workload(lengths), Cluster(in_process=True))
    parts = [predict(costs(), Workload((each,)), Cluster(in_process=True)) for each in lengths]
    for name in whole.stages:
        assert whole.stages[name].busy_s == pytest.approx(sum(part.stages[name].busy_s for part in parts))
    assert whole.num_segments == sum(part.num_segments for part in parts)


def test_without_memory_nothing_is_stored_or_fetched() -> None:
    none = cost(0.0)
    bare = replace(
        costs(), memory_tokens=0, put=none, put_more=none, read=none, read_more=none, forget=none, window_bytes=0
    )
    plan = predict(bare, Workload((450,)), Cluster(in_process=True))
    assert plan.disk_bytes == 0
    assert plan.stages["score"].busy_s == pytest.approx(4.5 * 0.1)
    assert plan.stages["put"].busy_s == 0


def test_waiting_for_others_can_be_left_out() -> None:
    waited = replace(costs(), encode=Cost(0.4, 0.1), score=replace(costs().score, wall=CostLine(1.0, 0.01)))
    quiet = without_waiting(waited)
    assert (quiet.encode.wall_s, quiet.score.wall) == (0.1, CostLine(0.2, 0.001))
    # wall time of several threads does not reveal their CPU time
    several = replace(waited, identity={"threads": 2})
    assert without_waiting(several) == several


# --- refusals ---------------------------------------------------------------------------------------------------


def test_costs_without_ray_plan_no_pools() -> None:
    bare = replace(costs(), ray=None)
    assert predict(bare, Workload((500,)), Cluster(in_process=True)).wall_s > 0
    with pytest.raises(ConfigError, match="measured without Ray"):
        predict(bare, Workload((500,)), on_ray())


@pytest.mark.parametrize("wrong", [(), (5, 0)])
def test_a_plan_needs_tokens(wrong: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match="at least one token"):
        Workload(wrong)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"nodes": 0}, "--nodes must be at least 1, got 0"),
        ({"readers": 0}, "--readers"),
        ({"cores_per_node": 0}, "--cores-per-node must be positive"),
        ({"in_process": True, "nodes": 2}, "cannot use 2 nodes"),
    ],
)
def test_a_cluster_that_cannot_be(wrong: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Cluster(**wrong)  # type: ignore[arg-type]


# --- advice -----------------------------------------------------------------------------------------------------


def advised(unit_costs: UnitCosts, workload: Workload, cluster: Cluster, bfloat16_helps: bool = False) -> str:
    plan = predict(unit_costs, workload, cluster)
    best = predict(unit_costs, workload, suggest(unit_costs, workload, cluster))
    return "; ".join(advice(plan, best, unit_costs, bfloat16_helps))


def test_advice_names_only_options_that_the_job_can_take() -> None:
    long, short = Workload((5500,)), Workload((90,) * 8)
    slow_reading, slow_encoding = costs(score=0.5), costs(encode=5.0, score=0.01, slope=0.0)

    alone = advised(slow_reading, long, Cluster(in_process=True, cores_per_node=1))
    assert alone == "--memory-tokens below the 300 that are read, because scoring grows with the window"
    assert "more --workers" in advised(slow_reading, long, Cluster(in_process=True, cores_per_node=8))
    in_threads = Cluster(in_process=True, cores_per_node=8, threads=8)
    assert "--workers 8 --threads 1, because" in advised(slow_reading, long, in_threads)
    assert "--workers" not in advised(slow_reading, long, Cluster(in_process=True, cores_per_node=8, workers=8))
    assert "--readers" not in advised(slow_reading, long, Cluster(in_process=True, cores_per_node=8))

    assert "more --readers on these cores" in advised(slow_reading, long, on_ray(1, 1, cores=64))
    best = suggest(slow_reading, long, on_ray(1, 1, cores=2))
    assert "more nodes or cores" in advised(slow_reading, long, best)
    assert "--readers" not in advised(slow_reading, long, best)

    encoding = advised(slow_encoding, long, on_ray(1, 1))
    assert encoding == "more --encoders on these cores"
    assert "--dtype auto" in advised(slow_encoding, long, on_ray(1, 1), bfloat16_helps=True)

    # documents within one segment have no window that could be smaller
    assert "--memory-tokens" not in advised(slow_reading, short, Cluster(in_process=True))
    assert advised(slow_reading, short, Cluster(in_process=True, cores_per_node=1)) == (
        "a faster machine: no option is left"
    )
    slow_store = costs(put=9.0)
    assert advised(slow_store, long, on_ray(1, 1)) == "a faster disk for --store"
    assert "more --stores" in advised(slow_store, short, on_ray(1, 1))
    assert "--segment-tokens" in advised(costs(driver=9.0), long, on_ray(1, 1))
