"""The picture of how semantic IDs use their codes."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from gr2.errors import MissingExtraError
from gr2.interrupts import interrupts_wait

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis

__all__ = ["usage_picture"]

INCHES, DOTS_PER_INCH = (13.0, 10.0), 110
CELLS = 256
EVEN: dict[str, Any] = {"color": "#555555", "linestyle": "--", "linewidth": 1.5}

Colour = tuple[float, float, float, float]


def usage_picture(codes: NDArray[np.uint16], levels: Sequence[Mapping[str, Any]], level_size: int) -> bytes:
    """A PNG of `codes` (N, L) below `level_size`, whose `levels` are as `report.level_usage` has them.

    Four parts: the use of each level's codes, how the codes of the first two levels go together, the sizes of the
    groups that share a prefix, and the bits that each level adds. Raises MissingExtraError without matplotlib.
    """
    try:
        with interrupts_wait():
            from matplotlib import colormaps, style
            from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("the picture of the code usage", "train", error) from error
    # Told apart by lightness alone, too; the yellow end is hard to see on white.
    colours = [colormaps["viridis"](0.87 * level / max(1, len(levels) - 1)) for level in range(len(levels))]
    # A person's own style could ask for LaTeX, or for white lines on white.
    with style.context("default"):
        figure = Figure(figsize=INCHES, layout="constrained")
        usage, together, sizes, bits = figure.subplots(2, 2).flat
        _draw_usage(usage, codes, level_size, colours)
        _draw_together(together, codes, levels, level_size)
        _draw_sizes(sizes, codes, colours)
        _draw_bits(bits, levels, level_size, colours)
        for axes in (usage, together, sizes, bits):
            axes.spines[["top", "right"]].set_visible(False)
            axes.title.set_fontweight("bold")
        file = io.BytesIO()
        figure.savefig(file, format="png", dpi=DOTS_PER_INCH)
    return file.getvalue()


def _draw_usage(axes: Axes, codes: NDArray[np.uint16], level_size: int, colours: Sequence[Colour]) -> None:
    even = len(codes) / level_size
    axes.axhline(even, **EVEN, label=f"even use: {even:,.3g} items a code")
    for level, colour in enumerate(colours):
        counts = np.sort(np.bincount(codes[:, level], minlength=level_size))[::-1]
        used = int((counts > 0).sum())
        label = f"level {level + 1}: {used:,} of {level_size:,} codes used"
        axes.plot(np.arange(1, used + 1), counts[:used], color=colour, linewidth=2, label=label)
    axes.set(
        title="How often each code is used",
        xlabel="codes of a level, most used first",
        ylabel="items with the code",
        xlim=(1, level_size),
        # A logarithmic scale needs something to show.
        yscale="log" if len(codes) else "linear",
    )
    axes.xaxis.set_major_formatter("{x:,.0f}")
    _plain_numbers(axes.yaxis)
    axes.legend(frameon=False)


def _draw_together(axes: Axes, codes: NDArray[np.uint16], levels: Sequence[Mapping[str, Any]], level_size: int) -> None:
    from matplotlib import colormaps
    from matplotlib.colors import ListedColormap, LogNorm

    ranks = [_ranks(codes[:, level]) for level in (0, 1)]
    rows, columns = (int(rank.max(initial=0)) + 1 for rank in ranks)
    cells = np.bincount(ranks[0] * columns + ranks[1], minlength=rows * columns).reshape(rows, columns)
    used = [max(1, level["codes_used"]) for level in levels[:2]]
    image = axes.imshow(
        np.ma.masked_equal(cells, 0),
        # From where a cell of one item can be told from an empty one.
        cmap=ListedColormap(colormaps["Blues"](np.linspace(0.3, 1.0, CELLS))),
        norm=LogNorm(1, max(2, int(cells.max()))),
        interpolation="nearest",
        aspect="auto",
        extent=(0, used[1], used[0], 0),
    )
    assert axes.figure is not None
    _plain_numbers(axes.figure.colorbar(image, ax=axes, label="items").ax.yaxis)
    axes.locator_params(integer=True)
    axes.set(
        title=f"First and second codes: {levels[1]['prefixes']:,} of {level_size**2:,} pairs used",
        xlabel="codes of level 2, most used first",
        ylabel="codes of level 1, most used first",
    )


def _draw_sizes(axes: Axes, codes: NDArray[np.uint16], colours: Sequence[Colour]) -> None:
    right = max(2, int(np.bincount(codes[:, 0]).max(initial=0)))
    for level, colour in enumerate(colours):
        label = "first code" if level == 0 else f"first {level + 1} codes" if level + 1 < len(colours) else "whole ID"
        prefixes = np.unique(codes[:, : level + 1], axis=0, return_counts=True)[1]
        sizes, groups = np.unique(prefixes, return_counts=True)
        shares = np.cumsum(sizes * groups) / max(len(codes), 1)
        axes.step(
            [1, *sizes.tolist(), right],
            [0, *shares.tolist(), min(len(codes), 1)],
            where="post",
            color=colour,
            linewidth=2,
            label=label,
        )
    axes.set(
        title="With how many items a prefix is shared",
        xlabel="items that have the same prefix",
        ylabel="share of all items, cumulative",
        xscale="log",
        ylim=(0, 1.03),
    )
    _plain_numbers(axes.xaxis)
    axes.legend(frameon=False, loc="lower right", title="prefix")


def _draw_bits(axes: Axes, levels: Sequence[Mapping[str, Any]], level_size: int, colours: Sequence[Colour]) -> None:
    places, most = np.arange(len(levels)), math.log2(level_size)
    axes.axhline(most, **EVEN, label=f"even use: {most:.4g} bits")
    entropy, added = ([level[key] for level in levels] for key in ("entropy_bits", "added_bits"))
    axes.bar(places, entropy, color=colours, alpha=0.35, label="pale: of the level's codes alone")
    axes.bar(places, added, color=colours, width=0.5, label="full, +: once the codes before are known")
    axes.set(title="Entropy of each level", ylabel="bits", ylim=(0, 1.3 * most))
    labels = zip(range(1, len(levels) + 1), entropy, added, strict=True)
    axes.set_xticks(places, [f"level {level}\n{alone:.2f}\n+{more:.2f}" for level, alone, more in labels])
    axes.legend(frameon=False, loc="upper right")


def _plain_numbers(axis: Axis) -> None:
    """Write the numbers of a logarithmic axis without powers of ten."""
    from matplotlib.ticker import LogFormatter

    axis.set_major_formatter("{x:,.4g}")
    axis.set_minor_formatter(LogFormatter())


def _ranks(codes: NDArray[np.uint16]) -> NDArray[np.int64]:
    """(N,) int64: the place of each code among the used ones, most used first; places are joined to at most 256."""
    _, inverse, counts = np.unique(codes, return_inverse=True, return_counts=True)
    places = np.empty(len(counts), dtype=np.int64)
    places[np.argsort(-counts, kind="stable")] = np.arange(len(counts))
    return places[inverse] // math.ceil(max(1, len(counts)) / CELLS)
