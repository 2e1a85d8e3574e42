"""Right answers and refusals of the decoding core: against NumPy, by brute force, and under the sanitizers."""

from __future__ import annotations

import re
import subprocess
import sys
import time

from benchmarks.results import ROOT, Figure, Record

__all__ = ["checks", "sanitizers"]

TESTS = ("tests/core/test_candidate_trie.py", "tests/core/test_catalog_trie.py", "tests/decoding")
GROUPS = {
    "as the NumPy reference: tries, score, generation, sampling, retrieval": "reference or 1024",
    "as brute force: all permutations of up to 6, all orders, all items": "permutations or orders or BruteForce",
    "wrong input is an error that names the place": "Arguments or Errors or Damage or named or refused",
}


def tested(what: str, *arguments: str) -> Figure:
    """A figure that is ok if every selected test passed; with the random examples that hypothesis made for them."""
    began = time.monotonic()
    command = [sys.executable, "-m", "pytest", "-q", "--hypothesis-show-statistics", *arguments]
    output = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True).stdout
    counts = {name: int(number) for number, name in re.findall(r"(\d+) (passed|failed|skipped|errors?)\b", output)}
    passed, total = counts.get("passed", 0), sum(counts.values())
    examples = sum(int(number) for number in re.findall(r"(\d+) passing(?: examples)?, 0 failing", output))
    drawn = f" on {examples:,} random inputs" if examples else ""
    value = f"{passed} of {total} tests pass{drawn} in {time.monotonic() - began:.0f} s"
    return Figure(what, value, "all pass", "ok" if passed and passed == total else "short")


def sanitizers() -> Record:
    """The C++ tests under the address, undefined-behaviour and thread sanitizers, as CI runs them."""
    began = time.monotonic()
    done = subprocess.run(["make", "sanitize"], cwd=ROOT, check=False, capture_output=True, text=True)
    totals = [int(number) for number in re.findall(r"tests passed.* out of (\d+)", done.stdout)]
    passed = len(re.findall(r"Test +#\d+: \w+ \.+ +Passed", done.stdout))
    good = done.returncode == 0 and len(totals) == 2 and passed == sum(totals)
    figure = Figure(
        "C++ tests under ASan and UBSan, and under TSan",
        f"{passed} of {sum(totals)} pass in {time.monotonic() - began:.0f} s",
        "all pass",
        "ok" if good else "short",
    )
    return Record("decoding.sanitizers", "The decoding core under sanitizers", "make show-decoding", [figure])


def checks() -> Record:
    """Every group at ten thousand examples a test, or a tenth of it where an example is all permutations."""
    figures = [
        *(tested(what, "--hypothesis-profile=thorough", *TESTS, "-k", which) for what, which in GROUPS.items()),
        tested("each generation of vector instructions, forced", "tests/core/test_simd.py"),
    ]
    return Record("decoding.checks", "Decoding: answers and refusals", "make show-decoding", figures)
