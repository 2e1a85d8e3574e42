"""The exported graphs against the trained student: thousands of requests, real and random, through the serving path."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gr2.data.candidates import PADDING, CandidateLists
from gr2.data.dataset import Dataset
from gr2.decoding import CandidateTrie
from gr2.export.agreement import Comparison
from gr2.export.served import Scorer
from gr2.features import SCORE_FEATURES
from gr2.models.memory import ItemMemory
from gr2.models.scoring import slate_scores
from gr2.models.slate import build_slates, pad_histories
from gr2.models.student import Student
from gr2.progress import track
from gr2.serving.models.query import Query
from gr2.training.distill import student_features

__all__ = ["Asked", "measure_parity", "queries_of", "random_lists"]

BATCH, FEATURES_BATCH = 32, 512
UNKNOWN_WIDTH = 10


@dataclass(frozen=True)
class Asked:
    """What requests are made of: `codes` (N, L) are the items' codes, `memory` what is known of pairs."""

    student: Student
    dataset: Dataset
    codes: NDArray[np.uint16]
    memory: ItemMemory

    def features(self, lists: CandidateLists) -> NDArray[np.float32]:
        """(R, K, 3 + F + E) float32: the student's features."""
        return student_features(self.dataset, self.codes, lists, self.memory, longest=self.student.config.max_history)


def random_lists(dataset: Dataset, count: int, like: CandidateLists, seed: int) -> CandidateLists:
    """Lists of random candidates, as many as the longest of `like` has, after random parts of users' histories.

    Every fourth list has fewer, and where `like` has none it is `UNKNOWN_WIDTH`. The targets are random, too; dense
    features are normal.
    """
    rng = np.random.default_rng(seed)
    items = len(dataset.catalog)
    width = min(like.width or UNKNOWN_WIDTH, items)
    user = rng.integers(0, dataset.users, count)
    position = rng.integers(0, dataset.lengths[user] + 1)
    candidates = np.stack([rng.permutation(items)[:width] for _ in range(count)]).astype(np.int32)
    sizes = np.where(rng.random(count) < 0.25, rng.integers(1, width + 1, count), width)
    padded = np.arange(width) >= sizes[:, None]
    scores = np.sort(rng.normal(size=(count, width)).astype(np.float32), axis=1)[:, ::-1]
    dense = rng.normal(size=(count, width, like.feature_width)).astype(np.float32) if like.feature_width else None
    return CandidateLists(
        user.astype(np.int32),
        position.astype(np.int32),
        rng.integers(0, items, count).astype(np.int32),
        np.where(padded, PADDING, candidates).astype(np.int32),
        np.where(padded, -np.inf, scores).astype(np.float32),
        dense,
    )


def queries_of(asked: Asked, lists: CandidateLists, features: NDArray[np.float32]) -> list[Query]:
    """What the engine would ask the model for each list; `features` are `Asked.features`.

    A graph gets those that are not the memory's, which it must find itself.
    """
    width = len(SCORE_FEATURES) + lists.feature_width
    config = asked.student.config
    queries = []
    for row in range(len(lists)):
        count = int((lists.candidates[row] != PADDING).sum())
        user, position = lists.user[row, None], lists.position[row, None]
        past, _ = pad_histories(asked.dataset, user, position, config.max_history)
        own, known = asked.codes[lists.candidates[row, :count]], np.ones(count, dtype=np.bool_)
        trie = CandidateTrie(own, known, config.level_size)
        queries.append(Query(asked.codes[past[0]], own, known, features[row, :count, :width], trie))
    return queries


def measure_parity(
    asked: Asked, lists: CandidateLists, scorers: Mapping[str, Scorer], *, tolerance: float, labelled: bool
) -> dict[str, Comparison]:
    """Every row of `lists` scored by torch, in padded batches, and by each of `scorers`, by their names.

    Each row needs one candidate at least. `labelled` says that the targets mean something.
    """
    asked.student.eval()
    comparisons = {name: Comparison(tolerance) for name in scorers}
    with track(len(lists), "parity of the graphs", unit="requests") as bar:
        for part, features in _parts(asked, lists):
            expected = _student_scores(asked, part, features)
            queries = queries_of(asked, part, features)
            label = part.label() if labelled else np.full(len(part), -1)
            for name, score in scorers.items():
                for place, found in enumerate(score(queries)):
                    comparisons[name].add(expected[place, : len(found)], found, int(label[place]))
            bar.advance(len(part))
    return comparisons


def _parts(asked: Asked, lists: CandidateLists) -> Iterator[tuple[CandidateLists, NDArray[np.float32]]]:
    """The rows in batches, with their features."""
    for first in range(0, len(lists), FEATURES_BATCH):
        rows = np.arange(first, min(first + FEATURES_BATCH, len(lists)))
        features = asked.features(lists.take(rows))
        for start in range(0, len(rows), BATCH):
            yield lists.take(rows[start : start + BATCH]), features[start : start + BATCH]


def _student_scores(asked: Asked, lists: CandidateLists, features: NDArray[np.float32]) -> NDArray[np.float32]:
    config = asked.student.config
    slates = build_slates(
        asked.dataset, asked.codes, lists, features, level_size=config.level_size, longest=config.max_history
    )
    return slate_scores(asked.student, slates)
