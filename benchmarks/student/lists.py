"""The lists that the student is compared on: three sources of training lists, five of test lists.

Beauty's own SASRec, Beauty's mid-trained model, and games18, whose test lists are other people's three rankers', while
training and validation lists come from our own cross-fitted SASRec; what a user has had goes to the end of these test
lists. A source's lists are made once and kept in runs/.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.results import ROOT
from benchmarks.spine.quality import gr2
from gr2.artifact import Artifact
from gr2.data.candidates import PADDING, CandidateLists
from gr2.data.dataset import Dataset
from gr2.data.imported_lists import import_lists
from gr2.models.memory import ItemMemory
from gr2.training.distill import DistillConfig, remember, student_features
from gr2.training.student.remember import code_vectors

__all__ = ["RANKERS", "SOURCES", "Lists", "Source", "load_source"]

SLATE = 10
RANKERS = ("sasrec", "gru4rec", "bpr")
CANDIDATES = ROOT.parent / "shared" / "data" / "games18" / "candidates.parquet"


@dataclass(frozen=True)
class Source:
    """Where lists come from: the run's configuration and stage, and what is changed to fit the benchmark's time."""

    config: str
    stage: str
    settings: tuple[str, ...] = ()
    rankers: tuple[str, ...] = ()


SOURCES = {
    "beauty-sasrec": Source("beauty", "prerank", ("prerank.threads=1", "prerank.folds=2", "prerank.epochs=10")),
    "beauty-midtrain": Source("beauty-reasoner", "midtrain"),
    "games18": Source("games18", "prerank", ("prerank.threads=1", "prerank.epochs=5"), RANKERS),
}


@dataclass(frozen=True, eq=False)
class Lists:
    """A source's lists of ten that hold their targets, `tests` by name, and the (R, K, F) float32 `seen` of each."""

    run: Path
    dataset: Dataset
    codes: NDArray[np.uint16]
    level_size: int
    train: CandidateLists
    val: CandidateLists
    tests: dict[str, CandidateLists]
    seen: dict[str, NDArray[np.float32]]
    memory: ItemMemory

    @property
    def parts(self) -> dict[str, CandidateLists]:
        """All lists by the names that `seen` has."""
        return {"train": self.train, "val": self.val, **self.tests}


@cache
def load_source(name: str, config: DistillConfig) -> Lists:
    """The lists of a source; its run is made first, or gone on with, where it is not complete."""
    source = SOURCES[name]
    settings = [text for each in source.settings for text in ("--set", each)]
    stages = [text for stage in ("prepare", "tokenize", source.stage) for text in ("--only", stage)]
    gr2("run", f"configs/{source.config}.toml", *settings, *stages)
    run = ROOT / "runs" / source.config
    dataset, tokenize = Dataset.load(run / "prepare"), Artifact.load(run / "tokenize", "tokenize")
    codes = tokenize.array("codes.npy")
    made = Artifact.load(run / source.stage, source.stage)
    train, val, test = (_held(CandidateLists.load(made.file(f"{split}.parquet"))) for split in ("train", "val", "test"))
    tests = {name: test}
    if source.rankers:
        tests = {
            f"{name}-{ranker}": _held(
                _seen_last(dataset, import_lists(CANDIDATES, dataset, split="test", ranker=ranker))
            )
            for ranker in source.rankers
        }
    features, memory = remember(config, dataset, codes, train, vectors=code_vectors(tokenize), seed=0)
    longest = config.max_history
    seen = {
        part: student_features(dataset, codes, lists, memory, longest=longest)
        for part, lists in {"val": val, **tests}.items()
    }
    return Lists(
        run, dataset, codes, int(tokenize.config["level_size"]), train, val, tests, {"train": features, **seen}, memory
    )


def _seen_last(dataset: Dataset, lists: CandidateLists) -> CandidateLists:
    """The lists with what the user has had at the end, as no training list has it; scores, of ranks, stay in place."""
    places = zip(lists.user.tolist(), lists.position.tolist(), lists.candidates, strict=True)
    had = np.array([np.isin(items, dataset.history(user, position)) for user, position, items in places])
    late = had.astype(np.int8) + 2 * (lists.candidates == PADDING)
    order = np.argsort(late, axis=1, kind="stable")
    return replace(lists, candidates=np.take_along_axis(lists.candidates, order, axis=1))


def _held(lists: CandidateLists) -> CandidateLists:
    """The lists of ten that hold their target, without the dense features of other rankers."""
    return replace(lists.top(SLATE).with_target(), features=None)
