"""What the compiler makes of the kernels, by cuobjdump: registers, spills, and the warps that a multiprocessor holds.

`make kernels-code` looks at every search that the figures are of, for three generations of GPU, and stores what it
finds; the compiled kernels are kept in build/kernels-code.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby, product
from pathlib import Path
from typing import Any

import numpy as np
import torch
import triton

from benchmarks.results import ROOT, Figure, Record, store
from gr2.decoding import CatalogTrie
from gr2.kernels.ahead import Compiled, compile_only
from gr2.kernels.device_decoder import DeviceDecoder

__all__ = ["SHARED", "Code", "compile_level", "inspect", "machine_code", "main"]

CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
# Bytes of shared memory that a block may have, and that a multiprocessor has, of which each block takes 1 KiB more.
SHARED = {"sm_80": 166_912, "sm_90": 232_448, "sm_100": 232_448}
ON_CHIP = {"sm_80": 167_936, "sm_90": 233_472, "sm_100": 233_472}
# What a multiprocessor of these three holds at once.
REGISTERS, WARPS, PROGRAMS = 65_536, 64, 32
# Warps that wait for memory at once, with which the kernels are designed: a level of a search has three programs of 8,
# where it has children of more than 16 beams to choose among, and else 16 warps, as the others have for 100 candidates.
MANY_BEAMS, OTHERS = 24, 16

# Beams from 10 to 70: the tens, and the fewest that a power of two more has room for.
LEVEL_SIZES, BEAMS = (256, 2048), (10, 17, 20, 30, 33, 40, 50, 60, 65, 70)
# Fewer of what compiles to other code: half precision, filters and probabilities among the children.
OTHER_BEAMS = (10, 20, 40, 70)


@dataclass(frozen=True)
class Code:
    """A kernel's use of a target."""

    compiled: Compiled
    target: str
    registers: int
    local: int  # bytes of a thread's stack and local memory
    spills: tuple[str, ...]  # the instructions that read or write it

    @property
    def shared(self) -> int:
        """Bytes of shared memory of a program."""
        return int(self.compiled.result.metadata.shared)

    @cached_property
    def warps(self) -> int:
        """That a multiprocessor holds at once."""
        each = int(self.compiled.result.metadata.num_warps)
        # Registers are given to warps by 256.
        fitting = REGISTERS // (-(-self.registers * 32 // 256) * 256 * each)
        return each * min(WARPS // each, PROGRAMS, fitting, ON_CHIP[self.target] // (self.shared + 1024))

    @property
    def designed(self) -> int:
        """The least that `warps` should be; 0 where only the largest of all requests are concerned."""
        sizes = self.compiled.sizes
        if max(sizes.get("ROOM", 0), sizes.get("LANES", 0)) > 128:
            return 0
        return MANY_BEAMS if sizes.get("ROOM", 0) > 16 and sizes["WIDTH"] > 1 else OTHERS


def inspect(compiled: Compiled, target: str) -> Code:
    """By cuobjdump, which disassembles it."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.result.asm["cubin"])
        file.flush()
        command = [CUOBJDUMP, "--dump-resource-usage", "--dump-sass", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "EXIT" in text, "nothing was disassembled"
    numbers = {name: int(value) for name, value in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", text)}
    spills = tuple(re.findall(r"\b(?:STL|LDL)\b.*", text))
    return Code(compiled, target, numbers["REG"], numbers["STACK"] + numbers["LOCAL"], spills)


def compile_level(
    decoder: DeviceDecoder, level_size: int, beams: int, widest: int, *, first: bool = False, other: bool = False
) -> None:
    """The first or another level of a search, whose nodes have up to `widest` children; `other`: as OTHER_BEAMS."""
    level = 0 if first else 1
    catalog = decoder.catalog(CatalogTrie(np.zeros((1, 2), np.uint16), level_size))
    catalog.widest[level] = widest
    retriever = decoder.retriever(beams, normalization="local" if other else "raw")
    retriever.start(catalog, 2, filters=decoder.item_filter(catalog, deny=np.zeros(1, np.int64)) if other else None)
    retriever.level = level
    dtype = torch.bfloat16 if other else torch.float32
    retriever.step(torch.zeros((2, 1 if first else beams, level_size), dtype=dtype))


def searches(target: str) -> Iterator[Code]:
    """Every level of the searches, with every number of children that makes another kernel."""
    for level_size, (beams, other) in product(
        LEVEL_SIZES, [*((each, False) for each in BEAMS), *((each, True) for each in OTHER_BEAMS)]
    ):
        for widest in (0, *(2**power for power in range(4, level_size.bit_length()))):
            with compile_only(target) as (launch, done):
                decoder = DeviceDecoder("cpu", launch=launch)
                compile_level(decoder, level_size, beams, widest or level_size, first=not widest, other=other)
            yield from (inspect(each, target) for each in done)


def machine_code() -> Record:
    """Of all targets."""
    found = [code for target in SHARED for code in searches(target)]
    spilling, few = sum(map(_spills, found)), sum(code.warps < code.designed for code in found)
    share = max(code.shared / SHARED[code.target] for code in found)
    figures = [
        Figure.judge("levels of searches that spill registers, by cuobjdump", spilling, 0, at_most=True),
        Figure.judge("levels of searches with fewer warps on a multiprocessor than designed", few, 0, at_most=True),
        Figure.judge("the most shared memory of a program, of the target's limit", share, 1, at_most=True),
    ]
    notes = [
        f"{len(found)} kernels: V of {' and '.join(map(str, LEVEL_SIZES))}, and 16, 32 ... V children; float32 without "
        f"filters, and bfloat16 with filters and local normalisation. Triton {triton.__version__}",
        "warps that a multiprocessor holds at once follow from registers, warps and shared memory of a program",
    ]
    return Record("kernels.code", "Machine code of searches", "make kernels-code", figures, _tables(found), notes)


def _tables(found: list[Code]) -> list[dict[str, Any]]:
    """What each level's kernels use, and those that should not."""
    rows = [
        [*key, len(group), _range([code.registers for code in group]), _range([code.warps for code in group]), least]
        for key, codes in groupby(found, _key)
        for group in [list(codes)]
        for least in [group[0].designed]
    ]
    names = ["target", "V", "beams", "level", "logits"]
    columns = [*names, "kernels", "registers", "warps", "designed"]
    tables = [{"title": "each level's kernels, over all numbers of children", "columns": columns, "rows": rows}]
    bad = [
        [*_key(code), code.compiled.sizes["CHILDREN"], code.registers, code.warps, code.local, len(code.spills)]
        for code in found
        if _spills(code) or code.warps < code.designed
    ]
    if bad:
        columns = [*names, "children", "registers", "warps", "local bytes", "spills"]
        tables.append({"title": "those that spill, or are too few", "columns": columns, "rows": bad})
    return tables


def _spills(code: Code) -> bool:
    return bool(code.spills or code.local)


def _key(code: Code) -> tuple[Any, ...]:
    sizes = code.compiled.sizes
    level = "first" if sizes["WIDTH"] == 1 else "others"
    return code.target, sizes["VOCAB"], sizes["BEAMS"], level, "bfloat16" if sizes["LOCAL"] else "float32"


def _range(values: list[int]) -> str:
    return f"{min(values)}..{max(values)}"


def main() -> None:
    """Print and store what is found; exit with 1 if a figure is short."""
    with triton.knobs.cache.scope():
        triton.knobs.cache.dir = str(ROOT / "build" / "kernels-code")
        record = machine_code()
    for figure in record.figures:
        print(figure)
    print(store(record))
    sys.exit(any(figure.status == "short" for figure in record.figures))


if __name__ == "__main__":
    main()
