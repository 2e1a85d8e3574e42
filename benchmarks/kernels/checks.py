"""What is shown of the kernels without a GPU: answers in Triton's interpreter, and machine code of each variant."""

from __future__ import annotations

import subprocess
import sys

from benchmarks.results import ROOT, Figure, Record

__all__ = ["checks"]

SUITES = {
    "kernels equal to the reference in Triton's interpreter: tests passed": "tests/kernels/test_interpreter.py",
    "every variant compiles for sm_80, sm_90 and sm_100 without a spill: tests passed": "tests/kernels/test_ahead.py",
}


def checks() -> Record:
    """The suites' outcomes, each in a process of its own."""
    figures = []
    for what, path in SUITES.items():
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", path]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        last = done.stdout.strip().rpartition("\n")[2]
        figures.append(Figure(what, last.partition(" in ")[0], "all", "ok" if done.returncode == 0 else "short"))
    return Record("kernels.checks", "Kernels without a GPU", "make show-kernels", figures)
