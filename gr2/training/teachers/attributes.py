"""Evidence that the catalogue holds: how a candidate's category, brand, price and title go with those of a history.

For a candidate c and a history h_1..h_T (h_T most recent), with d(c, h) the length of the common prefix of two category
paths over that of c's path, p the price, and w(c, h) the cosine of the titles' words, weighted by -log of their share
of the titles,

    mean of d        maximum of d        d(c, h_T)
    share of the history that is of c's brand        whether h_T is
    exp(-|log p(c) - median of log p(h)|)        whether both prices are known
    mean of w        maximum of w        w(c, h_T)

What is unknown counts as 0.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from gr2.catalog import Catalog
from gr2.data.candidates import PADDING, CandidateLists
from gr2.data.dataset import Dataset
from gr2.models.slate import pad_histories

__all__ = ["ATTRIBUTES", "Attributes", "attribute_columns", "title_words"]

ATTRIBUTES = (
    "category_mean",
    "category_max",
    "category_last",
    "brand_share",
    "brand_last",
    "price_closeness",
    "price_known",
    "title_mean",
    "title_max",
    "title_last",
)
DEPTH = 8  # of category paths; what is deeper is not compared
BATCH = 512
WORD = re.compile(r"[^\W\d_][^\W_]{2,}")


def title_words(title: str | None) -> frozenset[str]:
    """The words of a title that can be compared: three letters or more, of any script, without regard to case."""
    return frozenset(WORD.findall((title or "").casefold()))


@dataclass(frozen=True)
class Attributes:
    """A catalogue of N items in numbers.

    `paths` (N, D) int32 are the categories by depth, -1 where there are none; `depth` (N,); `brand` (N,) int32, -1
    where unknown; `price` (N,) float64, the logarithm, NaN where unknown; `titles` a sparse (N, W), rows of length 1.
    """

    paths: NDArray[np.int32]
    depth: NDArray[np.int64]
    brand: NDArray[np.int32]
    price: NDArray[np.float64]
    titles: Any

    @classmethod
    def of(cls, catalog: Catalog) -> Attributes:
        """The attributes of a catalogue's items."""
        count = len(catalog)
        paths = np.full((count, DEPTH), -1, dtype=np.int32)
        known: dict[tuple[str, ...], int] = {}
        for item, path in enumerate(catalog.categories):
            for level in range(min(len(path), DEPTH)):
                paths[item, level] = known.setdefault(tuple(path[: level + 1]), len(known))
        brands: dict[str, int] = {}
        brand = [brands.setdefault(name, len(brands)) if name else -1 for name in catalog.brand]
        price = np.array([np.nan if not value or value <= 0 else np.log(value) for value in catalog.price])
        return cls(paths, (paths >= 0).sum(1), np.array(brand, np.int32), price.astype(float), _title_matrix(catalog))


def _title_matrix(catalog: Catalog) -> Any:
    words: dict[str, int] = {}
    found = [[words.setdefault(word, len(words)) for word in sorted(title_words(title))] for title in catalog.title]
    owner = np.repeat(np.arange(len(found)), [len(each) for each in found])
    column = np.array([word for each in found for word in each], dtype=np.int64)
    weight = -np.log(np.bincount(column, minlength=len(words)) / max(len(catalog), 1))
    matrix = sparse.csr_matrix((weight[column], (owner, column)), shape=(len(found), max(len(words), 1)))
    length = np.sqrt(np.asarray(matrix.multiply(matrix).sum(1)).ravel())
    scale = np.divide(1.0, length, out=np.zeros_like(length), where=length > 0)
    return sparse.csr_matrix(sparse.diags(scale) @ matrix)


def attribute_columns(
    attributes: Attributes, dataset: Dataset, lists: CandidateLists, *, longest: int
) -> NDArray[np.float32]:
    """(R, K, A) float32, A as in `ATTRIBUTES`, of every list's candidates; histories are their newest `longest` items.

    0 where a candidate is padding.
    """
    columns = np.zeros((*lists.candidates.shape, len(ATTRIBUTES)), dtype=np.float32)
    order = np.argsort(lists.position, kind="stable")
    for first in range(0, len(order), BATCH):
        rows = order[first : first + BATCH]
        past, lengths = pad_histories(dataset, lists.user[rows], lists.position[rows], longest)
        columns[rows] = _columns(attributes, past, lengths, lists.candidates[rows])
    return columns


def _columns(
    attributes: Attributes, past: NDArray[np.int64], lengths: NDArray[np.int64], candidates: NDArray[np.int32]
) -> NDArray[np.float32]:
    width = past.shape[1]
    present = (np.arange(width) >= width - lengths[:, None])[:, None]  # (B, 1, T)
    known = candidates != PADDING
    chosen = np.where(known, candidates, 0)
    pairs = np.broadcast_arrays(chosen[:, :, None], past[:, None])  # (B, K, T) each
    path, other = attributes.paths[chosen][:, :, None], attributes.paths[past][:, None]
    same = np.cumprod((path == other) & (path >= 0), axis=-1).sum(-1)
    category = same / np.maximum(attributes.depth[chosen], 1)[:, :, None] * present
    own, theirs = attributes.brand[chosen][:, :, None], attributes.brand[past][:, None]
    brand = (own == theirs) & (own >= 0) & present
    left, right = (attributes.titles[each.ravel()] for each in pairs)
    title = np.asarray(left.multiply(right).sum(1)).reshape(pairs[0].shape) * present
    closeness, priced = _prices(attributes, past, present[:, 0], chosen)
    size = np.maximum(lengths, 1)[:, None]
    columns = [
        category.sum(-1) / size,
        category.max(-1, initial=0.0),
        category[:, :, -1],
        brand.sum(-1) / size,
        brand[:, :, -1],
        closeness,
        priced,
        title.sum(-1) / size,
        title.max(-1, initial=0.0),
        title[:, :, -1],
    ]
    return np.where(known[:, :, None], np.stack(columns, -1), 0).astype(np.float32)


def _prices(
    attributes: Attributes, past: NDArray[np.int64], present: NDArray[np.bool_], chosen: NDArray[np.int32]
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    paid = np.where(present, attributes.price[past], np.nan)
    middle = np.full(len(paid), np.nan)
    some = ~np.isnan(paid).all(1)
    middle[some] = np.nanmedian(paid[some], axis=1)
    gap = np.abs(attributes.price[chosen] - middle[:, None])
    known = ~np.isnan(gap)
    return np.where(known, np.exp(-np.where(known, gap, 0)), 0), known
