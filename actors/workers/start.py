"""Starting the three pools, and where their actors are placed."""

from dataclasses import dataclass
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from actors.config import ClusterShape
from actors.workers.base import NAMESPACE, RESTART
from actors.workers.encoder import EncoderActor
from actors.workers.pools import ActorPool
from actors.workers.reader import ReaderActor
from actors.workers.store import RemoteBlockSource, StoreActor, StorePool
from longmem.model.source import ModelSource
from longmem.runtime.executor import Stage
from longmem.store.config import StoreSettings


@dataclass(frozen=True)
class Workers:
    """The pools of one job, or of a service that many jobs share."""

    encoders: ActorPool
    stores: StorePool
    readers: ActorPool

    def by_stage(self) -> dict[Stage, ActorPool]:
        """Without `score` where there are no readers: then segments can be stored, and requests answered."""
        pools: dict[Stage, ActorPool] = {"encode": self.encoders, "put": self.stores, "score": self.readers}
        return {stage: pool for stage, pool in pools.items() if pool.workers}

    def stop(self) -> None:
        for pool in self.by_stage().values():
            pool.stop()


def names_of(prefix: str, shape: ClusterShape) -> dict[str, list[str]]:
    """Names of all actors, which read like the design in Ray's list of actors: `<prefix>-encoder-0`, …"""
    sizes = {"encoder": shape.encoders, "store": shape.stores, "sidenet": shape.readers}
    return {kind: [f"{prefix}-{kind}-{rank}" for rank in range(size)] for kind, size in sizes.items()}


def start_workers(
    source: ModelSource, store: StoreSettings | str, shape: ClusterShape, prefix: str, *, detached: bool = False
) -> Workers:
    """Create all actors; returns at once, while they load. `detached` ones outlive this driver."""
    names = names_of(prefix, shape)
    settings = StoreSettings.of(store)
    lifetime = "detached" if detached else None
    on_encoder, on_reader = _placement(shape, shape.encoder_gpus), _placement(shape, shape.reader_gpus)
    encoder_model = source.on_gpu() if shape.encoder_gpus else source
    reader_model = source.on_gpu() if shape.reader_gpus else source
    on_store = _store_placement(settings.uri)
    # by name, because an actor whose constructor was given handles cannot be started again once the driver is gone
    blocks = RemoteBlockSource(names["store"])
    made: dict[str, list[Any]] = {kind: [] for kind in names}

    def create(kind: str, actor: Any, options: dict[str, Any], *arguments: Any) -> None:
        name = names[kind][len(made[kind])]
        options = {"name": name, "namespace": NAMESPACE, "lifetime": lifetime, **RESTART, **options}
        made[kind].append(actor.options(**options).remote(*arguments))

    for rank in range(shape.stores):
        create("store", StoreActor, on_store, settings, rank)
    # Ray gives out room, and nodes in turn, in this order: one of each kind can begin where there is room for two, and
    # every kind is on every node
    sizes = {"encoder": shape.encoders, "sidenet": shape.readers}
    order = [(rank, kind) for kind, size in sizes.items() for rank in range(size)]
    for rank, kind in sorted(order, key=lambda each: shape.elastic and each[0] > 0):
        if kind == "encoder":
            create(kind, EncoderActor, on_encoder, encoder_model, rank, shape.threads, blocks, shape.window_bytes)
        else:
            create(kind, ReaderActor, on_reader, reader_model, rank, shape.threads, blocks, shape.window_bytes)
    return Workers(
        ActorPool(made["encoder"], names["encoder"]),
        StorePool(made["store"], names["store"]),
        ActorPool(made["sidenet"], names["sidenet"]),
    )


def _placement(shape: ClusterShape, gpus: float) -> dict[str, Any]:
    options: dict[str, Any] = {"num_cpus": shape.threads * shape.cpu_share, "num_gpus": gpus}
    return options | ({"scheduling_strategy": "SPREAD"} if shape.placement == "spread" else {})


def _store_placement(store_uri: str) -> dict[str, Any]:
    """A folder is there on this driver's node, and perhaps on no other; a bucket is everywhere."""
    if "://" in store_uri:
        return {"num_cpus": 0}
    node = ray.get_runtime_context().get_node_id()
    return {"num_cpus": 0, "scheduling_strategy": NodeAffinitySchedulingStrategy(node, soft=False)}
