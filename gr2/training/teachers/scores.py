"""What evidence says of candidate lists: a score a candidate, and the share that each kind of evidence has in it.

A training list is scored by a model that was fitted without the list's user, from counts without that user.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gr2.data.candidates import PADDING, CandidateLists
from gr2.data.dataset import Dataset
from gr2.features import SCORE_FEATURES
from gr2.models.evidence import (
    EVIDENCE,
    CrossFit,
    count_copurchases,
    cross_fitted_evidence,
    evidence_folds,
    list_evidence,
)
from gr2.models.slate import list_features
from gr2.training.teachers.attributes import ATTRIBUTES, Attributes, attribute_columns
from gr2.training.teachers.listwise import ListwiseModel, fit_listwise

__all__ = ["KINDS", "EvidenceScores", "score_new_lists", "score_training_lists"]

KINDS = ("together", "popularity", "prefix", "category", "brand", "price", "title", "listing")
LISTED = SCORE_FEATURES[1:]  # without `has_score`, which is 1 in every list
MOST_LISTS = 50_000  # that a model is fitted to


@dataclass(frozen=True)
class EvidenceScores:
    """scores (R, K) float32, -inf in the padding; shares (R, K, E) float32, E as in `KINDS`: by how much a kind of
    evidence lifts a candidate above the mean of its list, whose sum over kinds is the score but for a constant a list.
    """

    scores: NDArray[np.float32]
    shares: NDArray[np.float32]


def score_training_lists(
    dataset: Dataset, codes: NDArray[np.uint16], lists: CandidateLists, fit: CrossFit
) -> EvidenceScores:
    """The scores of training lists that hold their target, cross-fitted over folds of users (`evidence_folds`)."""
    columns = _training_columns(dataset, codes, lists, fit)
    fold = evidence_folds(dataset.users, fit.folds, fit.seed)[lists.user]
    scores = np.zeros(lists.candidates.shape, dtype=np.float32)
    shares = np.zeros((*scores.shape, len(KINDS)), dtype=np.float32)
    for number in range(fit.folds):
        own = np.flatnonzero(fold == number)
        model = _fit(columns, lists, np.flatnonzero(fold != number), fit.seed)
        scores[own], shares[own] = _apply(model, columns[own], lists.candidates[own] != PADDING)
    return EvidenceScores(scores, shares)


def score_new_lists(
    dataset: Dataset,
    codes: NDArray[np.uint16],
    train: CandidateLists,
    lists: CandidateLists,
    fit: CrossFit,
) -> EvidenceScores:
    """The scores of validation or test lists by a model fitted to all training lists `train` that hold their target."""
    model = _fit(_training_columns(dataset, codes, train, fit), train, np.arange(len(train)), fit.seed)
    table = count_copurchases(dataset, np.arange(dataset.users), neighbours=fit.neighbours)
    counted = list_evidence(dataset, codes, lists, table, longest=fit.longest)
    columns = _with_the_rest(counted, dataset, lists, fit.longest)
    return EvidenceScores(*_apply(model, columns, lists.candidates != PADDING))


def _training_columns(
    dataset: Dataset, codes: NDArray[np.uint16], lists: CandidateLists, fit: CrossFit
) -> NDArray[np.float32]:
    return _with_the_rest(cross_fitted_evidence(dataset, codes, lists, fit), dataset, lists, fit.longest)


def _with_the_rest(
    counted: NDArray[np.float32], dataset: Dataset, lists: CandidateLists, longest: int
) -> NDArray[np.float32]:
    listed = list_features(lists)[:, :, 1 : len(SCORE_FEATURES)]
    attributes = attribute_columns(Attributes.of(dataset.catalog), dataset, lists, longest=longest)
    return np.concatenate([counted, attributes, listed], -1)


def _fit(columns: NDArray[np.float32], lists: CandidateLists, rows: NDArray[np.int64], seed: int) -> ListwiseModel:
    if len(rows) > MOST_LISTS:
        rows = np.sort(np.random.default_rng(seed).permutation(rows)[:MOST_LISTS])
    return fit_listwise(columns[rows], lists.candidates[rows] != PADDING, lists.label()[rows])


def _apply(
    model: ListwiseModel, columns: NDArray[np.float32], valid: NDArray[np.bool_]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    terms = np.where(valid[..., None], model.terms(columns), 0)
    count = np.maximum(valid.sum(1), 1)[:, None, None]
    centred = np.where(valid[..., None], terms - terms.sum(1, keepdims=True) / count, 0)
    shares = np.stack([centred[..., members].sum(-1) for members in MEMBERS], -1)
    return np.where(valid, centred.sum(-1), -np.inf).astype(np.float32), shares.astype(np.float32)


def _kind(column: str) -> str:
    if column in LISTED:
        return "listing"
    stem = column.partition("_")[0]
    return "together" if stem == "copurchase" else stem


MEMBERS = [
    [place for place, column in enumerate((*EVIDENCE, *ATTRIBUTES, *LISTED)) if _kind(column) == kind] for kind in KINDS
]
