"""Tensors of a device: from whatever holds them without a copy, what the kernels report, and how they are launched."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, Protocol

import torch

from gr2.kernels.arguments import check_shape

__all__ = ["NO_FAULT", "Launch", "as_logits", "capturing", "check_grid", "launch", "raise_fault", "rows_apart"]

FLOATS = (torch.float32, torch.float16, torch.bfloat16)
LARGEST_GRID = 65_535
NO_FAULT = torch.iinfo(torch.int64).max


class Launch(Protocol):
    """What starts a kernel over a grid: `launch`, or something that only compiles it."""

    def __call__(self, kernel: Any, grid: tuple[int, ...], *arguments: Any, **sizes: Any) -> Any:
        """Start `kernel` with `arguments`, compiled for `sizes`."""
        ...


def launch(kernel: Any, grid: tuple[int, ...], *arguments: Any, **sizes: Any) -> None:
    """Start a kernel where its first argument is, on the current stream of that device."""
    device = arguments[0].device
    # Triton launches on the current device, whatever the tensors' is.
    elsewhere = device.type == "cuda" and device.index != torch.cuda.current_device()
    with torch.cuda.device(device) if elsewhere else nullcontext():
        kernel[grid](*arguments, **sizes)


def capturing(device: torch.device) -> bool:
    """Whether what is launched there now becomes part of a CUDA graph."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def check_grid(name: str, size: int) -> None:
    """Raises ValueError if a batch is larger than CUDA's grids are in their second axis."""
    if size > LARGEST_GRID:
        raise ValueError(f"{name} must be at most {LARGEST_GRID} on a GPU, got {size}")


def as_logits(
    values: Any,
    shape: tuple[int, ...],
    device: torch.device,
    name: str = "logits",
    dtypes: Sequence[torch.dtype] = FLOATS,
) -> torch.Tensor:
    """`values` as a tensor on the device whose batches are contiguous and whole rows apart, copied if they are not.

    It is a tensor, or anything that has `__dlpack__`, as onnxruntime's OrtValue does. Raises TypeError on a dtype that
    is not one of `dtypes`, and ValueError on another shape or device.
    """
    if not hasattr(values, "__dlpack__"):
        raise TypeError(f"{name} must be an array or a tensor, or have __dlpack__, got {type(values).__name__}")
    tensor = values if isinstance(values, torch.Tensor) else torch.utils.dlpack.from_dlpack(values)
    if tensor.dtype not in dtypes:
        *expected, got = (str(each).removeprefix("torch.") for each in (*dtypes, tensor.dtype))
        raise TypeError(f"{name} must be {' or '.join(expected)}, got {got}")
    check_shape(name, tensor.shape, shape)
    if tensor.device.type != device.type or device.index not in (None, tensor.device.index):
        raise ValueError(f"{name} must be on {device}, they are on {tensor.device}")
    if tensor.is_contiguous() or (tensor[0].is_contiguous() and tensor.stride(0) % shape[-1] == 0):
        return tensor
    return tensor.contiguous()


def rows_apart(logits: torch.Tensor) -> int:
    """Rows from one of a batch to the next in what `as_logits` returns; 0 if it is the only one, or there is none."""
    return logits.stride(0) // logits.shape[-1] if len(logits) > 1 else 0


def raise_fault(fault: int, beams: int = 0) -> None:
    """Raise ValueError if a kernel's `fault` names a bad logit; `beams` rows, if any, are of one search of a batch."""
    if fault == NO_FAULT:
        return
    row, column = fault >> 16, fault & 0xFFFF
    where = f"batch {row // beams} beam {row % beams}" if beams else f"row {row}"
    raise ValueError(f"logits {where} column {column} is NaN or infinite")
