"""The checks at the operation's door: each names the argument, what was expected and what came."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from numbers import Real
from typing import Any, SupportsIndex

import torch
from torch import Tensor

MAX_EXCLUDE_IDS = 4
OUTPUT_NAMES = ("confidence", "tokens", "accepted", "remaining")
HOST_OUTPUT_NAMES = ("accepted", "remaining")  # that the GPU may write into pinned memory of the host
Outputs = tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]  # in that order
NO_OUTPUTS: Outputs = (None, None, None, None)  # the one that calls without any pass on

_LOGITS_DTYPES = (torch.float16, torch.bfloat16, torch.float32)
_IDS_BOUNDS = {torch.int64: (-(2**63), 2**63 - 1), torch.int32: (-(2**31), 2**31 - 1)}


@dataclass(frozen=True, slots=True)
class Layout:
    """What follows from the dtypes, shapes, strides and device of logits and ids."""

    device_type: str  # kept, because a device makes the string anew at every question
    blocks: int
    least_id: int  # of the ids' dtype
    largest_id: int
    is_empty: bool  # of positions
    logits_bytes: int  # from the first element's to the last's, as for `ids_bytes`
    ids_bytes: int
    plans: dict[Any, Any] = field(default_factory=dict)  # in which a backend keeps what it works out


@lru_cache(maxsize=4096)
def check_layout(
    dtype: torch.dtype,
    shape: torch.Size,
    strides: tuple[int, ...],
    device: torch.device,
    ids_dtype: torch.dtype,
    ids_shape: torch.Size,
    ids_strides: tuple[int, ...],
    ids_device: torch.device,
) -> Layout:
    """Everything about logits and ids but their values: once a layout, because it takes longer than the launch."""
    if dtype not in _LOGITS_DTYPES:
        raise TypeError(f"logits: expected float16, bfloat16 or float32; got {dtype}")
    if ids_dtype not in _IDS_BOUNDS:
        raise TypeError(f"input_ids: expected int64 or int32; got {ids_dtype}")
    if len(shape) not in (2, 3):
        raise ValueError(f"logits: expected shape (L, V) or (B, L, V); got {tuple(shape)}")
    if shape[-1] == 0:
        raise ValueError(f"logits: expected a vocabulary of at least one token; got shape {tuple(shape)}")
    if ids_shape != shape[:-1]:
        raise ValueError(
            f"input_ids: expected shape {tuple(shape[:-1])}, that of logits without the vocabulary; "
            f"got {tuple(ids_shape)}"
        )
    if ids_device != device:
        raise ValueError(f"input_ids: expected device {device}, that of logits; got {ids_device}")
    if strides[-1] != 1 and shape[-1] > 1:
        raise ValueError(f"logits: expected a contiguous vocabulary (last stride 1); got strides {strides}")
    if _overlaps_itself(ids_shape, ids_strides):
        raise ValueError(
            f"input_ids: expected elements that do not overlap in memory; got shape {tuple(ids_shape)} "
            f"with strides {ids_strides}"
        )
    return Layout(
        device.type,
        shape[0] if len(shape) == 3 else 1,
        *_IDS_BOUNDS[ids_dtype],
        0 in ids_shape,
        _elements_spanned(shape, strides) * dtype.itemsize,
        _elements_spanned(ids_shape, ids_strides) * ids_dtype.itemsize,
    )


def check_tensor(
    name: str, tensor: Tensor, dtype: torch.dtype, shape: Sequence[int], device: torch.device, contiguous: bool = False
) -> None:
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name}: expected a tensor; got {type(tensor).__name__}")
    if tensor.dtype != dtype:
        raise TypeError(f"{name}: expected dtype {dtype}; got {tensor.dtype}")
    if tensor.shape != shape:
        raise ValueError(f"{name}: expected shape {tuple(shape)}; got {tuple(tensor.shape)}")
    if tensor.device != device:
        raise ValueError(f"{name}: expected device {device}, that of logits; got {tensor.device}")
    if contiguous and not tensor.is_contiguous():
        raise ValueError(f"{name}: expected a contiguous tensor; got strides {tensor.stride()}")


def _is_pinned(output: Tensor) -> bool:
    """Whether it lies in memory of the host that a GPU can write; of no elements, whether it could."""
    return isinstance(output, Tensor) and output.is_cpu and (output.numel() == 0 or output.is_pinned())


def _overlaps_itself(shape: Sequence[int], strides: Sequence[int]) -> bool:
    """Whether two elements of a tensor of one or two dimensions share memory.

    i*s + j*t repeats a value exactly if some step of (t/g, -s/g), with g = gcd(s, t), stays inside the shape.
    """
    dims = [(size, stride) for size, stride in zip(shape, strides, strict=True) if size > 1]
    if len(dims) < 2 or 0 in shape:
        return bool(dims) and dims[0][1] == 0
    (rows, row_stride), (columns, column_stride) = dims
    divisor = math.gcd(row_stride, column_stride)
    return divisor == 0 or (column_stride // divisor < rows and row_stride // divisor < columns)


def check_mask_id(mask_id: int, input_ids: Tensor) -> int:
    mask_id = as_int("mask_id", mask_id)
    low, high = _IDS_BOUNDS[input_ids.dtype]
    if not low <= mask_id <= high:
        raise ValueError(f"mask_id: expected a value of {input_ids.dtype}, the dtype of input_ids; got {mask_id}")
    return mask_id


def as_int(name: str, value: object) -> int:
    """`value` as an int, or a TypeError that names the argument."""
    if type(value) is int:  # what comes nearly always; the rest takes microseconds
        return value
    if isinstance(value, (bool, Tensor)) or not isinstance(value, SupportsIndex) or hasattr(value, "__len__"):
        raise TypeError(f"{name}: expected an integer; got {value!r}")
    return operator.index(value)


def as_ints(name: str, values: object) -> list[int]:
    """`values` as a list of ints, or a TypeError that names the argument."""
    if not isinstance(values, (tuple, list)) and (not isinstance(values, Sequence) or isinstance(values, (str, bytes))):
        raise TypeError(f"{name}: expected a sequence of integers, as a list or a tuple; got {values!r}")
    return [as_int(name, value) for value in values]


def at_least(name: str, value: object, least: int) -> int:
    """`value` as an int, or a TypeError or ValueError that names the argument."""
    number = as_int(name, value)
    if number < least:
        raise ValueError(f"{name}: expected at least {least}; got {number}")
    return number


def check_threshold(threshold: float | Tensor, blocks: int, device: torch.device) -> float | Tensor:
    if isinstance(threshold, Tensor):
        check_tensor("threshold", threshold, torch.float32, (blocks,), device)
        return threshold
    return _as_float("threshold", threshold, "a number or a float32 tensor")


def check_edit_threshold(edit_threshold: float | None) -> float | None:
    return None if edit_threshold is None else _as_float("edit_threshold", edit_threshold, "a number or None")


def _as_float(name: str, number: object, expected: str) -> float:
    if type(number) is not float and (isinstance(number, bool) or not isinstance(number, Real)):
        raise TypeError(f"{name}: expected {expected}; got {number!r}")
    try:
        value = float(number)
    except OverflowError:
        raise ValueError(f"{name}: expected a number that a float can hold; got one beyond 1e308") from None
    if math.isnan(value):
        raise ValueError(f"{name}: expected a number that can be compared with; got nan")
    return value


def check_exclude_ids(exclude_ids: Sequence[int], vocab: int) -> tuple[int, ...]:
    """The excluded ids that lie inside the vocabulary."""
    return _inside(tuple(as_ints("exclude_ids", exclude_ids)), vocab)


@lru_cache(maxsize=64)  # engines exclude the same ids at every call
def _inside(tokens: tuple[int, ...], vocab: int) -> tuple[int, ...]:
    if len(tokens) > MAX_EXCLUDE_IDS:
        raise ValueError(f"exclude_ids: expected at most {MAX_EXCLUDE_IDS} ids; got {len(tokens)}: {list(tokens)}")
    inside = tuple(sorted({token for token in tokens if 0 <= token < vocab}))
    if len(inside) == vocab:
        raise ValueError(
            f"exclude_ids: expected to leave a token to choose from a vocabulary of {vocab}; got {list(tokens)}"
        )
    return inside


def check_outputs(
    outputs: Outputs, layout: Layout, logits: Tensor, input_ids: Tensor, **inputs: Tensor | float | None
) -> None:
    """Outputs of their own memory, beside logits, ids, and those of the `inputs` that are tensors."""
    start = input_ids.data_ptr()
    taken = [("input_ids", start, start + layout.ids_bytes)]
    start = logits.data_ptr()
    taken.append(("logits", start, start + layout.logits_bytes))
    for name, tensor in inputs.items():
        if isinstance(tensor, Tensor):
            taken.append((name, *_memory_extent(tensor)))
    device, shape = logits.device, input_ids.shape
    dtypes = (torch.float32, input_ids.dtype, torch.bool, torch.int32)
    for name, output, dtype in zip(OUTPUT_NAMES, outputs, dtypes, strict=True):
        if output is None:
            continue
        there = device
        if name in HOST_OUTPUT_NAMES and layout.device_type == "cuda" and _is_pinned(output):
            there = output.device
        check_tensor(name, output, dtype, (layout.blocks,) if name == "remaining" else shape, there, contiguous=True)
        start, end = _memory_extent(output)
        for other, other_start, other_end in taken:
            if start < other_end and other_start < end:
                raise ValueError(f"{name}: expected memory of its own; it overlaps {other}")
        taken.append((name, start, end))


def _memory_extent(tensor: Tensor) -> tuple[int, int]:
    """First byte and the one after the last of a tensor's elements."""
    start = tensor.data_ptr()
    count = tensor.numel() if tensor.is_contiguous() else _elements_spanned(tensor.shape, tensor.stride())
    return start, start + count * tensor.element_size()


def _elements_spanned(shape: Sequence[int], strides: Sequence[int]) -> int:
    """Elements from the first to the last, both counted; 0 where there are none."""
    if 0 in shape:
        return 0
    return 1 + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
