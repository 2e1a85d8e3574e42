"""Training curves of every stage that left any: losses by epoch, and figures by step of a training by trying."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from gr2.report.run import Run
from gr2.training.policy.monitor_picture import read_steps, smoothed

__all__ = ["TRYING", "monitor_pictures", "training_curves"]

TRYING = ("compress", "opd", "rl", "bypass")
STEP_FIGURES = ("reward", "loss", "entropy", "divergence", "copies/near", "valid")
LEAST = 2  # points of a curve


def training_curves(run: Run) -> list[dict[str, Any]]:
    """A curve a figure: its stage, name, what its axis counts, and the values; NaN-free."""
    curves = []
    for name, stage in run.stages.items():
        curves += [
            {"stage": name, "name": label, "axis": "epoch", "x": list(range(1, len(values) + 1)), "values": values}
            for label, values in _losses(stage.metrics, "")
        ]
        if name in TRYING:
            steps = read_steps(stage)
            for figure in STEP_FIGURES:
                if figure in steps:
                    values = smoothed(steps[figure]).tolist()
                    points = [(step, y) for step, y in zip(steps["step"], values, strict=True) if math.isfinite(y)]
                    if len(points) >= LEAST:
                        x, y = map(list, zip(*points, strict=True))
                        curves.append({"stage": name, "name": figure, "axis": "step", "x": x, "values": y})
    return curves


def monitor_pictures(run: Run) -> dict[str, bytes]:
    """The picture of `monitor_picture` of each training by trying but the compressor's, as PNG."""
    from gr2.training.policy.monitor_picture import monitor_picture

    return {
        name: monitor_picture(read_steps(stage))
        for name, stage in run.stages.items()
        if name in TRYING and name != "compress"
    }


def _losses(metrics: Mapping[str, Any], prefix: str) -> list[tuple[str, list[float]]]:
    """Every list of losses in a stage's metrics, one a name where they are objects."""
    found: list[tuple[str, list[float]]] = []
    for key, value in metrics.items():
        if isinstance(value, Mapping):
            found += _losses(value, f"{key} ")
        elif key.endswith("losses") and isinstance(value, Sequence) and len(value) >= LEAST:
            label = (prefix + key.removesuffix("losses").replace("_", " ")).lstrip()
            if all(isinstance(each, Mapping) for each in value):
                found += [(f"{label}{name} loss", [float(each[name]) for each in value]) for name in value[0]]
            else:
                found.append((f"{label.rstrip()} loss".lstrip(), [float(each) for each in value]))
    return found
