# SPDX-License-Identifier: Apache-2.0
"""Hooks on a running transformer: hidden states, projections, and the input of the output projection.

Hooks exist only within one `with` block, so a model is never left changed, and copying a layer never copies a hook.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from longmem.backbone.families import AttentionShape, Family


def hidden_input(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """Return the hidden states among the arguments of a block."""
    hidden: Tensor = args[0] if args else kwargs["hidden_states"]
    return hidden


def hidden_output(output: Tensor | tuple[Tensor, ...]) -> Tensor:
    """Return the hidden states in the output of a block (a tuple in some families)."""
    return output[0] if isinstance(output, tuple) else output


@contextmanager
def tapped(layers: nn.ModuleList, every: int) -> Iterator[list[Tensor]]:
    """Collect H[0], H[every], ..., H[L] (inputs of blocks and the last block's output, all before the final norm)."""
    taps: list[Tensor] = []

    def before(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        taps.append(hidden_input(args, kwargs))

    def after(_module: nn.Module, _args: tuple[Any, ...], output: Any) -> None:
        taps.append(hidden_output(output))

    with ExitStack() as hooks:
        for layer in layers[::every]:
            hooks.enter_context(_handle(layer.register_forward_pre_hook(before, with_kwargs=True)))
        hooks.enter_context(_handle(layers[-1].register_forward_hook(after)))
        yield taps


@contextmanager
def projected(family: Family, attention: nn.Module, shape: AttentionShape) -> Iterator[Callable[[], Any]]:
    """Yield a function that returns the last query, key and value of `attention`, [batch, tokens, heads, head_dim]."""
    modules = family.projections_of(attention)
    outputs: list[Tensor | None] = [None] * len(modules)

    def keep(position: int) -> Callable[..., None]:
        def hook(_module: nn.Module, _args: tuple[Any, ...], output: Tensor) -> None:
            outputs[position] = output

        return hook

    def latest() -> tuple[Tensor, Tensor, Tensor]:
        present = [output for output in outputs if output is not None]
        assert len(present) == len(modules), f"projections {family.projections} did not run"
        return family.split(present, shape)

    with ExitStack() as hooks:
        for position, module in enumerate(modules):
            hooks.enter_context(_handle(module.register_forward_hook(keep(position))))
        yield latest


@contextmanager
def output_replaced(
    family: Family, attention: nn.Module, shape: AttentionShape, fuse: Callable[[Tensor], Tensor]
) -> Iterator[None]:
    """Pass the local attention's output [batch, tokens, heads, head_dim] through `fuse`, before its projection."""

    def before(_module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor]:
        local = args[0]
        fused = fuse(local.reshape(*local.shape[:2], shape.heads, shape.head_dim))
        return (fused.reshape(local.shape),)

    with _handle(family.output_of(attention).register_forward_pre_hook(before)):
        yield


@contextmanager
def _handle(handle: torch.utils.hooks.RemovableHandle) -> Iterator[None]:
    try:
        yield
    finally:
        handle.remove()
