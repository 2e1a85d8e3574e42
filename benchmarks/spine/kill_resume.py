"""Kill `gr2 run` inside every stage that it always has, go on each time, and compare with a run that nobody disturbed.

`python -m benchmarks.spine.kill_resume` prints one line of JSON: the stages that were killed with SIGKILL (each after
its workspace, or its first checkpoint where it writes some, was on disk), Ctrl-C's exit code, whether all metrics of
all stages are equal (wall times aside), and whether all files are.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

import gr2
from gr2.artifact import Artifact
from gr2.catalog import Catalog
from gr2.data.synthetic import write_synthetic
from gr2.pipeline import STAGES

__all__ = ["main", "run_all"]

ALWAYS = [name for name, stage in STAGES.items() if not stage.optional]
CHECKPOINTED = ("prerank", "distill")
INTERRUPTED = 130
ATTEMPTS = 10
PATIENCE_SECONDS = 300.0
CONFIG = """
[prepare]
items = "items.parquet"
interactions = "interactions.parquet"
core = 2
[prerank]
dim = 16
layers = 1
epochs = 4
folds = 2
list_size = 20
batch = 16
[tokenize]
vectors = "vectors.npz"
levels = 3
level_size = 8
[distill]
dim = 16
layers = 1
epochs = 2
batch = 64
checkpoint_seconds = 0.0
[evaluate]
resamples = 500
"""


def main() -> None:
    """Print the line; exit code 1 if anything differs."""
    parser = argparse.ArgumentParser(description="kill gr2 run inside every stage and compare")
    parser.add_argument("--users", type=int, default=150)
    users = parser.parse_args().users
    with tempfile.TemporaryDirectory() as folder:
        result = run_all(Path(folder), users)
    print(json.dumps(result))
    equal = result["metrics_equal"] and result["files_equal"]
    sys.exit(0 if equal and result["killed"] == ALWAYS and result["ctrl_c_exit"] == INTERRUPTED else 1)


def run_all(folder: Path, users: int) -> dict[str, Any]:
    """The figures, from two runs over one tiny shop in `folder`."""
    _write_shop(folder, users)
    _finish(folder, "calm")
    endings, interrupted = {}, 0
    # The run goes on after each signal until the next one meets it.
    for stage in ALWAYS:
        if stage == "distill":
            interrupted = _end_inside(folder, "disturbed", stage, signal.SIGINT)
        endings[stage] = _end_inside(folder, "disturbed", stage, signal.SIGKILL)
    _finish(folder, "disturbed")
    calm, disturbed = (_artifacts(folder / "runs" / run) for run in ("calm", "disturbed"))
    return {
        "killed": [stage for stage, code in endings.items() if code == -signal.SIGKILL],
        "ctrl_c_exit": interrupted,
        "metrics_equal": _metrics(disturbed) == _metrics(calm),
        "files_equal": [each.digest for each in disturbed] == [each.digest for each in calm],
    }


def _write_shop(folder: Path, users: int) -> None:
    items, _ = write_synthetic(folder, users=users, items=60, seed=1)
    ids = Catalog.load(items).ids
    vectors = np.random.default_rng(0).normal(size=(len(ids), 8)).astype(np.float32)
    np.savez(folder / "vectors.npz", item_id=np.array(ids), vector=vectors)
    (folder / "shop.toml").write_text(CONFIG)


def _start(folder: Path, run: str) -> subprocess.Popen[str]:
    # The runs must be of the gr2 imported here, and not of the sources in the folder they start in.
    found = [str(Path(gr2.__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    return subprocess.Popen(
        [sys.executable, "-m", "gr2.cli", "run", "shop.toml", "--set", f"run.out=runs/{run}"],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(found), "PYTHONSAFEPATH": "1", "OMP_NUM_THREADS": "1"},
        text=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )


def _finish(folder: Path, run: str) -> None:
    process = _start(folder, run)
    _, said = process.communicate()
    if process.returncode:
        raise RuntimeError(f"gr2 run ended with {process.returncode}:\n{said}")


def _end_inside(folder: Path, run: str, stage: str, number: signal.Signals) -> int:
    """The exit code of a run that was sent the signal inside `stage`; the run's folder is left as the signal left it.

    A stage that was over before the signal came is run again: only a kill that left its workspace behind counts.
    """
    out = folder / "runs" / run
    workspace = out / f"{stage}.partial"
    # Some of the stage's work is on disk: a whole checkpoint where it writes any, the workspace's mark elsewhere.
    marker = "checkpoints/[!.]*" if stage in CHECKPOINTED else "fingerprint"
    for _ in range(ATTEMPTS):
        before = _written(workspace, marker)
        with _start(folder, run) as process:
            deadline = time.monotonic() + PATIENCE_SECONDS
            while _written(workspace, marker) <= before and process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.0005)
            process.send_signal(number)
            _, said = process.communicate()
        if workspace.exists() and not (workspace / "artifact.json").exists():
            if process.returncode not in (-number, INTERRUPTED):
                raise RuntimeError(f"{stage}: gr2 run ended with {process.returncode}:\n{said}")
            return process.returncode
        for path in (out / stage / "artifact.json", workspace / "artifact.json"):
            path.unlink(missing_ok=True)
    raise RuntimeError(f"{stage}: was over before the signal came, {ATTEMPTS} times")


def _written(workspace: Path, marker: str) -> int:
    """When the newest of the marker's files was written, in nanoseconds; 0 if there is none."""
    times = [0]
    for path in workspace.glob(marker):
        with contextlib.suppress(FileNotFoundError):  # gone since the folder was read: the stage has ended
            times.append(path.stat().st_mtime_ns)
    return max(times)


def _artifacts(out: Path) -> list[Artifact]:
    return [Artifact.load(out / stage, stage, verify=True) for stage in ALWAYS]


def _metrics(artifacts: list[Artifact]) -> Any:
    return [_without_seconds(each.metrics) for each in artifacts]


def _without_seconds(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_seconds(entry) for key, entry in value.items() if not key.endswith("_seconds")}
    return [_without_seconds(entry) for entry in value] if isinstance(value, list) else value


if __name__ == "__main__":
    main()
