from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from gr2.artifact import Artifact, file_digest
from gr2.config import build
from gr2.data.dataset import Dataset
from gr2.data.prepare import PrepareConfig, prepare, run, sources
from gr2.errors import ConfigError, DataError

DAY = 86_400


def write(folder: Path, log: dict[str, object], items: dict[str, object] | None = None) -> dict[str, str]:
    pq.write_table(pa.table(log), folder / "interactions.parquet")
    paths = {"interactions": str(folder / "interactions.parquet")}
    if items is not None:
        pq.write_table(pa.table(items), folder / "items.parquet")
        paths["items"] = str(folder / "items.parquet")
    return paths


def random_log(users: int = 40, items: int = 15, seed: int = 0) -> pa.Table:
    rng = np.random.default_rng(seed)
    rows = [
        {"user_id": f"u{user}", "item_id": f"i{item}", "timestamp": int(day) * DAY}
        for user in range(users)
        for item, day in zip(rng.permutation(items)[:8], np.sort(rng.integers(0, 6, 8)), strict=True)
    ]
    return pa.Table.from_pylist(rows)


def named(dataset: Dataset) -> dict[str, list[str]]:
    return {
        str(user): [str(dataset.catalog.ids[item]) for item in dataset.events(number)]
        for number, user in enumerate(dataset.user_ids)
    }


def test_a_small_log_is_prepared(tmp_path: Path) -> None:
    log = {
        "user_id": ["u", "u", "v", "u", "v", "v", "v"],
        "item_id": ["a", "b", "c", "c", "a", "b", "c"],
        "timestamp": [3, 1, 9, 2, 1, 2, 3],
    }
    dataset, metrics = prepare(PrepareConfig(**write(tmp_path, log), core=0), seed=0)
    assert named(dataset) == {"u": ["b", "c", "a"], "v": ["a", "b", "c", "c"]}
    assert dataset.timestamps[dataset.offsets[dataset.user_ids.index("v")] :].tolist()[:4] == [1, 2, 3, 9]
    assert dataset.catalog.title == [None] * 3
    assert {name: metrics[name] for name in ("users", "items", "events")} == {"users": 2, "items": 3, "events": 7}
    assert metrics["density"] == pytest.approx(7 / 6)
    assert metrics["length_quantiles"]["p0"] == 3.0
    assert metrics["length_quantiles"]["p100"] == 4.0


def test_the_artifact_holds_the_data_set(tmp_path: Path) -> None:
    pq.write_table(random_log(), tmp_path / "log.parquet")
    config = PrepareConfig(interactions=str(tmp_path / "log.parquet"))
    artifact = run(config, {}, tmp_path / "run" / "prepare", 3)
    loaded, (made, metrics) = Dataset.load(artifact.path), prepare(config, seed=3)
    assert loaded.catalog == made.catalog
    assert named(loaded) == named(made)
    assert artifact.parents == {"file:interactions": file_digest(tmp_path / "log.parquet")}
    assert {name for name in artifact.metrics if name.endswith("_seconds")} == {"read_seconds", "total_seconds"}
    assert json.loads(json.dumps(metrics)).keys() == artifact.metrics.keys()
    again = run(config, {}, tmp_path / "again", 3)
    assert again.digest == artifact.digest
    assert Artifact.load(tmp_path / "again", "prepare", verify=True).fingerprint == artifact.fingerprint


def test_sources_are_the_files_that_are_read() -> None:
    assert sources(PrepareConfig(interactions="a.csv")) == {"file:interactions": Path("a.csv")}
    both = sources(PrepareConfig(interactions="a.csv", items="b.csv"))
    assert both == {"file:interactions": Path("a.csv"), "file:items": Path("b.csv")}


@pytest.mark.parametrize(
    ("table", "complaint"),
    [
        ({"interactions": "a", "core": -1}, "core must be 0 or more"),
        ({"interactions": "a", "min_events": 2}, "min_events must be 3 or more"),
        ({"interactions": "a", "ties": "random"}, "ties must be one of 'shuffle', 'stored'"),
        ({"interaction": "a"}, "did you mean 'interactions'"),
        ({}, "needs the key 'interactions'"),
    ],
)
def test_bad_settings_are_refused(table: dict[str, object], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        build(PrepareConfig, table, "prepare")


def test_the_core_filters_users_and_items(tmp_path: Path) -> None:
    log = random_log().to_pylist()
    log += [{"user_id": "rare", "item_id": f"i{n}", "timestamp": n} for n in range(4)]
    log += [{"user_id": f"u{n}", "item_id": "odd", "timestamp": n} for n in range(4)]
    paths = write(tmp_path, pa.Table.from_pylist(log).to_pydict())
    dataset, metrics = prepare(PrepareConfig(**paths), seed=0)
    assert "rare" not in dataset.user_ids
    assert "odd" not in dataset.catalog.ids
    assert dataset.lengths.min() >= 5
    assert np.bincount(dataset.items).min() >= 5
    assert metrics["filtered"] == {"users": 1, "items": 1, "events": 8}
    assert metrics["before"] == {"users": 41, "items": 16, "events": 328}


@pytest.mark.parametrize(("core", "kept"), [(0, {"a", "b", "c", "unsold"}), (1, {"a", "b", "c"})])
def test_items_without_events_stay_only_without_a_core(tmp_path: Path, core: int, kept: set[str]) -> None:
    log = {"user_id": ["u"] * 3, "item_id": ["a", "b", "c"], "timestamp": [1, 2, 3]}
    paths = write(tmp_path, log, {"item_id": ["a", "unsold", "b", "c"], "title": ["A", "U", "B", "C"]})
    dataset, _ = prepare(PrepareConfig(**paths, core=core), seed=0)
    assert set(dataset.catalog.ids) == kept
    assert all(
        title == str(item)[0].upper() for item, title in zip(dataset.catalog.ids, dataset.catalog.title, strict=True)
    )
    assert named(dataset) == {"u": ["a", "b", "c"]}


def test_a_core_that_leaves_nothing_says_what_there_was(tmp_path: Path) -> None:
    log = {"user_id": ["u", "u", "u", "v"], "item_id": ["a", "b", "c", "a"], "timestamp": [1, 2, 3, 4]}
    with pytest.raises(DataError, match=r"nothing is left of 2 users, 3 items, 4 events: .*core = 5"):
        prepare(PrepareConfig(**write(tmp_path, log)), seed=0)


def test_users_with_fewer_than_three_events_are_left_out(tmp_path: Path) -> None:
    log = {"user_id": [1, 1, 2, 2, 2], "item_id": [1, 2, 1, 2, 3], "timestamp": [1, 2, 1, 2, 3]}
    dataset, _ = prepare(PrepareConfig(**write(tmp_path, log), core=0), seed=0)
    assert dataset.user_ids == [2]


def test_nothing_depends_on_the_order_of_the_rows(tmp_path: Path) -> None:
    log = random_log()
    items = pa.table({"item_id": [f"i{n}" for n in range(15)], "title": [f"Item {n}" for n in range(15)]})
    rng = np.random.default_rng(1)
    made = []
    for table, names in ((log, items), (log.take(rng.permutation(len(log))), items.take(rng.permutation(15)))):
        paths = write(tmp_path, table.to_pydict(), names.to_pydict())
        made.append(prepare(PrepareConfig(**paths), seed=5)[0])
    assert made[0].catalog == made[1].catalog
    assert made[0].user_ids == made[1].user_ids
    for name in ("offsets", "items", "timestamps", "tied"):
        np.testing.assert_array_equal(getattr(made[0], name), getattr(made[1], name))


def test_numbers_follow_the_seed_and_not_the_ids(tmp_path: Path) -> None:
    users, items = 300, 200
    log = {
        "user_id": np.repeat(np.arange(users), 10),
        "item_id": (np.arange(10 * users) * 7 + np.arange(10 * users) // items) % items,
        "timestamp": np.tile(np.arange(10), users),
    }
    paths = write(tmp_path, log)
    first, other = (prepare(PrepareConfig(**paths, core=0), seed=seed)[0] for seed in (0, 1))
    assert first.catalog.ids != other.catalog.ids
    for ids in (first.catalog.ids, first.user_ids, other.catalog.ids):
        assert abs(np.corrcoef(np.array(ids), np.arange(len(ids)))[0, 1]) < 0.2
    counts = pc.value_counts(pa.array(log["item_id"])).to_pylist()
    appearance = np.array([first.catalog.index[count["values"]] for count in counts])
    assert abs(np.corrcoef(appearance, np.arange(items))[0, 1]) < 0.2


def test_shuffled_ties_hide_the_order_of_item_ids(tmp_path: Path) -> None:
    users = 500
    log = {
        "user_id": np.repeat(np.arange(users), 4),
        "item_id": np.sort(
            np.random.default_rng(0).permuted(np.tile(np.arange(20), (users, 1)), axis=1)[:, :4]
        ).ravel(),
        "timestamp": np.tile([0, 1, 2, 2], users),
    }
    paths = write(tmp_path, log)
    ascending = {}
    for ties in ("stored", "shuffle"):
        dataset, metrics = prepare(PrepareConfig(**paths, core=0, ties=ties), seed=0)
        ids = np.array(dataset.catalog.ids)[dataset.items].reshape(users, 4)
        ascending[ties] = float(np.mean(ids[:, 3] > ids[:, 2]))
        assert metrics["tied_share"] == 1.0
    assert ascending["stored"] == 1.0
    assert 0.4 < ascending["shuffle"] < 0.6


@pytest.mark.parametrize(
    ("times", "tied"),
    [
        ([1, 2, 3, 3], True),
        ([1, 1, 2, 3], False),
        ([5, 5, 5, 5], True),
        ([None, None, None, None], False),
        ([1, 2, 3, None], False),
        ([4, None, 3, 4], True),
    ],
)
def test_tied_marks_targets_that_share_their_time(tmp_path: Path, times: list[int | None], tied: bool) -> None:
    log = {
        "user_id": ["u"] * 4,
        "item_id": ["a", "b", "c", "d"],
        "timestamp": pa.array(times, pa.int64()),
        "position": [0, 1, 2, 3],
    }
    dataset, _ = prepare(PrepareConfig(**write(tmp_path, log), core=0), seed=0)
    assert dataset.tied.tolist() == [tied]


LOG = {"user_id": ["u"] * 3, "timestamp": [1, 2, 3]}


def test_an_unknown_item_is_refused(tmp_path: Path) -> None:
    paths = write(tmp_path, {**LOG, "item_id": ["a", "x", "b"]}, {"item_id": ["a", "b"]})
    with pytest.raises(
        DataError, match=r"interactions\.parquet, row 2, column 'item_id': unknown item 'x': not in .*items"
    ):
        prepare(PrepareConfig(**paths, core=0), seed=0)


def test_ids_of_two_kinds_are_refused(tmp_path: Path) -> None:
    paths = write(tmp_path, {**LOG, "item_id": ["1", "2", "3"]}, {"item_id": [1, 2, 3]})
    with pytest.raises(
        DataError, match=r"interactions.*column 'item_id': is string here and int64 in .*items\.parquet"
    ):
        prepare(PrepareConfig(**paths, core=0), seed=0)


@pytest.mark.parametrize(
    ("events", "items", "kind"),
    [
        (["1", "2", "3"], ["1", "2", "3", "40"], "int64"),
        (["1", "2", "3"], ["1", "2", "3", "A1"], "string"),
        (["1", "2", "3"], ["1", "2", "3", "007"], "string"),
    ],
)
def test_ids_of_csv_files_get_one_kind(tmp_path: Path, events: list[str], items: list[str], kind: str) -> None:
    rows = "".join(f"5,{item},{time}\n" for time, item in enumerate(events))
    (tmp_path / "log.csv").write_text("user_id,item_id,timestamp\n" + rows)
    (tmp_path / "items.csv").write_text("item_id\n" + "\n".join(items) + "\n")
    config = PrepareConfig(interactions=str(tmp_path / "log.csv"), items=str(tmp_path / "items.csv"), core=0)
    dataset, _ = prepare(config, seed=0)
    assert dataset.catalog.id_type == kind
    assert dataset.user_ids == [5]
    pq.write_table(pa.table({"item_id": pa.array(items)}), tmp_path / "items.parquet")
    typed, _ = prepare(dataclasses.replace(config, items=str(tmp_path / "items.parquet")), seed=0)
    assert typed.catalog.id_type == "string"


def test_csv_ids_that_are_no_integers_do_not_match_integers(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("user_id,item_id,timestamp\nu,1,1\nu,x,2\nu,2,3\n")
    pq.write_table(pa.table({"item_id": [1, 2]}), tmp_path / "items.parquet")
    config = PrepareConfig(interactions=str(tmp_path / "log.csv"), items=str(tmp_path / "items.parquet"), core=0)
    with pytest.raises(DataError, match=r"column 'item_id': .*are integers, got 'x'"):
        prepare(config, seed=0)


@pytest.mark.parametrize("wrong", ["interactions", "items"])
def test_a_padded_id_is_not_the_integer_that_it_looks_like(tmp_path: Path, wrong: str) -> None:
    texts = {name: tmp_path / f"{name}.csv" for name in ("interactions", "items")}
    texts["interactions"].write_text("user_id,item_id,timestamp\nu,7,1\nu,8,2\nu,007,3\n")
    texts["items"].write_text("item_id\n7\n8\n007\n")
    other = "items" if wrong == "interactions" else "interactions"
    paths = write(tmp_path, {"user_id": ["u"] * 3, "item_id": [7, 8, 7], "timestamp": [1, 2, 3]}, {"item_id": [7, 8]})
    config = PrepareConfig(**{wrong: str(texts[wrong]), other: paths[other]}, core=0)
    with pytest.raises(
        DataError, match=rf"{wrong}\.csv, row 3, column 'item_id': .* in .*{other}\.parquet are integers, got '007'"
    ):
        prepare(config, seed=0)


def test_one_item_is_nothing_to_rank(tmp_path: Path) -> None:
    paths = write(tmp_path, {**LOG, "item_id": ["a"] * 3}, {"item_id": ["a", "b"]})
    with pytest.raises(DataError, match="all events are of one item"):
        prepare(PrepareConfig(**paths, core=0), seed=0)


def test_long_inputs_show_their_phases(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = write(tmp_path, {**LOG, "item_id": ["a", "b", "c"]}, {"item_id": ["a", "b", "c"]})
    prepare(PrepareConfig(**paths, core=0), seed=0)
    assert "prepare: 4/4 phases" in capsys.readouterr().err


@pytest.mark.parametrize("missing", ["interactions", "items"])
def test_a_missing_file_is_named(tmp_path: Path, missing: str) -> None:
    paths = write(tmp_path, {**LOG, "item_id": ["a", "b", "c"]}, {"item_id": ["a", "b", "c"]})
    Path(paths[missing]).unlink()
    with pytest.raises(DataError, match=rf"{missing}\.parquet: no such file"):
        run(PrepareConfig(**paths, core=0), {}, tmp_path / "out", 0)
    assert not (tmp_path / "out").exists()


def test_beauty(shared_data: Path) -> None:
    paths = {name: str(shared_data / "beauty" / f"{name}.parquet") for name in ("interactions", "items")}
    dataset, metrics = prepare(PrepareConfig(**paths), seed=0)
    assert (metrics["users"], metrics["items"], metrics["events"]) == (22_363, 12_101, 198_502)
    assert metrics["tied_share"] == pytest.approx(9_701 / 22_363)
    assert metrics["filtered"] == {"users": 0, "items": 0, "events": 0}
    unknown = [np.isnan(dataset.timestamps[start]) for start in dataset.offsets[:-1]]
    assert sum(unknown) == 31
    assert dataset.catalog.title.count(None) == 7
    stored, _ = prepare(PrepareConfig(**paths, ties="stored"), seed=0)
    np.testing.assert_array_equal(stored.tied, dataset.tied)
    last = [np.array(made.catalog.ids, object)[made.items[made.offsets[1:] - 1]] for made in (dataset, stored)]
    np.testing.assert_array_equal((last[0] == last[1])[~dataset.tied], True)
    assert 0.2 < np.mean((last[0] == last[1])[dataset.tied]) < 0.5
