"""The tables that a person reads on a terminal."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.table import Table

from gr2.metrics import METRICS

if TYPE_CHECKING:
    from gr2.catalog import ItemId
    from gr2.serving.ranking import Ranking

__all__ = ["evaluation_table", "ranking_table", "slate_table", "stages_table"]

UNSHOWN = ("Cc", "Cs", "Zl", "Zp")  # control characters, lone surrogates, line and paragraph separators
TITLE_WIDTH = 60


def stages_table(rows: Sequence[tuple[str, str, float, Mapping[str, Any]]]) -> Table:
    """Each stage's name, status, seconds (where it ran) and figures."""
    table = _table("Stages", ("stage", "status"), ("seconds",))
    table.add_column("figures", overflow="fold")
    for name, status, seconds, metrics in rows:
        figures = ", ".join(f"{key} {_number(value)}" for key, value in metrics.items() if _is_figure(key, value))
        table.add_row(name, status, f"{seconds:.1f}" if status == "ran" else "", escape(figures))
    return table


def evaluation_table(metrics: Mapping[str, Any]) -> Table:
    """Both rankings' metrics on all and, of test lists, on untied targets; the difference with its interval."""
    slate = metrics["slate"]
    split = {"val": "validation"}.get(metrics.get("split", "test"), "test")
    table = _table(
        f"The top {slate} of each {split} list, re-ranked",
        ("targets", "metric"),
        ("incoming", "student", "difference", "95 % interval"),
    )
    table.caption = (
        f"{metrics['target_in_slate']:,} of {metrics['lists']:,} lists have the target among their top {slate}, "
        f"{metrics['target_in_candidates']:,} anywhere. Shuffling the input changes the target's rank "
        f"in {metrics['shuffled']['slates_that_differ']:,}."
    )
    if "note" in metrics:
        table.caption += f" {metrics['note']}"
    for group in ("all", "untied"):
        figures = metrics.get(group)
        if figures is None:
            continue
        for name in METRICS:
            change = figures["difference"][name]
            label = f"{group} ({figures['slates']:,})" if name == METRICS[0] else ""
            values = (f"{figures['incoming'][name]:.4f}", f"{figures['student'][name]:.4f}", f"{change['mean']:+.4f}")
            interval = f"{change['low']:+.4f} to {change['high']:+.4f}"
            table.add_row(label, name, *values, interval, end_section=name == METRICS[-1])
    return table


def ranking_table(ranking: Ranking, titles: Mapping[ItemId, str]) -> Table:
    """An answer, best first; `titles` may lack items."""
    milliseconds = ranking.timings.total_ns / 1e6
    table = _table("Ranking", ("", "item", "title"), ("score", "came in as"))
    table.caption = f"bundle {_shown(ranking.bundle_version)}, {milliseconds:.2f} ms in the engine" + (
        f", {ranking.unknown_history} history items unknown" if ranking.unknown_history else ""
    )
    for place, item in enumerate(ranking.items, start=1):
        score = f"{item.score:.3f}" if item.status.name == "SCORED" else "unknown item"
        table.add_row(str(place), _shown(str(item.item_id)), _title(titles, item.item_id), score, str(item.index + 1))
    return table


def slate_table(incoming: Sequence[ItemId], ranking: Ranking, titles: Mapping[ItemId, str], *, target: ItemId) -> Table:
    """The incoming order beside the answer, the item that the user chose marked."""
    table = _table("One request over gRPC", ("", "before: the pre-ranker", "after: the student"), ())
    table.caption = "→ marks what the user really took next"
    for place, (before, after) in enumerate(zip(incoming, ranking.items, strict=False), start=1):
        cells = (
            f"[bold green]→ {_title(titles, item)}[/]" if item == target else f"  {_title(titles, item)}"
            for item in (before, after.item_id)
        )
        table.add_row(str(place), *cells)
    return table


def _table(title: str, left: Sequence[str], right: Sequence[str]) -> Table:
    table = Table(title=title, title_style="bold", caption_justify="left")
    for heading in left:
        table.add_column(heading)
    for heading in right:
        table.add_column(heading, justify="right")
    return table


def _title(titles: Mapping[ItemId, str], item: ItemId) -> str:
    title = titles.get(item) or str(item)
    return _shown(title if len(title) <= TITLE_WIDTH else title[: TITLE_WIDTH - 1] + "…")


def _shown(text: str) -> str:
    """Others' text for a table: no markup, and a space for each character that would command the terminal."""
    return escape("".join(" " if unicodedata.category(letter) in UNSHOWN else letter for letter in text))


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def _is_figure(key: str, value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and not key.endswith("_seconds")
