"""Starting what runs the stages: this process, or workers on Ray."""

from collections.abc import Callable

import torch

from actors.shape import ClusterShape
from longmem.executor import AbstractExecutor, InlineExecutor
from longmem.memory.opening import StoreSettings
from longmem.model_source import ModelSource


def start_executor(
    model: ModelSource,
    store: StoreSettings,
    cluster: ClusterShape | None,
    threads: int,
    tell: Callable[[str], None] = lambda _text: None,
) -> AbstractExecutor:
    """Workers on Ray, which is imported only for that; without a cluster, this process with so many torch threads.
    `tell` gets what the user should know meanwhile."""
    if cluster is None:
        torch.set_num_threads(threads)
        return InlineExecutor(model.open(), store.open())
    from actors.executor import RayExecutor

    return RayExecutor(model, store, cluster, tell)
