"""Semantic IDs for new items."""

from __future__ import annotations

import dataclasses
import itertools
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from typer.testing import CliRunner

from gr2 import config as configuration
from gr2.artifact import Artifact, file_digest, open_stage
from gr2.catalog import Catalog
from gr2.cli.app import app
from gr2.decoding import Codebook
from gr2.errors import ArtifactError, ConfigError, DataError
from gr2.pipeline import run_lock
from gr2.tokenizer.add import add_items, require_model
from gr2.tokenizer.tokenize import TokenizeConfig, run

METHODS: list[dict[str, Any]] = [
    {"method": "kmeans"},
    {"method": "kmeans", "last_level": "random"},
    {"method": "rqvae", "hidden": (16,), "latent_dim": 8, "epochs": 3},
]


def points(seed: int, scale: float = 1.0) -> NDArray[np.float32]:
    return (scale * np.random.default_rng(seed).normal(size=(50, 6))).astype(np.float32)


def items(path: Path, ids: list[Any]) -> Path:
    pq.write_table(pa.table({"item_id": ids}), path)
    return path


def base(folder: Path, **options: Any) -> dict[str, Artifact]:
    """400 items, 0 to 399, tokenized from vectors; the file has those of 1000 to 1049, like them, and 2000 to 2049."""
    vectors = np.random.default_rng(0).normal(size=(400, 6))
    ids = [*range(400), *range(1000, 1050), *range(2000, 2050)]
    np.savez(folder / "own.npz", item_id=ids, vector=np.concatenate([vectors, points(1), points(2, scale=5.0)]))
    blank: list[Any] = [None] * 400
    with open_stage(folder / "prepare", "prepare", TokenizeConfig(), {}, 0) as work:
        Catalog(list(range(400)), blank, blank, [[]] * 400, blank, blank).save(work.path / "items.parquet")
    inputs = {"prepare": Artifact.load(folder / "prepare")}
    config = TokenizeConfig(vectors=str(folder / "own.npz"), levels=3, level_size=16, **options)
    return inputs | {"tokenize": run(config, inputs, folder / "tokenize", seed=0)}


def ids_of(artifact: Artifact) -> dict[Any, tuple[int, ...]]:
    catalog = Catalog.load(artifact.file("items.parquet"))
    return dict(zip(catalog.ids, map(tuple, np.load(artifact.file("codes.npy")).tolist()), strict=True))


@pytest.mark.parametrize("options", METHODS)
def test_new_items_get_ids_and_no_other_id_changes(tmp_path: Path, options: dict[str, Any]) -> None:
    inputs = base(tmp_path, **options)
    made = add_items(inputs, items(tmp_path / "new.parquet", list(range(1000, 1050))), tmp_path / "added")
    codes = ids_of(made)
    before = np.load(inputs["tokenize"].file("codes.npy"))
    assert [codes[item] for item in range(400)] == list(map(tuple, before.tolist()))
    assert len(set(codes.values())) == len(codes) == 450
    book = Codebook(made.file("codebook.bin"))
    found, known = book.lookup(np.array([7, 1003, 2000]))
    assert known.tolist() == [True, True, False]
    assert [tuple(row) for row in found[:2].tolist()] == [codes[7], codes[1003]]
    assert made.metrics["added"] == 50


@pytest.mark.parametrize("options", METHODS)
def test_items_unlike_the_first_show_in_the_drift(tmp_path: Path, options: dict[str, Any]) -> None:
    inputs = base(tmp_path, **options)
    like = add_items(inputs, items(tmp_path / "a.parquet", list(range(1000, 1050))), tmp_path / "like")
    unlike = add_items(inputs, items(tmp_path / "b.parquet", list(range(2000, 2050))), tmp_path / "unlike")
    assert 0.5 < like.metrics["drift"] < 3.0
    assert unlike.metrics["drift"] > 3.0 * like.metrics["drift"]


def test_additions_follow_each_other(tmp_path: Path) -> None:
    inputs, out = base(tmp_path), tmp_path / "added"
    first = ids_of(add_items(inputs, items(tmp_path / "a.parquet", list(range(1000, 1030))), out))
    made = add_items(inputs, items(tmp_path / "b.parquet", [3, *range(1020, 1050)]), out)
    second = ids_of(made)
    assert made.metrics["added"] == 20
    assert {item: second[item] for item in first} == first
    assert len(set(second.values())) == len(second) == 450
    again = add_items(inputs, tmp_path / "b.parquet", out)
    assert again.metrics["added"] == 0
    assert ids_of(again) == second


def test_the_order_of_new_items_has_no_influence(tmp_path: Path) -> None:
    inputs, new = base(tmp_path), list(range(1000, 1050))
    made = [
        ids_of(add_items(inputs, items(tmp_path / f"{name}.parquet", ids), tmp_path / name))
        for name, ids in (("a", new), ("b", new[::-1]))
    ]
    assert made[0] == made[1]


def test_vectors_of_new_items_may_come_in_another_file(tmp_path: Path) -> None:
    inputs = base(tmp_path)
    new = items(tmp_path / "new.parquet", list(range(3000, 3050)))
    np.savez(tmp_path / "more.npz", item_id=np.arange(3000, 3050), vector=points(3))
    with pytest.raises(DataError, match="50 of the catalogue's 50 items have no vector"):
        add_items(inputs, new, tmp_path / "added")
    made = add_items(inputs, new, tmp_path / "added", wanted(inputs, tmp_path / "more.npz"))
    assert made.metrics["added"] == 50
    np.savez(tmp_path / "wide.npz", item_id=np.arange(3000, 3050), vector=np.ones((50, 7)))
    with pytest.raises(DataError, match="vectors of 7 columns, but the codes were learnt from 6"):
        add_items(inputs, new, tmp_path / "other", wanted(inputs, tmp_path / "wide.npz"))


def test_a_value_that_no_distance_can_be_computed_from_is_refused(tmp_path: Path) -> None:
    inputs, more = base(tmp_path), points(3)
    more[7, 2] = 1e38
    np.savez(tmp_path / "more.npz", item_id=np.arange(3000, 3050), vector=more)
    new = items(tmp_path / "new.parquet", list(range(3000, 3050)))
    with pytest.raises(DataError, match="the vector of item 3007 has a value too large"):
        add_items(inputs, new, tmp_path / "added", wanted(inputs, tmp_path / "more.npz"))


def test_a_kill_at_any_point_changes_no_id_that_was_given(
    tmp_path: Path, kill_at: Callable[[Callable[[], object], int], bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next command adds other items, so that it finds whatever the kill left and cannot repeat what it did."""
    monkeypatch.setattr(os, "fsync", lambda _: None)
    inputs = base(tmp_path)
    first, second, third = (
        items(tmp_path / f"{start}.parquet", list(range(start, start + 10))) for start in (1000, 1010, 1020)
    )
    given = ids_of(add_items(inputs, first, tmp_path / "first"))
    for number in itertools.count(1):
        out = tmp_path / f"{number}" / "added"
        shutil.copytree(tmp_path / "first", out)
        killed = kill_at(lambda out=out: add_items(inputs, second, out), number)  # type: ignore[misc]
        after = ids_of(add_items(inputs, third, out))
        assert {item: after[item] for item in given} == given
        assert len(after) in (420, 430)
        again = ids_of(add_items(inputs, second, out))
        assert {item: again[item] for item in after} == after
        if not killed:
            break
    assert number > 20


@pytest.mark.parametrize("name", ["codes.npy", "items.parquet", "codebook.bin"])
def test_damaged_additions_are_refused_and_kept(tmp_path: Path, name: str) -> None:
    inputs, out = base(tmp_path), tmp_path / "added"
    add_items(inputs, items(tmp_path / "a.parquet", [1000, 1001]), out)
    content = bytearray((out / name).read_bytes())
    content[-3] ^= 1
    (out / name).write_bytes(content)
    with pytest.raises(ArtifactError, match=rf"holds the only IDs of items .*{name}: .* altered"):
        add_items(inputs, items(tmp_path / "b.parquet", [1002]), out)
    assert (out / name).read_bytes() == content


def test_ids_of_another_type_are_refused(tmp_path: Path) -> None:
    inputs = base(tmp_path)
    with pytest.raises(DataError, match="item IDs must be int64"):
        add_items(inputs, items(tmp_path / "new.parquet", ["a", "b"]), tmp_path / "added")


def test_command_adds_items_to_a_run(tmp_path: Path) -> None:
    base(tmp_path)
    items(tmp_path / "new.parquet", list(range(1000, 1050)))
    text = f'[run]\nout = "{tmp_path}"\n[tokenize]\nvectors = "{tmp_path}/own.npz"\nlevels = 3\nlevel_size = 16\n'
    (tmp_path / "run.toml").write_text(text)
    answer = CliRunner().invoke(app, ["tokenize", str(tmp_path / "run.toml"), "--add", str(tmp_path / "new.parquet")])
    assert answer.exit_code == 0, answer.output
    assert "50 items added, 0 had an ID, 450 in all" in answer.stderr
    assert Artifact.load(tmp_path / "tokenize-add", verify=True).metrics["items"] == 450


def test_two_commands_at_once_refuse_each_other(tmp_path: Path) -> None:
    base(tmp_path)
    items(tmp_path / "new.parquet", list(range(1000, 1050)))
    (tmp_path / "run.toml").write_text(f'[run]\nout = "{tmp_path}"\n')
    with run_lock(tmp_path):
        answer = CliRunner().invoke(
            app, ["tokenize", str(tmp_path / "run.toml"), "--add", str(tmp_path / "new.parquet")]
        )
    assert isinstance(answer.exception, ArtifactError)
    assert "another run is at work in this folder" in str(answer.exception)
    assert not (tmp_path / "tokenize-add").exists()


def wanted(inputs: dict[str, Artifact], vectors: Path) -> TokenizeConfig:
    return configuration.build(TokenizeConfig, inputs["tokenize"].config | {"vectors": str(vectors)}, "tokenize")


def test_nothing_new_leaves_the_artefact_alone_and_says_so(tmp_path: Path) -> None:
    inputs, new = base(tmp_path), items(tmp_path / "new.parquet", [5, *range(1000, 1003)])
    first = add_items(inputs, new, tmp_path / "added")
    assert (first.metrics["added"], first.metrics["passed_over"]) == (3, 1)
    record = (tmp_path / "added" / "artifact.json").read_bytes()
    again = add_items(inputs, new, tmp_path / "added")
    assert (again.metrics["added"], again.metrics["passed_over"], again.metrics["drift"]) == (0, 4, None)
    assert (tmp_path / "added" / "artifact.json").read_bytes() == record


def test_settings_that_would_make_other_ids_are_refused(tmp_path: Path) -> None:
    inputs, new = base(tmp_path), items(tmp_path / "new.parquet", [1000])
    changed = dataclasses.replace(wanted(inputs, tmp_path / "own.npz"), level_size=32)
    with pytest.raises(ConfigError, match="level_size is 32, but the IDs were made with 16"):
        add_items(inputs, new, tmp_path / "added", changed)


def test_a_model_that_has_changed_since_is_refused(tmp_path: Path) -> None:
    inputs = base(tmp_path)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    config = TokenizeConfig(model=str(tmp_path / "model"))
    parents = {"file:model/config.json": file_digest(tmp_path / "model" / "config.json")}
    require_model(config, dataclasses.replace(inputs["tokenize"], parents=parents))
    (tmp_path / "model" / "config.json").write_text("[]")
    with pytest.raises(ArtifactError, match=r"config\.json: changed since the IDs were made"):
        require_model(config, dataclasses.replace(inputs["tokenize"], parents=parents))
