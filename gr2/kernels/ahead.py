"""The kernels compiled ahead of time, on a machine with or without a GPU, into the folder where Triton looks first."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from gr2.decoding import CatalogTrie
from gr2.errors import ConfigError
from gr2.kernels.candidates import CandidateTables
from gr2.kernels.device_decoder import DeviceDecoder
from gr2.kernels.folder import compile_launchers
from gr2.kernels.tensors import Launch

__all__ = ["TARGETS", "Compiled", "compile_kernels", "compile_only", "compile_searches"]

# Those that bfloat16 needs, and the compiler knows: on another one it aborts the process.
TARGETS = ("sm_80", "sm_86", "sm_87", "sm_89", "sm_90", "sm_100", "sm_103", "sm_110", "sm_120", "sm_121")
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Compiled:
    """A kernel for the sizes that it was compiled for; `result` is Triton's, with `asm` and `metadata`."""

    kernel: str
    sizes: dict[str, Any]
    result: Any


class _Target:
    """What Triton asks a driver for before it compiles. The device's number is the target's name, so that nothing that
    was compiled for it is taken for the kernel of a device that is there.
    """

    def __init__(self, name: str) -> None:
        if name not in TARGETS:
            raise ConfigError(f"target must be one of {', '.join(TARGETS)}, got {name!r}")
        self._name, self._target = name, GPUTarget("cuda", int(name.removeprefix("sm_")), 32)

    def get_current_target(self) -> GPUTarget:
        return self._target

    def get_current_device(self) -> str:
        return self._name

    def get_current_stream(self, device: str) -> int:  # noqa: ARG002
        return 0


@contextmanager
def compile_only(target: str) -> Iterator[tuple[Launch, list[Compiled]]]:
    """A launcher that only compiles for `target` ("sm_90"), and the list of what it has compiled.

    It takes the way of a launch up to the start, so that a launch of the same sizes finds the result in the cache.
    Raises ConfigError on a target that is none of TARGETS, and where Triton interprets kernels instead.
    """
    if triton.knobs.runtime.interpret:
        raise ConfigError("TRITON_INTERPRET is set: nothing is compiled; unset it")
    done: list[Compiled] = []

    def launch(kernel: Any, grid: tuple[int, ...], *arguments: Any, **sizes: Any) -> None:
        done.append(Compiled(kernel.fn.__name__, sizes, kernel.warmup(*arguments, grid=grid, **sizes)))

    # None where no driver was needed yet: asking for it would fail on a machine without a GPU.
    before = driver._active
    driver.set_active(_Target(target))
    try:
        yield launch, done
    finally:
        driver.set_active(before)


def compile_kernels(
    target: str,
    *,
    levels: int,
    level_size: int,
    candidates: int,
    normalization: Literal["raw", "local"] = "raw",
    dtype: str = "float32",
    folder: Path | None = None,
) -> list[Compiled]:
    """Compile what scores and generates up to `candidates` candidates with L codes of `level_size` values.

    Into `folder`, or Triton's own cache, with what Triton needs to start them. A kernel that is there is not compiled
    again. Raises ConfigError on a target that is none of TARGETS, and on sizes and dtypes that the kernels do not take.
    """
    with _compiling(target, dtype, folder) as (decoder, done):
        for size in _sizes(candidates):
            codes, known = np.zeros((2, size, levels), np.uint16), np.ones((2, size), np.bool_)
            batch = decoder.candidates(CandidateTables.build(codes, known, level_size, nodes=max(2, levels)))
            logits = torch.zeros((2, batch.nodes, level_size), dtype=DTYPES[dtype])
            for prior in (None, torch.zeros((2, size))):
                batch.score(logits, prior, normalization=normalization)
            for mode in ("greedy", "sample"):
                generation = batch.generate(mode=mode)
                for rows in (*logits[:, :2].unbind(1), logits[:, 0].contiguous()):
                    generation.push(rows)
    return done


def compile_searches(
    target: str,
    trie: CatalogTrie,
    *,
    beams: Sequence[int],
    normalization: Literal["raw", "local"] = "raw",
    dtype: str = "float32",
    folder: Path | None = None,
) -> list[Compiled]:
    """Compile what searches a catalogue with each number of `beams`, with filters and without.

    A kernel is for the next power of two of the most children of a level's nodes, and of the most items of a leaf:
    small changes of the catalogue need no other. Arguments and errors as those of `compile_kernels`.
    """
    with _compiling(target, dtype, folder) as (decoder, done):
        catalog = decoder.catalog(trie)
        for each, filtered in product(beams, (False, True)):
            retriever = decoder.retriever(each, normalization=normalization)
            retriever.start(catalog, 2, filters=decoder.item_filter(catalog) if filtered else None)
            for level in range(trie.levels):
                retriever.step(torch.zeros((2, each if level else 1, trie.level_size), dtype=DTYPES[dtype]))
            retriever.finish()
    return done


@contextmanager
def _compiling(target: str, dtype: str, folder: Path | None) -> Iterator[tuple[DeviceDecoder, list[Compiled]]]:
    """A decoder that only compiles for `target`, into `folder`, and the list of what it has compiled."""
    if dtype not in DTYPES:
        raise ConfigError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
    with triton.knobs.cache.scope(), compile_only(target) as (launch, done):
        if folder is not None:
            triton.knobs.cache.dir = str(folder)
        decoder = DeviceDecoder("cpu", launch=launch)
        try:
            yield decoder, done
        except ValueError as error:
            raise ConfigError(f"no kernels for this: {error}") from error
        compile_launchers(each.result for each in done)


def _sizes(candidates: int) -> Sequence[int]:
    """A number of candidates for each number of lanes up to those of `candidates`."""
    lanes = triton.next_power_of_2(max(16, candidates))
    return [2**power for power in range(4, lanes.bit_length() - 1)] + [min(lanes, 1024)]
