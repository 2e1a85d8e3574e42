"""Stage `evaluate`: how the exported bundle, asked as a server would be, changes the pre-ranker's order."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from gr2.artifact import Artifact, open_stage
from gr2.data.candidates import PADDING, CandidateLists
from gr2.data.dataset import Dataset
from gr2.errors import DataError
from gr2.manifest import MAX_CANDIDATES
from gr2.metrics import compare, compare_ranks, graded_values, metric_values, weighed_values
from gr2.progress import track
from gr2.serving.engine import Engine

__all__ = ["INPUTS", "EvaluateConfig", "engine_orders", "engine_ranks", "order_values", "run"]

INPUTS = ("prepare", "prerank", "export")
FITTED = "The weights of the student's parts were fitted on these lists: its figures are those of data it has seen."


@dataclass(frozen=True)
class EvaluateConfig:
    """`slate` is how many candidates of each list are re-ranked; without `use_scores` the bundle sees no scores."""

    slate: int = 10
    resamples: int = 10_000
    split: Literal["test", "val"] = "test"
    use_scores: bool = True

    def __post_init__(self) -> None:
        if not 2 <= self.slate <= MAX_CANDIDATES:
            raise ValueError(f"slate must be from 2 to {MAX_CANDIDATES:,}, the most of a request, got {self.slate}")
        if self.resamples < 100:
            raise ValueError(f"resamples must be at least 100, got {self.resamples}")


def run(config: EvaluateConfig, inputs: Mapping[str, Artifact], out: Path, seed: int) -> Artifact:
    """The evaluation artefact: metrics of both rankings in `artifact.json`, each slate's two ranks in `ranks.parquet`.

    Only lists whose target is among the top `slate` candidates can be told apart by re-ranking, so only those count.
    Of graded lists, those that have a positive and a negative there; their rank is that of the best positive, and the
    intervals are over users, who may have several. Where the student's clicks were weighed by propensities, `weighed`
    has both rankings by such clicks: those as they are favour the order that was shown. `order` has the columns of each
    slate, best first.
    """
    parents = {name: inputs[name].digest for name in INPUTS}
    with open_stage(out, "evaluate", config, parents, seed) as work:
        dataset = Dataset.load(inputs["prepare"].path)
        lists = CandidateLists.load(inputs["prerank"].file(f"{config.split}.parquet"))
        slates = lists.top(config.slate).with_target()
        if not len(slates):
            raise DataError(
                f"none of {len(lists)} lists has its target among its top {config.slate}: nothing to re-rank"
            )
        engine = Engine(inputs["export"].path)
        began = time.perf_counter()
        incoming = slates.label() + 1
        orders = engine_orders(engine, dataset, slates, use_scores=config.use_scores)
        spent = time.perf_counter() - began
        student = _ranks(orders, slates)
        shuffle = np.random.default_rng(seed).permuted(np.tile(np.arange(slates.width), (len(slates), 1)), axis=1)
        shuffled = engine_orders(engine, dataset, slates, use_scores=config.use_scores, order=shuffle)
        values = order_values(slates, orders)
        kept = slates.candidates != PADDING
        columns = {
            "user": slates.user,
            "incoming": incoming,
            "student": student,
            "order": pa.array([row[own].tolist() for row, own in zip(orders, kept, strict=True)], pa.list_(pa.int16())),
        }
        graded = slates.grades is not None
        looked = inputs["export"].metrics.get("propensities")
        work.metrics |= {
            "split": config.split,
            "lists": len(lists),
            "target_in_candidates": len(lists.with_target()),
            "target_in_slate": len(slates),
            "slate": config.slate,
            "all": compare(
                order_values(slates, np.tile(np.arange(slates.width), (len(slates), 1))),
                values,
                seed,
                name="student",
                resamples=config.resamples,
                users=slates.user if graded else None,
            ),
            "shuffled": {
                "student": {name: float(each.mean()) for name, each in order_values(slates, shuffled).items()},
                "slates_that_differ": int((_ranks(shuffled, slates) != student).sum()),
            },
            "request_seconds": spent / len(slates),
        }
        if graded:
            assert slates.grades is not None
            work.metrics["graded"] = {"positives": float((slates.grades > 0).sum(axis=1).mean())}
            if looked:
                work.metrics["weighed"] = _weighed(slates, orders, looked, seed, config.resamples)
        elif config.split == "test":  # which targets are tied is known of the last events only
            untied = ~dataset.tied[slates.user]
            work.metrics["untied"] = compare_ranks(
                incoming[untied], student[untied], seed, name="student", resamples=config.resamples
            )
            columns["untied"] = untied
        if config.split != "test":
            work.metrics["note"] = FITTED
        pq.write_table(pa.table(columns), work.path / "ranks.parquet")
    return Artifact.load(out, "evaluate")


def _weighed(
    slates: CandidateLists, orders: NDArray[np.int64], propensities: Sequence[float], seed: int, resamples: int
) -> dict[str, Any]:
    """Both rankings by clicks that weigh one over the propensity of their place."""
    gains = slates.gains(np.asarray(propensities))
    return compare(
        weighed_values(gains),
        weighed_values(np.take_along_axis(gains, orders, axis=1)),
        seed,
        name="student",
        resamples=resamples,
        users=slates.user,
        weights=gains.sum(axis=1),
    )


def engine_ranks(
    engine: Engine,
    dataset: Dataset,
    slates: CandidateLists,
    *,
    use_scores: bool,
    order: NDArray[np.int64] | None = None,
) -> NDArray[np.int64]:
    """(R,) int64: the target's rank, from 1, in the engine's answer to each slate, as `engine_orders` has it."""
    return _ranks(engine_orders(engine, dataset, slates, use_scores=use_scores, order=order), slates)


def order_values(slates: CandidateLists, orders: NDArray[np.int64]) -> dict[str, NDArray[np.float64]]:
    """Each metric of each slate, (R,), when its candidates stand as in `orders` (R, K), which are columns."""
    if slates.grades is None:
        return metric_values(_ranks(orders, slates))
    grades, kept = (np.take_along_axis(each, orders, axis=1) for each in (slates.grades, slates.candidates != PADDING))
    return graded_values(grades, kept)


def engine_orders(
    engine: Engine,
    dataset: Dataset,
    slates: CandidateLists,
    *,
    use_scores: bool,
    order: NDArray[np.int64] | None = None,
) -> NDArray[np.int64]:
    """(R, K) int64: the columns of each slate as the engine's answer has them, best first and then the padding.

    With `order` (R, K), row r's candidates are sent in the order of `order[r]`, each with its own score and features.
    """
    ids = dataset.catalog.ids
    limit = engine.bundle.manifest.limits.max_history
    orders = np.tile(np.arange(slates.width), (len(slates), 1))
    with track(len(slates), "evaluate" if order is None else "evaluate, shuffled", unit="slates") as bar:
        for row in range(len(slates)):
            columns = np.flatnonzero(slates.candidates[row] != PADDING)
            if order is not None:
                columns = order[row][np.isin(order[row], columns)]
            history = dataset.history(int(slates.user[row]), int(slates.position[row]))[-limit:]
            ranking = engine.rerank(
                [ids[item] for item in history],
                [ids[item] for item in slates.candidates[row, columns]],
                scores=slates.scores[row, columns] if use_scores else None,
                features=None if slates.features is None else slates.features[row, columns],
            )
            orders[row, : len(columns)] = columns[[item.index for item in ranking.items]]
            bar.advance()
    return orders


def _ranks(orders: NDArray[np.int64], slates: CandidateLists) -> NDArray[np.int64]:
    """(R,) int64: the rank, from 1, of each slate's label."""
    ranks: NDArray[np.int64] = 1 + (orders == slates.label()[:, None]).argmax(axis=1)
    return ranks
