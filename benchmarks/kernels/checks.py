"""What is shown of the kernels without a GPU: answers in Triton's interpreter, and machine code of each variant."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree

from benchmarks.results import ROOT, Figure, Record

__all__ = ["checks"]

TESTS = Path("tests", "kernels")
COLUMNS = ("target", "variants", "registers", "warps", "shared", "limit", "spills")


@dataclass
class Outcome:
    """Tests of some files: how many there were and passed, of each group, and what they recorded."""

    tests: Counter[str] = field(default_factory=Counter)
    passed: Counter[str] = field(default_factory=Counter)
    recorded: list[dict[str, str]] = field(default_factory=list)

    def figure(self, what: str) -> Figure:
        """All must have passed, and there must be some."""
        passed, tests = self.passed.total(), self.tests.total()
        return Figure(f"{what}: tests passed", f"{passed} of {tests}", "all", "ok" if passed == tests > 0 else "short")


def checks() -> Record:
    """The tests' outcomes, each file in a process of its own."""
    interpreted, compiled = Outcome(), Outcome()
    for name in ("interpreted.py", "interpreted_generation.py", "interpreted_arguments.py"):
        _run(name, interpreted, TRITON_INTERPRET="1")
    _run("compiled.py", compiled)
    rows = [[each[name] for name in COLUMNS] for each in compiled.recorded]
    # Of no target: worse than is allowed.
    spills = max((int(each["spills"]) for each in compiled.recorded), default=999)
    warps = min((float(each["warps"]) for each in compiled.recorded), default=0.0)
    share = max((int(each["shared"]) / int(each["limit"]) for each in compiled.recorded), default=999.0)
    figures = [
        interpreted.figure("kernels equal to the reference in Triton's interpreter"),
        compiled.figure("kernels compile, by triton.compile, for sm_80, sm_90 and sm_100, and are found again"),
        Figure.judge("the fewest warps on a multiprocessor, of those the kernels are designed for", warps, 1),
        Figure.judge("the most shared memory of a block, of the target's limit", share, 1, at_most=True),
        Figure.judge("instructions that spill registers, by cuobjdump", spills, 0, at_most=True),
    ]
    groups = [[name, count, tests] for outcome in (interpreted, compiled) for name, count, tests in _groups(outcome)]
    tables = [
        {"title": "each target's variants: the most of any", "columns": list(COLUMNS), "rows": rows},
        {"title": "tests", "columns": ["group", "passed", "of"], "rows": groups},
    ]
    return Record("kernels.checks", "Kernels without a GPU", "make show-kernels", figures, tables)


def _groups(outcome: Outcome) -> list[tuple[str, int, int]]:
    return [(name, outcome.passed[name], tests) for name, tests in outcome.tests.items()]


def _run(name: str, outcome: Outcome, **environment: str) -> None:
    """Add the outcome of a file's tests; a group is a class, or what is in none."""
    variables = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"} | environment
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.xml")
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-o", "junit_family=xunit1"]
        command += [f"--junitxml={report}", str(TESTS / name)]
        subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, check=False)
        cases = list(ElementTree.parse(report).iter("testcase"))
    for case in cases:
        group = case.get("classname", "").removeprefix("tests.kernels.")
        bad = any(case.find(tag) is not None for tag in ("failure", "error", "skipped"))
        outcome.tests[group] += 1
        outcome.passed[group] += not bad
        recorded = {each.get("name", ""): each.get("value", "") for each in case.iter("property")}
        outcome.recorded += [recorded] if recorded else []
