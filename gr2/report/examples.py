"""Slates before and after re-ranking, with titles, and what reasoners said of theirs."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from gr2.data.candidates import PADDING
from gr2.prompts.semantic_id import BEGIN, END, parse_sid
from gr2.report.run import Run

__all__ = ["example_slates", "explanations"]

HISTORY = 6
BETTER, WORSE, SAME = 4, 2, 1
EXPLAINED = 4
REASONERS = ("rl", "opd", "sft")
SID = re.compile(re.escape(BEGIN) + r"(?:<s_[a-h]_\d{1,5}>)+" + re.escape(END))
UNKNOWN = "(an item that is not there)"


def example_slates(run: Run, *, seed: int) -> list[dict[str, Any]]:
    """Some slates that the student improved, some that it spoilt and one that it left, each drawn by `seed`."""
    judged = run.judged
    assert judged.orders is not None
    incoming, student = judged.ranks["incoming"], judged.ranks["student"]
    rng = np.random.default_rng(seed)
    drawn: list[int] = []
    for rows, count in ((student < incoming, BETTER), (student > incoming, WORSE), (student == incoming, SAME)):
        drawn += rng.permutation(np.flatnonzero(rows))[:count].tolist()
    return [_slate(run, row, judged.orders) for row in drawn]


def _slate(run: Run, row: int, orders: NDArray[np.int64]) -> dict[str, Any]:
    slates, ranks = run.judged.slates, run.judged.ranks
    items = slates.candidates[row]
    label = int(slates.label()[row])
    grades = np.zeros(len(items), dtype=np.int64) if slates.grades is None else slates.grades[row].astype(np.int64)
    grades[label] = max(1, int(grades[label]))
    before = [
        {"title": run.title(int(item)), "grade": int(grades[column])}
        for column, item in enumerate(items)
        if item != PADDING
    ]
    after = [
        {**before[column], "moved": int(column) - place}
        for place, column in enumerate(orders[row].tolist())
        if items[column] != PADDING
    ]
    return {
        "history": _history(run, int(slates.user[row]), int(slates.position[row])),
        "events": int(slates.position[row]),
        "incoming": int(ranks["incoming"][row]),
        "student": int(ranks["student"][row]),
        "before": before,
        "after": after,
    }


def explanations(run: Run, *, seed: int) -> list[dict[str, Any]]:
    """Answers of the run's last reasoner that explains: its words, with titles for semantic IDs, and its order."""
    for stage in REASONERS:
        if stage not in run.stages:
            continue
        table = pq.read_table(run.stages[stage].file("ranks.parquet")).to_pydict()
        rows = [row for row, answer in enumerate(table["answer"]) if answer and "explanation" in answer]
        if rows:
            titles = _titles_by_codes(run)
            drawn = np.random.default_rng(seed).permutation(rows)[:EXPLAINED].tolist()
            return [{"stage": stage, **_answer(run, table, row, titles)} for row in drawn]
    return []


def _answer(run: Run, table: Mapping[str, Any], row: int, titles: Mapping[tuple[int, ...], str]) -> dict[str, Any]:
    user, answer = table["user"][row], table["answer"][row]
    position = table["position"][row] if "position" in table else int(run.dataset.lengths[user]) - 1
    try:
        values = json.loads(answer)
        said, ranked = str(values["explanation"]), [str(each) for each in values["recommendations"]]
    except (ValueError, KeyError, TypeError):
        said, ranked = answer, []
    target = int(run.dataset.events(user)[position])
    return {
        "history": _history(run, user, position),
        "target": run.title(target),
        "incoming": table["incoming"][row],
        "reasoner": table["reasoner"][row],
        "refused": table["refused"][row] if "refused" in table else None,
        "explanation": SID.sub(lambda found: f"\u201c{_titled(found.group(), titles)}\u201d", said),
        "order": [_titled(each, titles) for each in ranked],
    }


def _titled(text: str, titles: Mapping[tuple[int, ...], str]) -> str:
    levels = len(next(iter(titles), ()))
    try:
        return titles.get(parse_sid(text, levels, 1 << 16), UNKNOWN)
    except ValueError:
        return UNKNOWN


def _titles_by_codes(run: Run) -> dict[tuple[int, ...], str]:
    codes = run.stages["tokenize"].array("codes.npy").tolist()
    return {tuple(own): run.title(item) for item, own in enumerate(codes)}


def _history(run: Run, user: int, position: int) -> list[str]:
    """The titles of the newest events before a position, oldest first."""
    return [run.title(int(item)) for item in run.dataset.history(user, position)[-HISTORY:]]
