"""The tables that a person reads on a terminal."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.table import Table

from gr2.metrics import GRADED_METRICS, WEIGHED_METRICS

if TYPE_CHECKING:
    from gr2.catalog import ItemId
    from gr2.serving.ranking import Ranking

__all__ = [
    "evaluation_table",
    "ranking_table",
    "report_table",
    "slate_table",
    "stages_table",
    "steps_table",
    "tokenizer_tables",
]

UNSHOWN = ("Cc", "Cs", "Zl", "Zp")  # control characters, lone surrogates, line and paragraph separators
TITLE_WIDTH = 60
ENDS = 0.1  # the share of a training's steps that its start and its end are
GROUPS, GROUP_ITEMS, SAMPLES, NEIGHBOURS = 5, 3, 4, 3


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
    for group in ("all", "weighed", "untied"):
        figures = metrics.get(group)
        if figures is None:
            continue
        known = WEIGHED_METRICS if group == "weighed" else GRADED_METRICS
        names = [name for name in known if name in figures["difference"]]
        for name in names:
            change = figures["difference"][name]
            label = f"{group} ({figures['slates']:,})" if name == names[0] else ""
            values = (f"{figures['incoming'][name]:.4f}", f"{figures['student'][name]:.4f}", f"{change['mean']:+.4f}")
            interval = f"{change['low']:+.4f} to {change['high']:+.4f}"
            table.add_row(label, name, *values, interval, end_section=name == names[-1])
    return table


def report_table(report: Mapping[str, Any]) -> Table:
    """Each ranker's headline metric, and the student minus it with its interval."""
    quality, metric = report["quality"], report["headline"]
    table = _table(
        f"{metric} on {quality['slates']:,} slates", ("ranker",), (metric, "student minus it", "95 % interval")
    )
    for ranker in quality["rankers"]:
        change = ranker["difference"][metric]
        interval = f"{change['low']:+.4f} to {change['high']:+.4f}"
        table.add_row(escape(ranker["name"]), f"{ranker['means'][metric]:.4f}", f"{change['mean']:+.4f}", interval)
    table.add_row("student", f"{quality['student'][metric]:.4f}", "", "")
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


def tokenizer_tables(report: Mapping[str, Any]) -> list[Table]:
    """The levels of the semantic IDs, the largest groups that share an ID or a prefix, and neighbours of some items.

    `report` is that of `gr2.tokenizer.report`; of groups and samples, the first are shown.
    """
    groups = [_groups_table(report[key]) for key in ("same_id", "same_prefix") if report[key]["groups"]]
    samples = [_samples_table(report["samples"])] if report["samples"] else []
    return [_levels_table(report), *groups, *samples]


def steps_table(stage: str, steps: Mapping[str, Sequence[float | None]]) -> Table:
    """The figures of a training by trying over its first and its last steps, but for those of single ranks."""
    count = max(1, round(ENDS * len(steps["step"])))
    table = _table(f"{stage}: {len(steps['step']):,} steps", ("figure",), (f"first {count}", f"last {count}"))
    for name, values in steps.items():
        known = [value for value in values if value is not None]
        if name not in ("step", "step_time") and not name.rpartition("_")[2].isdigit() and known:
            ends = (known[:count], known[-count:])
            table.add_row(name, *(_number(sum(part) / len(part)) for part in ends))
    return table


def _levels_table(report: Mapping[str, Any]) -> Table:
    summary, levels, agreement = report["summary"], report["levels"], report["category_agreement"]
    table = _table(
        f"Semantic IDs: {summary['items']:,} items, {summary['levels']} codes of {summary['level_size']:,} values",
        ("level",),
        [str(number) for number in range(1, len(levels) + 1)],
    )
    for label, key, form in (
        (f"codes used, of {summary['level_size']:,}", "codes_used", ",d"),
        (f"entropy, of {summary['code_bits']:.4g} bits", "entropy_bits", ".2f"),
        ("its perplexity", "perplexity", ",.1f"),
        ("entropy given the codes before, bits", "added_bits", ".2f"),
        ("share of the most frequent code", "top_share", ".1%"),
        ("prefixes", "prefixes", ",d"),
        ("items of the largest prefix", "largest_prefix", ",d"),
        ("items that share theirs with no other", "alone", ".1%"),
        ("reconstruction error", "reconstruction_error", ".3f"),
    ):
        table.add_row(label, *(format(level[key], form) for level in levels))
    if agreement:
        shares = (agreement.get(f"prefix_{number}") for number in range(1, len(levels) + 1))
        cells = ("" if share is None else f"{share:.1%}" for share in shares)
        table.add_row(f"pairs of one category, {agreement['all_pairs']:.1%} of all", *cells)
    table.caption = (
        f"{summary['unique']:.2%} of the IDs are unique; of plain nearest codes, {summary['nearest_unique']:.2%}. "
        f"{summary['reassigned']:.2%} of the items have another ID than their nearest codes, {summary['overflow']:,} "
        "are in another prefix."
    )
    return table


def _groups_table(groups: Mapping[str, Any]) -> Table:
    shown = groups["largest"][:GROUPS]
    title = f"The largest groups that share {groups['length']} codes"
    table = _table(title, ("codes", "items", "some of them", "title"), ())
    table.caption = f"{len(shown)} of {groups['groups']:,} groups with {groups['items']:,} items."
    for group in shown:
        for place, item in enumerate(group["some"][:GROUP_ITEMS]):
            codes, items = (_codes(group["prefix"]), f"{group['items']:,}") if place == 0 else ("", "")
            table.add_row(codes, items, _shown(str(item["item_id"])), _short(item["title"] or ""))
        table.add_section()
    return table


def _samples_table(samples: Sequence[Mapping[str, Any]]) -> Table:
    table = _table("Items, and those that share the longest prefix", ("shared", "item", "category"), ())
    table.caption = f"{min(len(samples), SAMPLES)} of {len(samples)} samples; green: the same category."
    for sample in samples[:SAMPLES]:
        for item in (sample, *sample["neighbours"][:NEIGHBOURS]):
            title = _short(item["title"] or str(item["item_id"]))
            category = _short(" › ".join(item["categories"][-2:]))
            if item is sample:
                table.add_row(_codes(item["codes"]), f"[bold]{title}[/]", category)
            else:
                category = f"[green]{category}[/]" if item["same_category"] else category
                table.add_row(_codes(item["codes"][: item["shared"]]), title, category)
        table.add_section()
    return table


def _table(title: str, left: Sequence[str], right: Sequence[str]) -> Table:
    table = Table(title=title, title_style="bold", caption_justify="left")
    for heading in left:
        table.add_column(heading)
    for heading in right:
        table.add_column(heading, justify="right")
    return table


def _title(titles: Mapping[ItemId, str], item: ItemId) -> str:
    return _short(titles.get(item) or str(item))


def _codes(codes: Sequence[int]) -> str:
    return " ".join(map(str, codes))


def _short(text: str) -> str:
    return _shown(text if len(text) <= TITLE_WIDTH else text[: TITLE_WIDTH - 1] + "…")


def _shown(text: str) -> str:
    """Others' text for a table: no markup, and a space for each character that would command the terminal."""
    return escape("".join(" " if unicodedata.category(letter) in UNSHOWN else letter for letter in text))


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def _is_figure(key: str, value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and not key.endswith("_seconds")
