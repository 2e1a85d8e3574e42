"""Ranking on Beauty from a fifth of the history's tokens, after `make reasoner`.

`python -m benchmarks.rl.compressor`. The mid-trained reasoner ranks candidates by their likelihood after whole
histories, after none, after ones shortened without a model, and after a trained compressor's contexts. Its answers to
prompts would not do: fine-tuned on a few hundred traces, it hardly ranks better with a history than without. A run that
was killed goes on where it was, as `gr2 run` does.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

import pyarrow.parquet as pq

from benchmarks.reasoner.quality import BASE, CONFIG, METRICS, SHARED, difference, link, shown
from benchmarks.results import ROOT, Figure, Record, details, store
from benchmarks.spine.quality import gr2
from gr2.artifact import Artifact
from gr2.training.reasoner.contexts import CONTEXTS, Contexts

__all__ = ["compressor", "main"]

FOLDER = ROOT / "runs" / "rl" / "compressor"
SHARE = 0.2
SETTINGS = {
    "start": "midtrain", "reasoner": "midtrain", "ranking": "likelihood", "share": SHARE, "alpha": 0.0,
    "max_history": 20, "title_words": 4, "warm": "covering", "warm_epochs": 1, "warm_learning_rate": 5e-4,
    "steps": 100, "groups": 16, "samples": 8, "batch": 64, "answer_batch": 128, "redraws": 1, "temperature": 2.0,
    "learning_rate": 3e-4, "validation_lists": 0, "test_lists": -1, "threads": 1, "checkpoint_seconds": 20.0,
}  # fmt: skip
TITLES = {
    "whole": "the whole history",
    "empty": "no history",
    "truncated": "truncation: the newest events",
    "covering": "extractive: an event of each category, then the newest",
    "relevant": "extractive: the events most like the candidates",
    "compressed": "the trained compressor",
}
# The technical report's gain in R@3 over its ranker, from contexts of under 20 % of the tokens and from whole ones.
PAPER = "technical report: R@3 +7.71 % from under 20 % of the tokens, +7.14 % from all of them, with large models"


def compressor(minutes: float = 0.0) -> Record:
    """The compressor at a fifth of the tokens, beside what it must keep up with and what it must beat."""
    link(BASE, FOLDER, SHARED)
    settings = SETTINGS | {"minutes": minutes}
    keys = [text for key, value in settings.items() for text in ("--set", f"compress.{key}={value}")]
    gr2("run", CONFIG, "--set", f"run.out={FOLDER}", *keys, "--only", "compress")
    made = Artifact.load(FOLDER / "compress", "compress")
    test = made.metrics["test"]
    table = pq.read_table(made.file("ranks.parquet"))
    ranks = {name: table[name].to_numpy() for name in ("incoming", *TITLES)}
    figures = [_within(made)]
    kept = difference(ranks["whole"], ranks["compressed"])
    figures += [
        Figure(f"{metric} from contexts, minus from whole histories", shown(kept[metric]), "interval not below 0",
               "ok" if kept[metric].high >= 0 else "short")
        for metric in ("R@3", "N@5")
    ]  # fmt: skip
    for other in ("truncated", "covering", "relevant"):
        better = difference(ranks[other], ranks["compressed"])["N@5"]
        status = "ok" if better.low > 0 else "short"
        figures.append(
            Figure(f"N@5 from contexts, minus from {TITLES[other]}", shown(better), "interval above 0", status)
        )
    return Record(
        "rl.compressor",
        "The compressor on Beauty, at a fifth of the history's tokens",
        f"python -m benchmarks.rl.compressor --minutes {minutes:g}" if minutes else "make rl-compressor",
        figures,
        [_quality(test, ranks), _training(made)],
        _notes(made, test, ranks),
    )


def _within(made: Artifact) -> Figure:
    """How many contexts keep to the share, or are the one ID that is always allowed."""
    found = list(Contexts.load(made.file(CONTEXTS)).found.values())
    held = sum(each.after <= SHARE * each.before or len(each.lines) == 1 for each in found)
    what = f"contexts of one ID, or of at most {SHARE:.0%} of the history's tokens"
    return Figure(what, f"{held:,} of {len(found):,}", "all", "ok" if held == len(found) else "short")


def _quality(test: Mapping[str, Any], ranks: Mapping[str, Any]) -> dict[str, Any]:
    """Rows of ranking quality, by what the reasoner ranks from."""
    columns = ["ranked from", "tokens", *METRICS, "N@5, minus whole", "R@3, minus whole", "N@5, minus truncated"]
    before = test["incoming"]
    rows = [["the incoming order", "", *(f"{before[name]:.4f}" for name in METRICS), "", "", ""]]
    tokens = test["compressed"]["history_tokens"]
    for kind, title in TITLES.items():
        found = test[kind]
        cost = f"{found['context_tokens']:.0f} ({found['share']:.0%})" if "share" in found else f"{tokens:.0f} (100%)"
        whole, cut = (difference(ranks[other], ranks[kind]) for other in ("whole", "truncated"))
        rows.append(
            [
                title,
                cost,
                *(f"{found['ranking'][name]:.4f}" for name in METRICS),
                *(["", ""] if kind == "whole" else [shown(whole["N@5"]), shown(whole["R@3"])]),
                "" if kind == "truncated" else shown(cut["N@5"]),
            ]
        )
    title = f"Ranking by what is left of the history, {test['lists']:,} test lists that hold their target"
    return {"title": title, "columns": columns, "rows": rows}


def _training(made: Artifact) -> dict[str, Any]:
    """What the judge made of contexts at the start and the end of the training."""
    names = ("reward", "judged/quality", "judged/preservation", "share", "events", "copies/newest", "entropy")
    ends = made.metrics["first_steps"], made.metrics["last_steps"]
    rows = [[name, *(f"{each[name]:.4f}" for each in ends)] for name in names]
    return {"title": "Sampled contexts in training", "columns": ["figure", "first steps", "last steps"], "rows": rows}


def _notes(made: Artifact, test: Mapping[str, Any], ranks: Mapping[str, Any]) -> list[str]:
    metrics, warm = made.metrics, made.metrics["warm"]
    losses = ", ".join(f"{epoch['ranking']:.3f}" for epoch in warm["losses"])
    return [
        PAPER,
        "the reasoner orders candidates by the likelihood of their IDs, which reads no text: contexts are IDs, "
        "histories are counted as such, and those of fewer than five events are above the share with one",
        "the compressor sees the history alone, so that a context serves every slate of its user; `relevant` sees the "
        "candidates, too",
        f"warm start: {warm['steps']} steps on the covering selections of {metrics['lists']:,} training lists, loss by "
        f"epoch {losses}; then {metrics['steps']} of {SETTINGS['steps']} steps "
        "of DAPO by the frozen reasoner's verdict, the others being cut off by the clock where there are fewer; "
        f"{metrics['train_seconds']:.0f} s in all, beside other work on the machine",
        _finding(ranks),
        f"one seed; the intervals are over {test['lists']:,} lists and do not hold the spread over seeds",
    ]


def _finding(ranks: Mapping[str, Any]) -> str:
    """Whether learning by trying has added anything to what needs no model."""
    if difference(ranks["truncated"], ranks["compressed"])["N@5"].low > 0:
        return "the compressor beats truncation at the same cost"
    return (
        "no gain over truncation shows: one or two events are left of most histories, and the newest are hard to beat "
        "by a model of this size, from so few steps; tried: warm starts from the covering selection, sampling at a "
        "temperature of 2 so that other events are tried at all"
    )


def main() -> None:
    """Print the figures and their tables, and store them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=0.0, help="of learning by trying; 0 is to the end")
    record = compressor(parser.parse_args().minutes)
    store(record)
    for figure in record.figures:
        print(f"{figure.what}: {figure.value} (bar {figure.bar}) {figure.status}")
    print("\n".join(details(record)))


if __name__ == "__main__":
    main()
