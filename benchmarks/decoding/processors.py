"""One build for every x86-64: where its newer instructions are, and the C++ tests on emulated older processors.

`python -m benchmarks.decoding.processors` stores both. It needs objdump, and QEMU's user emulation (on Debian,
`apt install qemu-user-static`).
"""

from __future__ import annotations

import re
import shutil
import subprocess

from benchmarks.decoding.request import build_release
from benchmarks.results import ROOT, Figure, Record, store

__all__ = ["main", "processors"]

TESTS = ("core_test", "catalog_trie_test", "generation_test", "simd_test")
PROCESSORS = {"qemu64": "x86-64 without SSE4", "Nehalem": "x86-64-v2", "Haswell": "x86-64-v3"}
# Above SSE2, which every x86-64 has: VEX and EVEX encodings, and the named ones of SSSE3, SSE4, POPCNT and BMI.
NEWER = re.compile(
    r"(v[a-z]\w*|popcnt|lzcnt|andn|bextr|bls\w+|pdep|pext|sarx|shlx|shrx|rorx|mulx|crc32|pshufb|pabs[bwd]|palignr|"
    r"pmul(ld|dq|hrsw)|pmax(sd|ud|sb|uw)|pmin(sd|ud|sb|uw)|ptest|p?blend\w+|pinsr[bdq]|pextr[bdq]|ph(add|sub)\w+|"
    r"round[ps][sd]|insertps|extractps|pcmpgtq|pcmpeqq|pmov[sz]x\w+|dpp[sd])$"
)


def newer_instructions() -> dict[str, int]:
    """How many newer instructions each function of the core has, of those that have any."""
    archive = build_release("gr2_core") / "libgr2_core.a"
    command = ["objdump", "-d", "-C", "--no-show-raw-insn", str(archive)]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    function, found = "", dict[str, int]()
    for line in text.splitlines():
        if name := re.match(r"[0-9a-f]+ <(.*)>:$", line):
            function = name[1]
        elif (code := re.match(r"\s+[0-9a-f]+:\s+(?:lock |repz? |data16 )*(\w+)", line)) and NEWER.match(code[1]):
            found[function] = found.get(function, 0) + 1
    return found


def audit() -> Figure:
    """Newer instructions are in the functions of a generation alone, which only processors that have it call."""
    what = "newer instructions outside of the functions of their generation"
    if shutil.which("objdump") is None:
        return Figure(what, "needs objdump", "0", "not-measured")
    found = newer_instructions()
    inside = {name: count for name, count in found.items() if re.search(r"::v[234]::", name)}
    assert {name for generation in ("v3", "v4") for name in inside if f"::{generation}::" in name}
    outside = sum(found.values()) - sum(inside.values())
    return Figure(what, f"{outside}, and {sum(inside.values())} inside", "0", "short" if outside else "ok")


def emulated(processor: str, generation: str) -> Figure:
    """The C++ tests on a processor without newer instructions, which would end them."""
    what = f"C++ tests on an emulated {processor} ({generation})"
    emulator = shutil.which("qemu-x86_64-static") or shutil.which("qemu-x86_64")
    if emulator is None:
        return Figure(what, "needs qemu-user", "all pass", "not-measured")
    folder = build_release(*TESTS)
    codes = [
        subprocess.run(
            [emulator, "-cpu", processor, folder / test], cwd=ROOT, check=False, capture_output=True
        ).returncode
        for test in TESTS
    ]
    return Figure(what, f"{codes.count(0)} of {len(TESTS)} pass", "all pass", "short" if any(codes) else "ok")


def processors() -> Record:
    """The audit and the emulations."""
    figures = [audit(), *(emulated(*each) for each in PROCESSORS.items())]
    return Record("decoding.processors", "One build for every x86-64", "make decoding-processors", figures)


def main() -> None:
    """Store the record."""
    print(store(processors()))


if __name__ == "__main__":
    main()
