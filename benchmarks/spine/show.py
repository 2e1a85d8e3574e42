"""Every figure of the end-to-end path, one line each: `python -m benchmarks.spine.show`.

What takes longer than minutes is read from docs/results/ and marked as stored, with its commit and the target that
makes it again; the rest runs now.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.results import ROOT, Figure, Record
from benchmarks.show import show

__all__ = ["main"]

STORED = {"spine.sasrec": "make sasrec", "spine.beauty": "make beauty", "spine.games18": "make games18"}


def pytest_outcome(*arguments: str) -> tuple[dict[str, int], float]:
    """Counts of pytest's outcomes, and seconds."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "junit.xml"
        command = [sys.executable, "-m", "pytest", "-q", f"--junitxml={report}", *arguments]
        subprocess.run(command, cwd=ROOT, check=False, stdout=subprocess.DEVNULL)
        text = report.read_text(encoding="utf-8") if report.exists() else ""
    names = ("errors", "failures", "skipped", "tests")
    counts = {name: int((text.partition(f'{name}="')[2].partition('"')[0]) or 0) for name in names}
    return counts, time.monotonic() - began


def judged_tests(what: str, bar: str, *arguments: str) -> Figure:
    """A figure that is ok if every selected test ran and passed."""
    counts, seconds = pytest_outcome(*arguments)
    passed = counts["tests"] - counts["errors"] - counts["failures"] - counts["skipped"]
    value = f"{passed} of {counts['tests']} passed in {seconds:.0f} s"
    if counts["tests"] and counts["skipped"] == counts["tests"]:
        return Figure(what, "skipped: the toolchain is absent", bar, "not-measured")
    return Figure(what, value, bar, "ok" if passed and passed == counts["tests"] else "short")


def node_client() -> Figure:
    """A client in another language, against a running server."""
    return judged_tests(
        "a Node client (@grpc/grpc-js) gets Python's answer", "pass", "tests/serving/test_node_client.py"
    )


def bench(tables: list[dict[str, Any]]) -> Figure:
    """The benchmark suite, each asserting its answer; requests go to Beauty's bundle if there is one."""
    what = "benchmarks: look-up, mini-trie, score, request in process, request over gRPC"
    bundle = ROOT / "runs" / "beauty" / "export"
    if bundle.is_dir():
        os.environ["GR2_BUNDLE"] = str(bundle)
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "benchmark.json"
        options = ("benchmarks", "--benchmark-enable", "--benchmark-only", f"--benchmark-json={report}")
        figure = judged_tests(what, "all pass", *options)
        if report.exists() and report.stat().st_size:
            model = "Beauty's bundle" if bundle.is_dir() else "a small random model"
            tables.append(bench_table(json.loads(report.read_text(encoding="utf-8")), model))
    return figure


def bench_table(report: dict[str, Any], model: str) -> dict[str, Any]:
    """Medians, and their ratio to the fastest of the group."""
    groups: dict[str, list[tuple[float, str]]] = {}
    for each in report["benchmarks"]:
        groups.setdefault(each["group"] or "", []).append((each["stats"]["median"], each["name"]))
    rows = [
        [group, name, f"{median * 1e6:,.1f}", f"{median / min(members)[0]:.2f}"]
        for group, members in groups.items()
        for median, name in sorted(members)
    ]
    columns = ["group", "benchmark", "median us", "ratio to the group's fastest"]
    return {"title": f"benchmarks (requests: {model})", "columns": columns, "rows": rows}


def kill_resume() -> Figure:
    """SIGKILL inside every stage of a run, then the same command again."""
    command = [sys.executable, "-m", "benchmarks.spine.kill_resume"]
    done = subprocess.run(command, cwd=ROOT, check=False, stdout=subprocess.PIPE, text=True)
    lines = done.stdout.strip().splitlines()
    result = json.loads(lines[-1]) if lines else {"killed": [], "metrics_equal": False}
    value = f"killed in {', '.join(result['killed'])}; final metrics {'equal' if result['metrics_equal'] else 'differ'}"
    return Figure("SIGKILL in each stage of gr2 run, then again", value, "equal", "short" if done.returncode else "ok")


def demo() -> Figure:
    """README's first command after the installation."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "gr2.cli", "demo", "--out", folder]
        code = subprocess.run(command, cwd=ROOT, check=False, stdout=subprocess.DEVNULL).returncode
    seconds = time.monotonic() - began
    if code:
        return Figure("gr2 demo", f"exit code {code}", "<=300 s", "short")
    return Figure.judge("gr2 demo, from nothing to a served ranking", seconds, 300, at_most=True, unit=" s")


def path() -> Record:
    """What runs now."""
    tables: list[dict[str, Any]] = []
    figures = [node_client(), bench(tables), kill_resume(), demo()]
    return Record("spine.path", "The path from end to end", "make show-spine", figures, tables)


def main() -> None:
    """Print one line a figure, store the fresh ones, and exit with 1 if a figure is short."""
    show("spine", "the path", stored=STORED, measures=[("the path from end to end", path)])


if __name__ == "__main__":
    main()
