"""What measures the kernels while a GPU is lent, run without one: every line of it but those that need a GPU."""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")
ROOT = Path(__file__).resolve().parents[2]
TABLES = {"kernels.gpu": 6, "kernels.serving": 3}


def stored(folder: Path, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / f"{name}.json").read_text())
    return found


def test_a_dry_run_measures_all_that_a_lent_gpu_would(tmp_path: Path, benchmarks_path: Path) -> None:
    results = {path: path.stat().st_mtime for path in (ROOT / "docs" / "results").iterdir()}
    command = [sys.executable, "-m", "benchmarks.kernels.lent", "--dry", "--out", str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(benchmarks_path)}
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    for name, tables in TABLES.items():
        record = stored(tmp_path, name)
        assert [figure for figure in record["figures"] if figure["status"] == "not-measured"] == []
        assert len(record["tables"]) == tables
        assert all(table["rows"] for table in record["tables"])
        assert {len(row) - len(table["columns"]) for table in record["tables"] for row in table["rows"]} == {0}
    assert results == {path: path.stat().st_mtime for path in (ROOT / "docs" / "results").iterdir()}


def test_what_was_measured_is_stored_when_the_run_is_killed(tmp_path: Path, benchmarks_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.kernels.gpu", "--dry", "--out", str(tmp_path)]
    with subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(benchmarks_path)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        limit = time.monotonic() + 120
        while not (tmp_path / "kernels.gpu.json").exists() and time.monotonic() < limit:
            assert process.poll() is None
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
    figures = {figure["what"]: figure["status"] for figure in stored(tmp_path, "kernels.gpu")["figures"]}
    assert figures["kernels equal to the C++ core on the device"] == "ok"
    assert figures["Kernels on a GPU: first launches"] == "not-measured"


def test_ratios_of_a_part_of_the_grid_do_not_count_as_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    retrieval = importlib.import_module("benchmarks.kernels.retrieval")
    fast, slow = {"eager": 5.0, "compiled": 2.0}, {"eager": 2.0}
    whole = [(figure.value, figure.status) for figure in retrieval._figures([fast, slow], 2, 1)]
    assert whole == [("2", "short"), ("2", "ok")]
    part = [(figure.value, figure.status) for figure in retrieval._figures([fast], 2, 2)]
    assert part == [("5", "not-measured"), ("2", "not-measured")]
    assert [figure.status for figure in retrieval._figures([slow], 3, 2)] == ["short", "not-measured"]
