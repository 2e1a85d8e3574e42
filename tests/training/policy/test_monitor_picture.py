from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from gr2.artifact import open_stage
from gr2.cli.app import app
from gr2.errors import ConfigError
from gr2.training.policy.monitor_picture import monitor_picture, smoothed
from gr2.training.rl import RlConfig

STEPS = 40


def columns() -> dict[str, list[float | None]]:
    names = ["reward", "valid", "copies/identical", "copies/near", "copies/tau", "echoes/near", "echoes/tau"]
    names += ["format_only", "rollouts/live", "entropy", "step_time"]
    names += [f"{part}{rank}" for part in ("reward/from_", "target/at_", "first/from_") for rank in range(1, 6)]
    values = np.linspace(0.0, 1.0, STEPS)
    found: dict[str, list[float | None]] = {name: values.tolist() for name in names}
    found["reward/from_3"] = [None] * STEPS
    return {"step": [float(step) for step in range(1, STEPS + 1)], **found}


def pixels(png: bytes) -> np.ndarray:
    import io

    from matplotlib.image import imread

    return np.asarray(imread(io.BytesIO(png), format="png"))


def test_means_are_of_the_last_steps_that_have_a_value() -> None:
    values: list[float | None] = [None, *([1.0] * 10), None, *([3.0] * 18)]
    found = smoothed(values)
    assert np.isnan(found[0])
    assert found[1] == 1.0
    assert found[11] == 1.0  # two of the last three have one
    assert found[12] == 2.0
    assert found[-1] == 3.0


def test_the_picture_shows_the_figures() -> None:
    steps = columns()
    before = pixels(monitor_picture(steps))
    assert before.shape[:2] == (800, 1500)
    assert np.array_equal(before, pixels(monitor_picture(steps)))
    changed = pixels(monitor_picture(steps | {"copies/near": [0.5] * STEPS}))
    # The second of the parts above, and nothing else.
    where = np.argwhere((before != changed).any(-1))
    assert len(where)
    assert where[:, 0].max() < 400
    assert where[:, 1].min() > 500
    assert where[:, 1].max() < 1000
    assert not np.array_equal(before, pixels(monitor_picture(steps | {"target/at_2": [1.0] * STEPS})))


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    with open_stage(tmp_path / "run" / "rl", "rl", RlConfig(), {}, 0) as work:
        pq.write_table(pa.table(columns()), work.path / "steps.parquet")
    path = tmp_path / "shop.toml"
    path.write_text(f'[run]\nout = "{tmp_path}/run"\n[rl]\n')
    return path


def test_the_command_draws_and_prints_a_trainings_monitors(shop: Path) -> None:
    answer = CliRunner(env={"COLUMNS": "120"}).invoke(app, ["report", "rl", str(shop)], catch_exceptions=False)
    assert answer.exit_code == 0
    picture = shop.parent / "run" / "report-rl" / "monitors.png"
    assert pixels(picture.read_bytes()).shape[:2] == (800, 1500)
    lines = [line for line in answer.stdout.splitlines() if "copies/near" in line]
    assert len(lines) == 1
    first, last = (f"{np.mean(values):.4g}" for values in (np.linspace(0, 1, STEPS)[:4], np.linspace(0, 1, STEPS)[-4:]))
    assert first in lines[0]
    assert last in lines[0]
    assert "reward/from_1" not in answer.stdout


def test_another_stage_is_refused(shop: Path) -> None:
    with pytest.raises(ConfigError, match="--stage sft: there are rl, opd, bypass"):
        CliRunner().invoke(app, ["report", "rl", str(shop), "--stage", "sft"], catch_exceptions=False)


def test_without_matplotlib_the_command_says_what_to_install(shop: Path) -> None:
    program = "import sys\nsys.modules['matplotlib'] = None\nfrom gr2.cli import main\nmain()\n"
    done = subprocess.run(
        [sys.executable, "-c", program, "report", "rl", str(shop)], check=False, capture_output=True, text=True
    )
    assert done.returncode != 0
    assert "the picture of the monitors" in done.stderr
    assert "train" in done.stderr
