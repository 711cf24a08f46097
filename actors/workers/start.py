# SPDX-License-Identifier: Apache-2.0
"""Starts the three pools and decides the placement of their actors."""

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

ACTOR_ROLES = {"encoder": "encoder", "store": "store", "reader": "sidenet"}
"""Part of an actor's name by role. Readers keep the name that services, dashboards and operators know."""


@dataclass(frozen=True)
class Workers:
    """Worker pools of one job, or of a service that many jobs share."""

    encoders: ActorPool
    stores: StorePool
    readers: ActorPool

    def by_stage(self) -> dict[Stage, ActorPool]:
        """Return the pools that have workers. There is no `score` without readers: segments are then only stored."""
        pools: dict[Stage, ActorPool] = {"encode": self.encoders, "put": self.stores, "score": self.readers}
        return {stage: pool for stage, pool in pools.items() if pool.workers}

    def stop(self) -> None:
        for pool in self.by_stage().values():
            pool.stop()


def names_of(prefix: str, shape: ClusterShape) -> dict[str, list[str]]:
    """Return the names of all actors by role: `<prefix>-encoder-0`, `<prefix>-store-0`, `<prefix>-sidenet-0`, …"""
    sizes = {"encoder": shape.encoders, "store": shape.stores, "reader": shape.readers}
    return {role: [f"{prefix}-{ACTOR_ROLES[role]}-{rank}" for rank in range(size)] for role, size in sizes.items()}


def start_workers(
    source: ModelSource, store: StoreSettings | str, shape: ClusterShape, prefix: str, *, detached: bool = False
) -> Workers:
    """Create all actors and return without waiting for them to load. `detached` actors outlive this driver."""
    names = names_of(prefix, shape)
    settings = StoreSettings.of(store)
    lifetime = "detached" if detached else None
    on_encoder, on_reader = _placement(shape, shape.encoder_gpus), _placement(shape, shape.reader_gpus)
    encoder_model = source.on_gpu() if shape.encoder_gpus else source
    reader_model = source.on_gpu() if shape.reader_gpus else source
    on_store = _store_placement(settings.uri)
    # names, because Ray cannot restart an actor whose constructor arguments hold handles once the driver is gone
    blocks = RemoteBlockSource(names["store"])
    made: dict[str, list[Any]] = {role: [] for role in names}

    def create(role: str, actor: Any, options: dict[str, Any], *arguments: Any) -> None:
        name = names[role][len(made[role])]
        options = {"name": name, "namespace": NAMESPACE, "lifetime": lifetime, **RESTART, **options}
        made[role].append(actor.options(**options).remote(*arguments))

    for rank in range(shape.stores):
        create("store", StoreActor, on_store, settings, rank, shape.stores)
    # Ray assigns resources, and nodes in turn, in this order: with resources for two, one of each role starts, and
    # every node gets every role
    sizes = {"encoder": shape.encoders, "reader": shape.readers}
    order = [(rank, role) for role, size in sizes.items() for rank in range(size)]
    for rank, role in sorted(order, key=lambda item: shape.elastic and item[0] > 0):
        if role == "encoder":
            create(role, EncoderActor, on_encoder, encoder_model, rank, shape.threads, blocks, shape.window_bytes)
        else:
            create(role, ReaderActor, on_reader, reader_model, rank, shape.threads, blocks, shape.window_bytes)
    return Workers(
        ActorPool(made["encoder"], names["encoder"]),
        StorePool(made["store"], names["store"]),
        ActorPool(made["reader"], names["reader"]),
    )


def _placement(shape: ClusterShape, gpus: float) -> dict[str, Any]:
    options: dict[str, Any] = {"num_cpus": shape.threads * shape.cpu_share, "num_gpus": gpus}
    return options | ({"scheduling_strategy": "SPREAD"} if shape.placement == "spread" else {})


def _store_placement(store_uri: str) -> dict[str, Any]:
    """Return options that pin stores of a folder to this driver's node; a bucket is reachable from every node."""
    if "://" in store_uri:
        return {"num_cpus": 0}
    node = ray.get_runtime_context().get_node_id()
    return {"num_cpus": 0, "scheduling_strategy": NodeAffinitySchedulingStrategy(node, soft=False)}
