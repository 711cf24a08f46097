# SPDX-License-Identifier: Apache-2.0
"""Python declarations of the C interface: the structs and functions of `params.h`.

The structs have the same names and fields as in C. `declare_functions` compares their layout with that of the compiled
library, so fields in another order cannot pass silently.
"""

import ctypes
import re
from typing import Any, ClassVar

import torch
from jaxtyping import Shaped
from torch import Tensor

DTYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
"""Dtypes of rows that the C code reads, with their numbers in `params.h`."""


class NativeStruct(ctypes.Structure):
    """A struct of arguments. Pointers are addresses, and do not keep their tensors alive."""

    field_names: ClassVar[frozenset[str]]

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        cls.field_names = frozenset(name for name, *_ in cls._fields_)

    def __init__(self, **fields: Any) -> None:
        assert fields.keys() == self.field_names, f"{type(self).__name__} has {self.field_names}, got {set(fields)}"
        super().__init__(**fields)

    @classmethod
    def c_name(cls) -> str:
        """Return the name of the struct in C: `TopkParams` is `topk_params`."""
        return re.sub(r"(?<!^)(?=[A-Z])", "_", cls.__name__).lower()


class RowMatrix(NativeStruct):
    """Rows of numbers in memory."""

    _fields_ = (("first", ctypes.c_void_p), ("stride", ctypes.c_int64), ("dtype", ctypes.c_int32))


class PanelBounds(NativeStruct):
    """Bounds of one panel: the columns of a float32 tensor."""

    _fields_ = (("inverse_scale", ctypes.c_float), ("norm", ctypes.c_float), ("residual", ctypes.c_float))


class KeyPanels(NativeStruct):
    """Quantised key sketches and their bounds."""

    _fields_ = (("values", ctypes.c_void_p), ("bounds", ctypes.c_void_p))


class QuantiseParams(NativeStruct):
    """Arguments of `longmem_quantise_panels`."""

    _fields_ = (
        ("key_sketches", RowMatrix),
        ("num_keys", ctypes.c_int64),
        ("sketch_width", ctypes.c_int64),
        ("first_panel", ctypes.c_int64),
        ("last_panel", ctypes.c_int64),
        ("panels", KeyPanels),
    )


class TopkParams(NativeStruct):
    """Queries, keys and outputs of a search."""

    _fields_ = (
        ("queries", ctypes.c_void_p),
        ("query_sketches", ctypes.c_void_p),
        ("margins", ctypes.c_void_p),
        ("largest_norm", ctypes.c_float),
        ("keys", RowMatrix),
        ("key_sketches", RowMatrix),
        ("num_queries", ctypes.c_int64),
        ("num_keys", ctypes.c_int64),
        ("dim", ctypes.c_int64),
        ("sketch_width", ctypes.c_int64),
        ("k", ctypes.c_int64),
        ("num_slots", ctypes.c_int64),
        ("ids", ctypes.c_void_p),
        ("scores", ctypes.c_void_p),
    )


class InvertedLists(NativeStruct):
    """Inverted lists of keys, and the lists that each query searches."""

    _fields_ = (
        ("members", ctypes.c_void_p),
        ("starts", ctypes.c_void_p),
        ("probes", ctypes.c_void_p),
        ("num_lists", ctypes.c_int64),
        ("num_probes", ctypes.c_int64),
    )


class GatherParams(NativeStruct):
    """Arguments of `longmem_products` and `longmem_mixtures`."""

    _fields_ = (
        ("input", ctypes.c_void_p),
        ("ids", ctypes.c_void_p),
        ("rows", RowMatrix),
        ("head_stride", ctypes.c_int64),
        ("num_tokens", ctypes.c_int64),
        ("num_heads", ctypes.c_int64),
        ("group_size", ctypes.c_int64),
        ("num_ids", ctypes.c_int64),
        ("dim", ctypes.c_int64),
        ("output", ctypes.c_void_p),
    )


class AttentionParams(NativeStruct):
    """Arguments of the functions `longmem_attention_…`."""

    _fields_ = (
        ("queries", ctypes.c_void_p),
        ("keys", ctypes.c_void_p),
        ("values", ctypes.c_void_p),
        ("query_head", ctypes.c_int64),
        ("query_token", ctypes.c_int64),
        ("key_head", ctypes.c_int64),
        ("key_token", ctypes.c_int64),
        ("value_head", ctypes.c_int64),
        ("value_token", ctypes.c_int64),
        ("heads", ctypes.c_int64),
        ("kv_heads", ctypes.c_int64),
        ("tokens", ctypes.c_int64),
        ("count", ctypes.c_int64),
        ("dim", ctypes.c_int64),
        ("tiles", ctypes.c_int64),
        ("scale", ctypes.c_float),
        ("packed_keys", ctypes.c_void_p),
        ("packed_values", ctypes.c_void_p),
        ("output", ctypes.c_void_p),
    )


class LogprobsParams(NativeStruct):
    """Arguments of `longmem_logprobs`."""

    _fields_ = (
        ("logits", ctypes.c_void_p),
        ("targets", ctypes.c_void_p),
        ("stride", ctypes.c_int64),
        ("vocabulary", ctypes.c_int64),
        ("output", ctypes.c_void_p),
    )


class RmsNormParams(NativeStruct):
    """Arguments of `longmem_rms_norm`."""

    _fields_ = (
        ("rows", ctypes.c_void_p),
        ("weight", ctypes.c_void_p),
        ("width", ctypes.c_int64),
        ("epsilon", ctypes.c_float),
        ("output", ctypes.c_void_p),
    )


class SiluProductParams(NativeStruct):
    """Arguments of `longmem_silu_product`."""

    _fields_ = (("gates", ctypes.c_void_p), ("factors", ctypes.c_void_p), ("output", ctypes.c_void_p))


class RotationParams(NativeStruct):
    """Arguments of `longmem_rotate`."""

    _fields_ = (
        ("rows", ctypes.c_void_p),
        ("row_batch", ctypes.c_int64),
        ("row_head", ctypes.c_int64),
        ("row_token", ctypes.c_int64),
        ("cos", ctypes.c_void_p),
        ("sin", ctypes.c_void_p),
        ("table_batch", ctypes.c_int64),
        ("table_token", ctypes.c_int64),
        ("output", ctypes.c_void_p),
        ("output_batch", ctypes.c_int64),
        ("output_head", ctypes.c_int64),
        ("output_token", ctypes.c_int64),
        ("heads", ctypes.c_int64),
        ("tokens", ctypes.c_int64),
        ("dim", ctypes.c_int64),
    )


STRUCTS: tuple[type[NativeStruct], ...] = (
    RowMatrix,
    PanelBounds,
    KeyPanels,
    QuantiseParams,
    TopkParams,
    InvertedLists,
    GatherParams,
    AttentionParams,
    LogprobsParams,
    RmsNormParams,
    SiluProductParams,
    RotationParams,
)


def row_matrix(rows: Shaped[Tensor, "rows columns"]) -> RowMatrix:
    """Describe a matrix [rows, columns], whose columns must be contiguous. The caller keeps the tensor alive."""
    assert rows.stride(1) == 1 or rows.shape[1] == 1, f"columns of {tuple(rows.shape)} with strides {rows.stride()}"
    return RowMatrix(first=rows.data_ptr(), stride=rows.stride(0), dtype=DTYPES[rows.dtype])


def declare_functions(library: ctypes.CDLL) -> None:
    """Declare the signatures of the exported functions, and check the layout of the structs."""
    number, name = ctypes.c_int64, ctypes.c_char_p
    signatures: dict[str, tuple[Any, list[Any]]] = {
        "longmem_count_fields": (number, [name]),
        "longmem_field_offset": (number, [name, name]),
        "longmem_field_size": (number, [name, name]),
        "longmem_panel_keys": (number, []),
        "longmem_panel_bytes": (number, [number]),
        "longmem_quantise_panels": (ctypes.c_int, [ctypes.POINTER(QuantiseParams)]),
        "longmem_top_k": (ctypes.c_int, [ctypes.POINTER(TopkParams), ctypes.POINTER(KeyPanels)]),
        "longmem_ivf_top_k": (ctypes.c_int, [ctypes.POINTER(TopkParams), ctypes.POINTER(InvertedLists)]),
        "longmem_products": (None, [ctypes.POINTER(GatherParams)]),
        "longmem_mixtures": (None, [ctypes.POINTER(GatherParams)]),
        "longmem_attention_scratch_bytes": (number, []),
        "longmem_attention_request_tiles": (number, []),
        "longmem_attention_packed_bytes": (number, [ctypes.POINTER(AttentionParams)]),
        "longmem_attention_pack": (None, [ctypes.POINTER(AttentionParams), number, number]),
        "longmem_attention_read": (None, [ctypes.POINTER(AttentionParams), number, number, ctypes.c_void_p]),
        "longmem_logprobs": (None, [ctypes.POINTER(LogprobsParams), number, number]),
        "longmem_rms_norm": (None, [ctypes.POINTER(RmsNormParams), number, number]),
        "longmem_silu_product": (None, [ctypes.POINTER(SiluProductParams), number, number]),
        "longmem_rotate": (None, [ctypes.POINTER(RotationParams), number, number]),
    }
    for function, (result, arguments) in signatures.items():
        getattr(library, function).restype = result
        getattr(library, function).argtypes = arguments
    for struct in STRUCTS:
        check_layout(library, struct)


def check_layout(library: ctypes.CDLL, struct: type[NativeStruct]) -> None:
    """Compare the number of fields, and size and offset of the struct and of each field, with those in C.

    Raises:
        AssertionError: They differ.
    """
    expected = {"": (0, ctypes.sizeof(struct))}
    for field, *_ in struct._fields_:
        declared = getattr(struct, field)
        expected[field] = declared.offset, declared.size
    owner = struct.c_name().encode()
    num_fields = library.longmem_count_fields(owner)
    if num_fields != len(struct._fields_):
        raise AssertionError(f"{struct.__name__} has {len(struct._fields_)} fields in params.py, {num_fields} in C")
    for field, layout in expected.items():
        found = tuple(
            getattr(library, function)(owner, field.encode())
            for function in ("longmem_field_offset", "longmem_field_size")
        )
        if found != layout:
            raise AssertionError(
                f"{struct.__name__}.{field}: offset and size are {layout} in params.py, {found} in the C library"
            )
