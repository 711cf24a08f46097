# SPDX-License-Identifier: Apache-2.0
"""Simulated GPU: tensors that report a GPU device, and are stored and computed on the CPU.

Operations that a real one rejects are rejected: those on tensors of several devices, and access to their memory by
numpy. Operations that it accepts are accepted: indices and single numbers from the CPU. So a test shows whether code
places its tensors correctly; it shows nothing about kernels, dtypes or speed.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

NAME = "pretended"
aten = torch.ops.aten
ACROSS = {aten.copy_.default, aten._to_copy.default}
"""Operations that accept tensors of several devices."""
INDEXED = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default}
"""Operations whose indices may be on the CPU."""


class PretendedTensor(Tensor):
    """Tensor that holds the numbers in `inner`; its own storage is empty."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> "PretendedTensor":
        made: PretendedTensor = Tensor._make_wrapper_subclass(
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=torch.device(NAME, 0),
        )
        made.inner = inner
        return made

    def __repr__(self, **_: Any) -> str:
        return f"PretendedTensor({self.inner!r})"

    def __getitem__(self, index: Any) -> Tensor:
        # torch would move a list to the device without calling any mode
        return super().__getitem__(torch.tensor(index) if isinstance(index, list) else index)

    def tolist(self) -> Any:
        return self.inner.tolist()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _compute(func, args, kwargs or {})


class _Dispatch(TorchDispatchMode):
    """Mode that also intercepts operations without an input tensor."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _compute(func, args, kwargs or {})


class _Functions(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.tensor and (device := kwargs.pop("device", None)) is not None:
            return func(*args, **kwargs).to(device)
        return func(*args, **kwargs)


class _Module(_DummyBackendModule):
    """Attributes that torch requires of any device's module."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16]

    def get_rng_state(self, device: int) -> Tensor:
        return torch.empty(0)

    def set_rng_state(self, state: Tensor, device: int) -> None:
        """Ignore the state: the device generates no numbers of its own."""


def _compute(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    pretended = [each for each in tree_leaves((args, kwargs)) if isinstance(each, PretendedTensor)]
    if pretended and func not in ACROSS:
        for each in tree_leaves(args[:1] if func in INDEXED else (args, kwargs)):
            if isinstance(each, Tensor) and each.ndim and not isinstance(each, PretendedTensor):
                raise RuntimeError(f"{func}: expected all tensors on one device, found {each.device} and {NAME}")
    wanted = kwargs.get("device")
    stays = bool(pretended) if wanted is None else torch.device(wanted).type == NAME
    if stays and wanted is not None:
        kwargs = {**kwargs, "device": torch.device("cpu")}
    given = tree_map(lambda each: each.inner if isinstance(each, PretendedTensor) else each, (args, kwargs))
    made = func(*given[0], **given[1])
    if func is aten.copy_.default:
        return args[0]
    if not stays:
        return made
    # an in-place operation returns one of its inputs
    known = {id(each.inner): each for each in pretended}

    def pretending(each: Any) -> Any:
        if isinstance(each, Tensor):
            return known[id(each)] if id(each) in known else PretendedTensor(each)
        return each

    return tree_map(pretending, made)


@cache
def _register() -> None:
    """Register permanently: torch has one slot for an unknown device."""
    _setup_privateuseone_for_python_backend(NAME, backend_module=_Module())


@contextmanager
def pretended_gpu() -> Iterator[str]:
    """Yield the name of the device, which works inside the context."""
    _register()
    swapped = torch.__future__.get_swap_module_params_on_conversion()
    # as on a real GPU, a moved model keeps its parameters, and those that two of its modules share
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        with _Functions(), _Dispatch():
            yield NAME
    finally:
        torch.__future__.set_swap_module_params_on_conversion(swapped)
