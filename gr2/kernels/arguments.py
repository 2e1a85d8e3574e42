"""What the decoders of both devices refuse before anything runs, in the words of the C++ core."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["as_array", "check_mode", "check_normalization", "check_shape", "seed_array"]


def as_array(name: str, values: Any, shape: tuple[int, ...] | None = None) -> NDArray[np.float32]:
    """`values` as an array without a copy: it is one, or has `__dlpack__` and lies in memory, as a tensor of the CPU.

    Raises TypeError on what is neither or is not float32, and ValueError on another `shape`, if one is asked for, and
    on values elsewhere.
    """
    if not hasattr(values, "__dlpack__"):
        raise TypeError(f"{name} must be an array or a tensor, or have __dlpack__, got {type(values).__name__}")
    try:
        array: NDArray[Any] = values if isinstance(values, np.ndarray) else np.from_dlpack(values)
    except (BufferError, RuntimeError) as error:
        raise ValueError(f"{name} must be in memory, of a dtype that NumPy has: {error}") from error
    if array.dtype != np.float32:
        raise TypeError(f"{name} must be float32, got {array.dtype}")
    if shape is not None:
        check_shape(name, array.shape, shape)
    return array


def check_mode(mode: str) -> None:
    """Raises ValueError if generation has no such mode."""
    _check_name("mode", mode, ("greedy", "sample"))


def check_normalization(normalization: str) -> None:
    """Raises ValueError if scores have no such normalisation."""
    _check_name("normalization", normalization, ("raw", "local"))


def _check_name(what: str, name: str, known: tuple[str, str]) -> None:
    if name not in known:
        raise ValueError(f"{what} must be {' or '.join(map(repr, known))}, got {name!r}")


def check_shape(name: str, shape: tuple[int, ...], expected: tuple[int, ...]) -> None:
    """Raises ValueError if an array's shape is another."""
    if tuple(shape) != expected:
        raise ValueError(f"{name} must be {expected}, got {tuple(shape)}")


def seed_array(seeds: Sequence[int] | None, requests: int) -> NDArray[np.uint64]:
    """(B,) of the `seeds` of B requests, zeros if None. Raises ValueError on another number or range."""
    if seeds is None:
        return np.zeros(requests, np.uint64)
    if len(seeds) != requests:
        raise ValueError(f"seeds must be {requests}, one for each request, got {len(seeds)}")
    for seed in seeds:
        if not isinstance(seed, int | np.integer) or not 0 <= seed < 2**64:
            raise ValueError(f"seeds must be integers of 0 to 2^64 - 1, got {seed!r}")
    return np.array(seeds, np.uint64)
