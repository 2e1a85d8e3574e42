"""A run as a report reads it: the stages that have finished, and the slates that were judged."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from gr2.artifact import Artifact
from gr2.data.candidates import PADDING, CandidateLists
from gr2.data.dataset import Dataset
from gr2.errors import ArtifactError

__all__ = ["Judged", "Run"]


@dataclass(frozen=True)
class Judged:
    """The slates that the evaluation re-ranked, and how.

    `orders` (R, K) int64 has the columns of each slate as the student answered, padding last; None in evaluations that
    did not keep it. `ranks` are the columns of `ranks.parquet`.
    """

    slates: CandidateLists
    orders: NDArray[np.int64] | None
    ranks: dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Run:
    """A run's folder and the artefacts of the stages that have finished there, by name."""

    path: Path
    stages: Mapping[str, Artifact]

    @classmethod
    def load(cls, path: Path, names: tuple[str, ...]) -> Run:
        """The run in folder `path`, of the stages `names`.

        Raises ArtifactError if none has finished there, or if a file is damaged.
        """
        found = {
            name: Artifact.load(path / name, name, verify=True)
            for name in names
            if (path / name / "artifact.json").is_file()
        }
        if not found:
            raise ArtifactError(f"{path}: not a run: no stage has finished here; `gr2 run CONFIG.toml` makes one")
        return cls(path, found)

    @cached_property
    def dataset(self) -> Dataset:
        """The prepared data set."""
        return Dataset.load(self.stages["prepare"].path)

    @cached_property
    def popularity(self) -> NDArray[np.int64]:
        """(N,) int64: the training events of each item."""
        train = np.arange(len(self.dataset.items)) < np.repeat(self.dataset.offsets[1:] - 2, self.dataset.lengths)
        return np.bincount(self.dataset.items[train], minlength=len(self.dataset.catalog))

    @cached_property
    def judged(self) -> Judged:
        """The slates of the evaluation. Raises ArtifactError if its lists are not those of `prerank`."""
        evaluate = self.stages["evaluate"]
        lists = CandidateLists.load(self.stages["prerank"].file(f"{evaluate.metrics['split']}.parquet"))
        slates = lists.top(int(evaluate.metrics["slate"])).with_target()
        table = pq.read_table(evaluate.file("ranks.parquet"))
        if not np.array_equal(table.column("user").to_numpy(), slates.user):
            raise ArtifactError(
                f"{evaluate.path}: made from other lists than {self.stages['prerank'].path}; run it again"
            )
        orders = None
        if "order" in table.column_names:
            orders = np.tile(np.arange(slates.width), (len(slates), 1))
            kept = (slates.candidates != PADDING).sum(1)
            for row, order in enumerate(table.column("order").to_pylist()):
                orders[row, : kept[row]] = order
        ranks = {name: table.column(name).to_numpy() for name in table.column_names if name != "order"}
        return Judged(slates, orders, ranks)

    def title(self, item: int) -> str:
        """What an item is called: its title, or its ID."""
        catalog = self.dataset.catalog
        return catalog.title[item] or str(catalog.ids[item])
