"""Starting the three pools, and where their actors are placed."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from actors.encoder import EncoderActor
from actors.pool import ActorPool
from actors.shape import ClusterShape
from actors.sidenet import SideNetActor
from actors.store import RemoteBlockSource, StoreActor, StorePool
from actors.worker import NAMESPACE, RESTART
from longmem.executor import Stage
from longmem.model_source import ModelSource


@dataclass(frozen=True)
class Workers:
    """The pools of one job, or of a service that many jobs share."""

    encoders: ActorPool
    stores: StorePool
    readers: ActorPool

    def by_stage(self) -> dict[Stage, ActorPool]:
        return {"encode": self.encoders, "put": self.stores, "score": self.readers}

    def stop(self) -> None:
        for pool in self.by_stage().values():
            pool.stop()


def names_of(prefix: str, shape: ClusterShape) -> dict[str, list[str]]:
    """Names of all actors, which read like the design in Ray's list of actors: `<prefix>-encoder-0`, …"""
    sizes = {"encoder": shape.encoders, "store": shape.stores, "sidenet": shape.readers}
    return {kind: [f"{prefix}-{kind}-{rank}" for rank in range(size)] for kind, size in sizes.items()}


def start_workers(
    source: ModelSource, store_uri: str, shape: ClusterShape, prefix: str, *, detached: bool = False
) -> Workers:
    """Create all actors; returns at once, while they load. `detached` ones outlive this driver."""
    names = names_of(prefix, shape)

    def created(kind: str, options: dict[str, Any], actor: Any, arguments: Iterator[tuple[Any, ...]]) -> list[Any]:
        lifetime = "detached" if detached else None
        return [
            actor.options(name=name, namespace=NAMESPACE, lifetime=lifetime, **RESTART, **options).remote(*each)
            for name, each in zip(names[kind], arguments, strict=True)
        ]

    def placed(gpus: float) -> dict[str, Any]:
        options: dict[str, Any] = {"num_cpus": shape.threads * shape.cpu_share, "num_gpus": gpus}
        return options | ({"scheduling_strategy": "SPREAD"} if shape.placement == "spread" else {})

    def model(gpus: float) -> ModelSource:
        return source.on_gpu() if gpus else source

    stores = created(
        "store", _store_placement(store_uri), StoreActor, ((store_uri, rank) for rank in range(shape.stores))
    )
    encoders = created(
        "encoder",
        placed(shape.encoder_gpus),
        EncoderActor,
        ((model(shape.encoder_gpus), rank, shape.threads) for rank in range(shape.encoders)),
    )
    # by name, because an actor whose constructor was given handles cannot be started again once the driver is gone
    blocks = RemoteBlockSource(names["store"])
    readers = created(
        "sidenet",
        placed(shape.reader_gpus),
        SideNetActor,
        ((model(shape.reader_gpus), rank, shape.threads, blocks, shape.window_bytes) for rank in range(shape.readers)),
    )
    return Workers(
        ActorPool(encoders, names["encoder"]),
        StorePool(stores, names["store"]),
        ActorPool(readers, names["sidenet"]),
    )


def _store_placement(store_uri: str) -> dict[str, Any]:
    """A folder is there on this driver's node, and perhaps on no other; a bucket is everywhere."""
    if "://" in store_uri:
        return {"num_cpus": 0}
    node = ray.get_runtime_context().get_node_id()
    return {"num_cpus": 0, "scheduling_strategy": NodeAffinitySchedulingStrategy(node, soft=False)}
