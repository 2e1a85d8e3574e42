"""Stage `prepare`: from an items file and an interactions file to a checked, filtered, chronological data set."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from gr2.artifact import Artifact, file_digest, open_stage
from gr2.catalog import hashed_order
from gr2.data.columns import Ids
from gr2.data.dataset import Dataset
from gr2.data.interactions import Interactions, chronological_order, k_core, read_interactions
from gr2.data.items import ItemTable, read_items
from gr2.errors import DataError
from gr2.progress import track

__all__ = ["INPUTS", "PrepareConfig", "prepare", "run", "sources"]

INPUTS: tuple[str, ...] = ()
QUANTILES = (0.0, 0.25, 0.5, 0.75, 0.95, 1.0)


@dataclass(frozen=True)
class PrepareConfig:
    """Settings of the stage.

    Attributes:
        interactions: the interactions file (Parquet, CSV, TSV or JSON Lines). A user's events are ordered by
            `timestamp` where all of them have one, and by `position` otherwise.
        items: the items file; without it the catalogue is the IDs that the interactions name.
        core: keep the largest set in which every user and every item has this many events; 0 keeps every item, even
            one without events, and 1 every item with an event.
        min_events: the fewest events of a user, at least 3 (training, validation, test).
        ties: `shuffle` orders a user's events of equal timestamp by a seeded hash; `stored` keeps the file's order,
            which in many public logs is the order of item IDs and tells the target away.
    """

    interactions: str
    items: str | None = None
    core: int = 5
    min_events: int = 3
    ties: Literal["shuffle", "stored"] = "shuffle"

    def __post_init__(self) -> None:
        if self.core < 0:
            raise ValueError(f"core must be 0 or more, got {self.core}")
        if self.min_events < 3:
            raise ValueError(f"min_events must be 3 or more (training, validation, test), got {self.min_events}")
        if self.ties not in ("shuffle", "stored"):
            raise ValueError(f"ties must be 'shuffle' or 'stored', got {self.ties!r}")


def sources(config: PrepareConfig) -> dict[str, Path]:
    """The files that the stage reads, by the name they have among the artefact's parents."""
    files = {"file:interactions": Path(config.interactions)}
    return files if config.items is None else {**files, "file:items": Path(config.items)}


def run(config: PrepareConfig, inputs: Mapping[str, Artifact], out: Path, seed: int) -> Artifact:  # noqa: ARG001
    """Prepare the data set and write it to the folder `out`; `inputs` is empty.

    `seed` numbers the items and the users and shuffles equal timestamps. Raises DataError at a file that breaks the
    data contract, with its row and column.
    """
    dataset, metrics = prepare(config, seed=seed)
    parents = {name: file_digest(path) for name, path in sources(config).items()}
    with open_stage(out, "prepare", config, parents, seed) as work:
        dataset.save(work.path)
        work.metrics.update(metrics)
    return Artifact.load(out, "prepare")


def prepare(config: PrepareConfig, *, seed: int) -> tuple[Dataset, dict[str, Any]]:
    """The data set and the stage's metrics, with nothing written."""
    start = time.perf_counter()
    with track(4, "prepare", unit="phases") as bar:
        log = read_interactions(Path(config.interactions))
        bar.advance(done="events read")
        table = None if config.items is None else read_items(Path(config.items))
        bar.advance(done="items read")
        table, items = _match_items(log, table, config)
        bar.advance(done="items checked")
        order = chronological_order(log, ties=config.ties, seed=seed)
        bar.advance(done="events ordered")
    read_seconds = time.perf_counter() - start

    users = log.users.codes
    keep = k_core(users, items, user_core=max(config.core, config.min_events), item_core=config.core)
    before = {"users": len(log.users.values), "items": len(table.ids.codes), "events": len(users)}
    if not keep.any():
        counts = ", ".join(f"{count:,} {name}" for name, count in before.items())
        message = (
            f"nothing is left of {counts}: no users with {max(config.core, config.min_events)} events of items with"
            f" {config.core} events (core = {config.core}, min_events = {config.min_events})"
        )
        raise DataError(message, path=config.interactions)
    order = order[keep[order]]

    if len(np.unique(items[order])) < 2:
        raise DataError("all events are of one item, so there is nothing to rank", path=config.interactions)

    kept_users = np.flatnonzero(np.bincount(users[order]))
    kept_items = np.flatnonzero(np.bincount(items[order])) if config.core else np.arange(before["items"])
    user_ids = log.users.values.take(pa.array(kept_users)).to_pylist()
    by_user = hashed_order(user_ids, seed)
    item_ids = table.ids.values.take(pa.array(table.ids.codes[kept_items])).to_pylist()
    by_item = kept_items[hashed_order(item_ids, seed)]
    user_index = _inverse(kept_users[by_user], before["users"])
    item_index = _inverse(by_item, before["items"])

    order = order[np.argsort(user_index[users[order]], kind="stable")]
    lengths = np.bincount(user_index[users[order]], minlength=len(user_ids))
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    timestamps = log.timestamps[order]
    dataset = Dataset(
        catalog=table.catalog(by_item),
        user_ids=[user_ids[row] for row in by_user.tolist()],
        offsets=offsets,
        items=item_index[items[order]].astype(np.int32),
        timestamps=timestamps,
        tied=_tied(timestamps, offsets),
    )
    return dataset, {
        **_metrics(dataset, before),
        "read_seconds": read_seconds,
        "total_seconds": time.perf_counter() - start,
    }


def _match_items(
    log: Interactions, table: ItemTable | None, config: PrepareConfig
) -> tuple[ItemTable, NDArray[np.int64]]:
    """The items, and the row of each event's item (E,) int64, with IDs of one kind."""
    items = log.items
    if table is None:
        items = items.as_kind("int64" if items.is_integral() else "string")
        alone = Ids(np.arange(len(items.values)), items.values, items.kind)
        return ItemTable(alone, pa.table({})), items.codes
    kinds = {items.kind, table.ids.kind}
    if kinds == {"int64", "string"}:
        message = f"is {items.kind} here and {table.ids.kind} in {config.items}; store the IDs of both as one kind"
        raise log.file.error(message, None, "item_id")
    integral = items.is_integral() and table.ids.is_integral()
    kind = next(iter(kinds - {"text"}), "int64" if integral else "string")
    sides = ((items, config.interactions, config.items), (table.ids, config.items, config.interactions))
    for ids, path, other in sides:
        if kind == "int64" and not ids.is_integral():
            row = ids.not_integral()
            message = f"the item IDs in {other} are integers, got {ids.values[ids.codes[row]].as_py()!r}"
            raise DataError(message, path=path, row=row + 1, column="item_id")
    items, known = items.as_kind(kind), table.ids.as_kind(kind)
    rows = _inverse(known.codes, len(known.values))
    found = pc.index_in(items.values, value_set=known.values).to_numpy(zero_copy_only=False)
    unknown = np.isnan(found) if found.dtype.kind == "f" else np.zeros(len(found), np.bool_)
    if unknown.any():
        row = int(np.argmax(unknown[items.codes]))
        message = f"unknown item {items.values[items.codes[row]].as_py()!r}: not in {config.items}"
        raise log.file.error(f"{message} ({int(unknown.sum())} unknown items in all)", row, "item_id")
    return ItemTable(known, table.data), rows[found.astype(np.int64)][items.codes]


def _inverse(values: NDArray[np.int64], size: int) -> NDArray[np.int64]:
    """(size,) int64: where each number stands in `values`, -1 for one that is not there."""
    index = np.full(size, -1, np.int64)
    index[values] = np.arange(len(values))
    return index


def _tied(timestamps: NDArray[np.float64], offsets: NDArray[np.int64]) -> NDArray[np.bool_]:
    last = np.repeat(timestamps[offsets[1:] - 1], np.diff(offsets))
    equal: NDArray[np.int64] = np.add.reduceat((timestamps == last).astype(np.int64), offsets[:-1])
    return equal > 1


def _metrics(dataset: Dataset, before: Mapping[str, int]) -> dict[str, Any]:
    after = {"users": dataset.users, "items": len(dataset.catalog), "events": len(dataset.items)}
    quantiles = np.quantile(dataset.lengths, QUANTILES).tolist()
    return {
        **after,
        "density": after["events"] / (after["users"] * after["items"]),
        "tied_share": float(dataset.tied.mean()),
        "length_quantiles": {
            f"p{round(100 * share)}": value for share, value in zip(QUANTILES, quantiles, strict=True)
        },
        "before": dict(before),
        "filtered": {name: before[name] - count for name, count in after.items()},
    }
