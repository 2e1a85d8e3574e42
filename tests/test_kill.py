"""A run that is killed, or interrupted, goes on and ends as one that nobody disturbed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from gr2.pipeline import STAGES

PROGRAM = Path(__file__).resolve().parents[1] / "benchmarks" / "spine" / "kill_resume.py"


def test_a_run_killed_inside_every_stage_ends_with_the_same_metrics() -> None:
    answer = subprocess.run([sys.executable, str(PROGRAM)], capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr + answer.stdout
    record = json.loads(answer.stdout)
    assert record["killed"] == [name for name, stage in STAGES.items() if not stage.optional]
    assert record["metrics_equal"]
    assert record["files_equal"]
    assert record["ctrl_c_exit"] == 130
