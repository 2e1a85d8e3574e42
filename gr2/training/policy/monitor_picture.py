"""The picture of what gives a policy away that games its reward, over the steps of its training."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from gr2.artifact import Artifact
from gr2.errors import MissingExtraError
from gr2.interrupts import interrupts_wait

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["monitor_picture", "read_steps", "smoothed"]

INCHES, DOTS_PER_INCH = (15.0, 8.0), 100
# A point is the mean of the last tenth of the steps up to it, at most so many.
SMOOTH = 20
LINES = {
    "Reward": ("reward", "format_only"),
    "Copies of the order that came in, and of the order shown": (
        "copies/identical", "copies/near", "copies/tau", "echoes/near", "echoes/tau",
    ),
    "Answers": ("valid", "rollouts/live", "entropy", "divergence"),
}  # fmt: skip
RANKS = {
    "Reward by the rank at which the target came in": "reward/from_",
    "Where the target went out": "target/at_",
    "Where the first candidate came in": "first/from_",
}

Steps = Mapping[str, Sequence[float | None]]


def read_steps(stage: Artifact) -> dict[str, list[float | None]]:
    """The columns of a training's `steps.parquet`, of the steps that drew answers."""
    table = pq.read_table(stage.file("steps.parquet"))
    columns: dict[str, list[float | None]] = table.filter(table["valid"].is_valid()).to_pydict()
    return columns


def monitor_picture(steps: Steps) -> bytes:
    """A PNG of six parts: the figures of LINES as lines, and those of RANKS as maps over steps and ranks.

    `steps` are the columns of `steps.parquet` (see `monitors.monitor`). Raises MissingExtraError without matplotlib.
    """
    try:
        with interrupts_wait():
            from matplotlib import style
            from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("the picture of the monitors", "train", error) from error
    with style.context("default"):
        figure = Figure(figsize=INCHES, layout="constrained")
        parts = figure.subplots(2, 3)
        for axes, (title, names) in zip(parts[0], LINES.items(), strict=True):
            _draw_lines(axes, steps, [name for name in names if name in steps])
            axes.set_title(title, fontweight="bold", fontsize=10)
        for axes, (title, prefix) in zip(parts[1], RANKS.items(), strict=True):
            drawn = _draw_ranks(axes, steps, prefix)
            figure.colorbar(drawn, ax=axes)
            axes.set_title(title, fontweight="bold", fontsize=10)
        file = io.BytesIO()
        figure.savefig(file, format="png", dpi=DOTS_PER_INCH)
    return file.getvalue()


def smoothed(values: Sequence[float | None]) -> NDArray[np.float64]:
    """(T,) means over the last steps; NaN where none of them has a value."""
    known = np.array([np.nan if value is None else value for value in values], dtype=np.float64)
    width = max(1, min(SMOOTH, len(known) // 10))
    sums = np.cumsum(np.insert(np.nan_to_num(known), 0, 0.0))
    counts = np.cumsum(np.insert(~np.isnan(known), 0, False))
    ends = np.arange(1, len(known) + 1)
    starts = np.maximum(0, ends - width)
    found = counts[ends] - counts[starts]
    return np.where(found > 0, (sums[ends] - sums[starts]) / np.maximum(found, 1), np.nan)


def _draw_lines(axes: Axes, steps: Steps, names: Sequence[str]) -> None:
    for name in names:
        axes.plot(steps["step"], smoothed(steps[name]), label=name, linewidth=1.5)  # type: ignore[arg-type]
    axes.set_xlabel("step")
    axes.grid(visible=True, color="#dddddd", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=8, frameon=False)


def _draw_ranks(axes: Axes, steps: Steps, prefix: str) -> Any:
    ranks = sorted(int(name.removeprefix(prefix)) for name in steps if name.startswith(prefix))
    cells = np.array([smoothed(steps[f"{prefix}{rank}"]) for rank in ranks])
    axes.set(xlabel="step", ylabel="rank", yticks=range(len(ranks)), yticklabels=ranks)
    return axes.imshow(cells, aspect="auto", cmap="viridis", interpolation="nearest")
