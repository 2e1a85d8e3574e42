"""The contexts of many histories, split by split, so that a stage that was killed does not make a split's again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gr2.data.candidates import CandidateLists
from gr2.data.dataset import Dataset
from gr2.models.compressing import Compressor, Written
from gr2.progress import track
from gr2.prompts.context import Passage, newest
from gr2.prompts.render import ItemView
from gr2.training.reasoner.contexts import Context, Contexts, Place, places_of
from gr2.training.reasoner.reranking import list_slates

__all__ = ["make_contexts"]

EMPTY = Context((), 0, 0)


def make_contexts(
    compressor: Compressor,
    dataset: Dataset,
    codes: NDArray[np.uint16],
    splits: Mapping[str, CandidateLists],
    *,
    checkpoints: Path,
    seed: int,
) -> Contexts:
    """The likeliest context of the history of each list. What the compressor wrote is `refused` where it cannot be
    used; the newest events stand in for it. `checkpoints` keeps whole splits, and belongs to the compressor.
    """
    found: dict[Place, Context] = {}
    for split, lists in splits.items():
        kept = checkpoints / f"contexts-{split}.parquet"
        if not kept.exists():
            histories = [slate.history for slate in list_slates(dataset, codes, lists)]
            made = _make(compressor, histories, f"contexts, {split}", seed)
            Contexts(dict(zip(places_of(lists), made, strict=True))).save(kept)
        found |= Contexts.load(kept).found
    return Contexts(found)


def _make(compressor: Compressor, histories: Sequence[Sequence[ItemView]], name: str, seed: int) -> list[Context]:
    passages = [compressor.passage(history) for history in histories]
    rows = [row for row, passage in enumerate(passages) if passage.items]
    found = dict.fromkeys(range(len(passages)), EMPTY)
    with track(len(rows), name, unit="contexts") as bar:
        for places, written in compressor.write([passages[row] for row in rows], seed=seed):
            for place, each in zip(places, written, strict=True):
                found[rows[place]] = _context(passages[rows[place]], each, compressor.settings.share)
            bar.advance(len(written))
    return [found[row] for row in range(len(passages))]


def _context(passage: Passage, written: Written, share: float) -> Context:
    if written.lines is not None:
        return Context(written.lines, passage.tokens, written.cost)
    picks = newest(passage, passage.budget(share))
    return Context(passage.lines(picks), passage.tokens, passage.cost(picks), refused=True)
