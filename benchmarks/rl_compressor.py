"""Ranking on Beauty from a fifth of the history's tokens, after `make reasoner`.

`python -m benchmarks.rl_compressor`. A reasoner that is fine-tuned to answer with the ranking alone ranks from whole
histories, from none, from ones shortened without a model, and from a trained compressor's contexts. A run that was
killed goes on where it was, as `gr2 run` does.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyarrow.parquet as pq

from benchmarks.quality import gr2
from benchmarks.reasoner_quality import BASE, CONFIG, METRICS, SHARED, VARIANTS, difference, link, shown
from benchmarks.results import ROOT, Figure, Record, details, store
from gr2.artifact import Artifact

__all__ = ["compressor", "main"]

FOLDER = ROOT / "runs" / "rl" / "compressor"
# Where the same fine-tuned model may be found: of the benchmark of rewards.
RANKING = ROOT / "runs" / "rl" / "ranking"
SHARE = 0.2
PROMPT = {"max_history": 8, "title_words": 4, "reasoning": "false", "knowledge": "false", "threads": 1}
TUNED = PROMPT | {
    "epochs": 4, "batch": 8, "learning_rate": 2e-3, "dropout": 0.1, "validation_lists": 0, "test_lists": -1,
}  # fmt: skip
COMPRESSED = PROMPT | {
    "share": SHARE, "steps": 60, "groups": 8, "samples": 8, "batch": 64, "answer_batch": 64, "redraws": 1,
    "learning_rate": 3e-4, "warm_epochs": 2, "alpha": 0.0, "test_lists": -1,
}  # fmt: skip
TITLES = {
    "whole": "the whole history",
    "empty": "no history",
    "truncated": "truncation: the newest lines, the last one cut",
    "newest": "the newest IDs",
    "covering": "extractive: an event of each category, then the newest",
    "relevant": "extractive: the events most like the candidates",
    "compressed": "the trained compressor",
}
# The technical report's gain in R@3 over its ranker, from contexts of under 20 % of the tokens and from whole ones.
PAPER = "technical report: R@3 +7.71 % from under 20 % of the tokens, +7.14 % from all of them, with large models"


def compressor() -> Record:
    """The compressor at a fifth of the tokens, beside what it must keep up with and what it must beat."""
    link(BASE, FOLDER, SHARED)
    link(next(each.folder for each in VARIANTS if each.name == "rejection, KP"), FOLDER, ("traces",))
    if (RANKING / "sft").is_dir():
        link(RANKING, FOLDER, ("sft",))
    _stage("sft", TUNED)
    _stage("compress", COMPRESSED)
    made = Artifact.load(FOLDER / "compress", "compress")
    test = made.metrics["test"]
    table = pq.read_table(made.file("ranks.parquet"))
    ranks = {name: table[name].to_numpy() for name in ("incoming", *TITLES)}
    share = test["compressed"]["share"]
    figures = [Figure.judge("tokens of contexts, as a share of the histories'", share, SHARE, at_most=True)]
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
        "make rl-compressor",
        figures,
        [_quality(test, ranks), _training(made)],
        _notes(made, test),
    )


def _stage(name: str, settings: Mapping[str, object]) -> None:
    keys = [text for key, value in settings.items() for text in ("--set", f"{name}.{key}={value}")]
    gr2("run", CONFIG, "--set", f"run.out={FOLDER}", *keys, "--only", name)


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


def _notes(made: Artifact, test: Mapping[str, Any]) -> list[str]:
    metrics, warm = made.metrics, made.metrics["warm"]
    losses = ", ".join(f"{epoch['ranking']:.3f}" for epoch in warm["losses"])
    return [
        PAPER,
        "the compressor sees the history alone, so that a context serves every slate of its user; `relevant` sees the "
        "candidates, too",
        f"warm start: {warm['steps']} steps on the covering selections of {metrics['lists']:,} training lists, loss by "
        f"epoch {losses}; then {metrics['steps']} steps of DAPO by the frozen reasoner's verdict; "
        f"{metrics['train_seconds']:.0f} s in all",
        f"one seed; the intervals are over {test['lists']:,} lists and do not hold the spread over seeds",
    ]


def main() -> None:
    """Print the figures and their tables, and store them."""
    record = compressor()
    store(record)
    for figure in record.figures:
        print(f"{figure.what}: {figure.value} (bar {figure.bar}) {figure.status}")
    print("\n".join(details(record)))


if __name__ == "__main__":
    main()
