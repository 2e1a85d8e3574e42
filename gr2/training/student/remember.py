"""Making the memory of `gr2.models.memory`: counts of the training split, and vectors of what users and catalogue say.

A training list gets the memory of other users (`cross_fitted_memory`): one that has counted a user's events knows the
user's targets. What the catalogue says is known of every item and needs no folds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.sparse.linalg import svds

from gr2.artifact import Artifact
from gr2.catalog import Catalog
from gr2.data.candidates import CandidateLists
from gr2.data.dataset import Dataset
from gr2.models.evidence import CrossFit, count_copurchases, cross_fitted
from gr2.models.memory import MEMORY, WINDOW, ItemMemory, list_memory
from gr2.models.pairs import Neighbours, strongest, training_events
from gr2.training.teachers.attributes import title_words

__all__ = ["CatalogMemory", "catalog_memory", "code_vectors", "cross_fitted_memory", "item_memory"]

DENSE = 512  # a matrix of at most so many rows is decomposed whole
BATCH = 1024


@dataclass(frozen=True)
class CatalogMemory:
    """The parts of the memory that no user has a share in: see `ItemMemory`."""

    titles: Neighbours
    text: NDArray[np.float32]


def catalog_memory(
    catalog: Catalog, vectors: NDArray[np.float32] | None, *, neighbours: int, dim: int
) -> CatalogMemory:
    """What the catalogue says: the most similar titles, and (N, 2 `dim`) at most of words and of the items' `vectors`.

    Words are those of title, brand and category path, weighted by -log of their share of the items.
    """
    titles = _word_matrix([title_words(title) for title in catalog.title])
    words = _word_matrix(
        [
            title_words(title) | {f"brand {brand}"} | {f"category {level} {name}" for level, name in enumerate(path)}
            for title, brand, path in zip(catalog.title, catalog.brand, catalog.categories, strict=True)
        ]
    )
    parts = [_unit(_reduced(words, dim))]
    if vectors is not None:
        parts.append(_unit(_reduced(vectors.astype(np.float64) - vectors.mean(0), dim)))
    text = _unit(np.concatenate(parts, 1)).astype(np.float32)
    return CatalogMemory(_most_similar(titles, max(1, neighbours)), text)


def code_vectors(tokenize: Artifact) -> NDArray[np.float32] | None:
    """(N, D) float32: the sum of the centroids of each item's codes; None of a tokenizer that has none."""
    if "centroids.npy" not in tokenize.files:
        return None
    centroids, codes = tokenize.array("centroids.npy"), tokenize.array("codes.npy")
    total: NDArray[np.float32] = centroids[np.arange(codes.shape[1]), codes.astype(np.int64)].sum(1)
    return total


def item_memory(
    dataset: Dataset, users: NDArray[np.integer], known: CatalogMemory, *, neighbours: int, dim: int, scale: float = 1.0
) -> ItemMemory:
    """The memory of the training events of `users`, every count times `scale`."""
    owner, items = training_events(dataset, users)
    table = count_copurchases(dataset, users, neighbours=neighbours, scale=scale)
    following = _following(owner, items, len(dataset.catalog)) * scale
    together = _together(owner, items, len(users), len(dataset.catalog), dim)
    norm = np.sqrt(1 + table.popularity)
    return ItemMemory(table, strongest(following, neighbours, norm), known.titles, together, known.text)


def cross_fitted_memory(
    dataset: Dataset,
    codes: NDArray[np.uint16],
    lists: CandidateLists,
    known: CatalogMemory,
    fit: CrossFit,
    *,
    dim: int,
) -> NDArray[np.float32]:
    """`list_memory` of training lists, each with the memory of the users in other folds (see `cross_fitted`)."""

    def columns_of(others: NDArray[np.int64], own: CandidateLists, scale: float) -> NDArray[np.float32]:
        memory = item_memory(dataset, others, known, neighbours=fit.neighbours, dim=dim, scale=scale)
        return list_memory(dataset, codes, own, memory, longest=fit.longest)

    return cross_fitted(dataset, lists, len(MEMORY), fit, columns_of)


def _following(owner: NDArray[np.int64], items: NDArray[np.int32], count: int) -> sparse.csr_matrix:
    """(N, N): F(c, h) in row h and column c."""
    total = sparse.csr_matrix((count, count), dtype=np.float32)
    for distance in range(1, WINDOW + 1):
        first = np.flatnonzero(owner[:-distance] == owner[distance:])
        weight = np.full(len(first), 1 / distance, dtype=np.float32)
        total = total + sparse.csr_matrix((weight, (items[first], items[first + distance])), shape=(count, count))
    return total


def _together(
    owner: NDArray[np.int64], items: NDArray[np.int32], users: int, count: int, dim: int
) -> NDArray[np.float32]:
    """(N, D) float32: unit vectors by the items' users in common, C(a, b) / sqrt((1 + n(a)) (1 + n(b)))."""
    held = sparse.csr_matrix((np.ones(len(owner), np.float64), (owner, items)), shape=(users, count))
    held.data[:] = 1.0
    scale = sparse.diags(1 / np.sqrt(1 + np.asarray(held.sum(0)).ravel()))
    common = held.T @ held
    common = common - sparse.diags(common.diagonal())
    return _unit(_reduced(sparse.csr_matrix(scale @ common @ scale), dim, power=0.5)).astype(np.float32)


def _word_matrix(words: list[frozenset[str]] | list[set[str]]) -> sparse.csr_matrix:
    """(N, W): rows of length 1; a word of one item alone has no weight, since it tells of no other."""
    place: dict[str, int] = {}
    found = [[place.setdefault(word, len(place)) for word in sorted(each)] for each in words]
    owner = np.repeat(np.arange(len(found)), [len(each) for each in found])
    column = np.array([word for each in found for word in each], dtype=np.int64)
    held = np.bincount(column, minlength=max(len(place), 1))
    weight = np.where(held > 1, -np.log(np.maximum(held, 1) / max(len(found), 1)), 0.0)
    matrix = sparse.csr_matrix((weight[column], (owner, column)), shape=(len(found), max(len(place), 1)))
    length = np.sqrt(np.asarray(matrix.multiply(matrix).sum(1)).ravel())
    return sparse.csr_matrix(sparse.diags(np.divide(1.0, length, out=np.zeros_like(length), where=length > 0)) @ matrix)


def _most_similar(matrix: sparse.csr_matrix, count: int) -> Neighbours:
    """Row i: the `count` rows of the largest products with row i."""
    rows, columns, values = [], [], []
    size = min(count + 1, matrix.shape[0])  # an item is its own most similar one
    for first in range(0, matrix.shape[0], BATCH):
        products = (matrix[first : first + BATCH] @ matrix.T).toarray()
        best = np.argpartition(-products, size - 1, axis=1)[:, :size]
        rows.append(np.repeat(np.arange(first, first + len(best)), size))
        columns.append(best.ravel())
        values.append(np.take_along_axis(products, best, 1).ravel())
    triple = (np.concatenate(values), (np.concatenate(rows), np.concatenate(columns)))
    return strongest(
        sparse.csr_matrix(triple, shape=(matrix.shape[0],) * 2), count, np.ones(matrix.shape[0], np.float32)
    )


def _reduced(matrix: Any, dim: int, *, power: float = 1.0) -> NDArray[np.float64]:
    """(N, D), D at most `dim`: the rows of a sparse or dense (N, W) in the space of its largest singular values, which
    are raised to `power`.
    """
    smaller = min(matrix.shape)
    if smaller <= max(DENSE, dim + 1):
        dense = matrix.toarray() if sparse.issparse(matrix) else matrix
        left, values, _ = np.linalg.svd(dense, full_matrices=False)
        left, values = left[:, :dim], values[:dim]
    else:
        start = np.random.default_rng(0).normal(size=smaller)
        left, values, _ = svds(matrix, k=dim, v0=start)
    reduced: NDArray[np.float64] = np.asarray(left * values**power, dtype=np.float64)
    return reduced


def _unit(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rows of length 1; those shorter than can be told from 0 are 0."""
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    unit: NDArray[np.float64] = np.divide(rows, length, out=np.zeros_like(rows), where=length > 1e-9)
    return unit
