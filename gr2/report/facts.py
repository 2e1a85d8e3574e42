"""What a run was made of and by: its stages, its data, and its semantic IDs."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np

from gr2.artifact import outdated
from gr2.report.run import Run
from gr2.tokenizer.report import SemanticIds, tokenizer_report

__all__ = ["data_facts", "stage_facts", "tokenizer_facts"]

CATEGORIES = 12
BINS = 40


def stage_facts(run: Run) -> list[dict[str, Any]]:
    """Each finished stage: its seed, digest, seconds where it says them, and configuration; and which input is not the
    one that it was made from, None if all are.
    """
    changed = outdated(run.stages)
    return [
        {
            "stage": name,
            "seed": stage.seed,
            "digest": stage.digest[:12],
            "seconds": stage.metrics.get("total_seconds"),
            "config": stage.config,
            "outdated": changed.get(name),
        }
        for name, stage in run.stages.items()
    ]


def data_facts(run: Run) -> dict[str, Any]:
    """Users, items and events, how they are distributed, and what filtering left out."""
    dataset, popularity = run.dataset, run.popularity
    catalog = dataset.catalog
    known = dataset.timestamps[~np.isnan(dataset.timestamps)]
    shares = np.cumsum(np.sort(popularity)[::-1]) / max(1, popularity.sum())
    tenth = max(1, len(popularity) // 10)
    return {
        **run.stages["prepare"].metrics,
        "from": str(np.datetime64(int(known.min()), "s"))[:10] if known.size else None,
        "to": str(np.datetime64(int(known.max()), "s"))[:10] if known.size else None,
        "cold_items": int((popularity == 0).sum()),
        "top_tenth_share": float(shares[tenth - 1]),
        "without_title": sum(title is None for title in catalog.title),
        "lengths": np.bincount(np.minimum(dataset.lengths, BINS)).tolist(),
        "popularity": np.sort(popularity)[::-1][_spread(len(popularity))].tolist(),
        "popularity_ranks": (1 + _spread(len(popularity))).tolist(),
        "categories": _categories(run),
    }


def tokenizer_facts(run: Run) -> dict[str, Any]:
    """The levels of the semantic IDs, and how unique and how coherent they are."""
    report = tokenizer_report(SemanticIds.load(run.stages), samples=0, seed=0)
    return {key: report[key] for key in ("summary", "levels", "category_agreement", "config")}


def _categories(run: Run) -> list[tuple[str, int]]:
    """The most frequent second-level categories (the first is mostly the shop's own name), and their items."""
    paths = [path for path in run.dataset.catalog.categories if path]
    counts = Counter(path[min(1, len(path) - 1)] for path in paths)
    return counts.most_common(CATEGORIES)


def _spread(count: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Some places in 0..count - 1, denser at the start, for logarithmic axes."""
    return np.unique(np.geomspace(1, max(1, count), min(count, 60)).astype(np.int64)) - 1
