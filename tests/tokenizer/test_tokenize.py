"""The stage `tokenize`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from gr2.artifact import Artifact, file_digest, open_stage
from gr2.catalog import Catalog, ItemId
from gr2.data.dataset import Dataset
from gr2.decoding import Codebook
from gr2.errors import ConfigError
from gr2.tokenizer.embedding import default_model
from gr2.tokenizer.rqvae import Rqvae
from gr2.tokenizer.tokenize import TokenizeConfig, run, sources

KINDS = ["soap", "comb", "perfume", "nail polish", "shampoo", "lipstick"]
COLOURS = ["red", "blue", "green", "white", "black"]


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GR2_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


def shop(ids: list[ItemId]) -> Catalog:
    """30 items of six kinds in five colours, the kind as category."""
    kinds = [KINDS[row % 6] for row in range(30)]
    titles: list[str | None] = [f"{COLOURS[row % 5]} {kind}" for row, kind in enumerate(kinds)]
    return Catalog(ids, titles, [None] * 30, [["Beauty", kind] for kind in kinds], [None] * 30, [None] * 30)


def prepared(folder: Path, catalog: Catalog) -> dict[str, Artifact]:
    with open_stage(folder / "prepare", "prepare", TokenizeConfig(), {}, 0) as work:
        catalog.save(work.path / "items.parquet")
    return {"prepare": Artifact.load(folder / "prepare")}


def test_texts_become_unique_ids_that_serving_can_look_up(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    catalog = shop([f"B{row:03d}" for row in range(30)])
    config = TokenizeConfig(levels=3, level_size=16)
    artifact = run(config, prepared(tmp_path, catalog), tmp_path / "tokenize", seed=0)
    codes = np.load(artifact.file("codes.npy"))
    assert codes.shape == (30, 3)
    assert codes.dtype == np.uint16
    assert len(np.unique(codes, axis=0)) == 30
    book = Codebook(artifact.file("codebook.bin"))
    assert (book.size, book.levels, book.level_size, book.id_type) == (30, 3, 16, "string")
    found, known = book.lookup(["B007", "unheard of"])
    assert known.tolist() == [True, False]
    np.testing.assert_array_equal(found[0], codes[7])
    assert artifact.metrics["unique"] == 1.0
    assert artifact.metrics["collisions"] == 0
    assert artifact.metrics["category_agreement"]["prefix_1"] > artifact.metrics["category_agreement"]["all_pairs"]
    assert "30 items, 100.00% unique semantic IDs" in capsys.readouterr().err


def test_ids_follow_the_content_and_not_the_catalogues_order_or_ids(tmp_path: Path) -> None:
    catalog = shop(list(range(30)))
    order = np.random.default_rng(0).permutation(30)
    titles, categories = ([column[row] for row in order.tolist()] for column in (catalog.title, catalog.categories))
    renamed = Catalog(list(range(1000, 1030)), titles, [None] * 30, categories, [None] * 30, [None] * 30)
    config = TokenizeConfig(levels=3, level_size=16)
    codes = [
        np.load(run(config, prepared(tmp_path / name, items), tmp_path / name / "out", seed=0).file("codes.npy"))
        for name, items in (("first", catalog), ("second", renamed))
    ]
    np.testing.assert_array_equal(codes[0][order], codes[1])


def test_own_vectors_give_the_same_bytes_for_a_seed(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "own.npz", item_id=np.arange(400)[::-1], vector=rng.normal(size=(400, 8)))
    items = Catalog(list(range(400)), [None] * 400, [None] * 400, [[]] * 400, [None] * 400, [None] * 400)
    config = TokenizeConfig(vectors=str(tmp_path / "own.npz"), level_size=32)
    inputs = prepared(tmp_path, items)
    first, again, other = (run(config, inputs, tmp_path / name, seed) for name, seed in (("a", 1), ("b", 1), ("c", 2)))
    assert first.digest == again.digest
    assert first.digest != other.digest
    assert first.metrics["unique"] == other.metrics["unique"] == 1.0
    assert first.parents["file:vectors"] == file_digest(tmp_path / "own.npz")
    assert np.load(first.file("centroids.npy")).shape == (4, 32, 8)


def test_a_vector_is_rebuilt_from_its_codes(tmp_path: Path) -> None:
    vectors = np.random.default_rng(0).normal(3.0, 2.0, size=(400, 4))
    np.savez(tmp_path / "own.npz", item_id=np.arange(400), vector=vectors)
    items = Catalog(list(range(400)), [None] * 400, [None] * 400, [[]] * 400, [None] * 400, [None] * 400)
    config = TokenizeConfig(vectors=str(tmp_path / "own.npz"), level_size=32)
    artifact = run(config, prepared(tmp_path, items), tmp_path / "out", seed=0)
    codes, centroids, standard = (np.load(artifact.file(f"{name}.npy")) for name in ("codes", "centroids", "standard"))
    rebuilt = sum(centroids[level, codes[:, level]] for level in range(4)) * standard[1] + standard[0]
    assert np.square(rebuilt - vectors).mean() < 0.05 * vectors.var()
    error = artifact.metrics["levels"][-1]["reconstruction_error"]
    assert np.square((rebuilt - vectors) / standard[1]).mean() == pytest.approx(error, rel=1e-3)


RQVAE: dict[str, Any] = {
    "method": "rqvae",
    "levels": 3,
    "level_size": 16,
    "hidden": (16,),
    "latent_dim": 8,
    "epochs": 3,
    "train_batch": 16,
}


def logs(catalog: Catalog, number: NDArray[np.int64], held_out: int = 0) -> Dataset:
    """40 users' events over the items by content; `number` has an item's index in the catalogue."""
    rng, other = np.random.default_rng(0), np.random.default_rng(held_out)
    events = [[*rng.integers(0, 30, size=6), *other.integers(0, 30, size=2)] for _ in range(40)]
    items = number[np.array(events).reshape(-1)].astype(np.int32)
    offsets = np.arange(0, len(items) + 1, 8, dtype=np.int64)
    return Dataset(catalog, list(range(40)), offsets, items, np.zeros(len(items)), np.zeros(40, np.bool_))


def tokenized(folder: Path, dataset: Dataset, **options: Any) -> Artifact:
    with open_stage(folder / "prepare", "prepare", TokenizeConfig(), {}, 0) as work:
        dataset.save(work.path)
    inputs = {"prepare": Artifact.load(folder / "prepare")}
    return run(TokenizeConfig(**options), inputs, folder / "tokenize", seed=0)


def test_rqvae_gives_unique_ids_that_its_files_explain(tmp_path: Path) -> None:
    vectors = np.random.default_rng(0).normal(3.0, 2.0, size=(400, 4))
    np.savez(tmp_path / "own.npz", item_id=np.arange(400), vector=vectors)
    items = Catalog(list(range(400)), [None] * 400, [None] * 400, [[]] * 400, [None] * 400, [None] * 400)
    config = TokenizeConfig(**RQVAE | {"vectors": str(tmp_path / "own.npz"), "epochs": 30})
    artifact = run(config, prepared(tmp_path, items), tmp_path / "out", seed=0)
    codes, centroids, standard = (np.load(artifact.file(f"{name}.npy")) for name in ("codes", "centroids", "standard"))
    assert artifact.metrics["unique"] == 1.0
    model = Rqvae.load(artifact.file("rqvae.safetensors"), config)
    rebuilt = model.decode(sum(centroids[level, codes[:, level]] for level in range(3)))
    errors = [level["reconstruction_error"] for level in artifact.metrics["levels"]]
    assert np.square(rebuilt - (vectors - standard[0]) / standard[1]).mean() == pytest.approx(errors[-1], rel=1e-3)
    assert errors[2] < errors[0] < 1.0


@pytest.mark.parametrize("contrastive", [0.0, 1.0])
def test_rqvae_follows_the_content_and_not_the_catalogues_order_or_ids(tmp_path: Path, contrastive: float) -> None:
    catalog = shop(list(range(30)))
    order = np.random.default_rng(0).permutation(30)
    renamed = Catalog(list(range(1000, 1030)), *list(vars(catalog.take(order)).values())[1:6])
    options = RQVAE | {"contrastive": contrastive}
    first = tokenized(tmp_path / "first", logs(catalog, np.arange(30)), **options)
    second = tokenized(tmp_path / "second", logs(renamed, np.argsort(order)), **options)
    np.testing.assert_array_equal(np.load(first.file("codes.npy"))[order], np.load(second.file("codes.npy")))


def test_contrastive_loss_reads_no_held_out_event(tmp_path: Path) -> None:
    options = RQVAE | {"contrastive": 1.0}
    made = [
        tokenized(tmp_path / str(held_out), logs(shop(list(range(30))), np.arange(30), held_out), **options)
        for held_out in (1, 2)
    ]
    without = tokenized(tmp_path / "without", logs(shop(list(range(30))), np.arange(30)), **RQVAE)
    assert made[0].parents != made[1].parents
    assert made[0].digest == made[1].digest != without.digest


@pytest.mark.parametrize("method", ["kmeans", "rqvae"])
def test_last_level_can_be_random_or_the_nearest(tmp_path: Path, method: str) -> None:
    items = Catalog(list(range(40)), ["soap", "comb"] * 20, [None] * 40, [[]] * 40, [None] * 40, [None] * 40)
    inputs, metrics, codes = prepared(tmp_path, items), {}, {}
    for last_level, random_levels in (("assign", 1), ("random", 1), ("random", 2), ("nearest", 1)):
        key = f"{last_level}-{random_levels}"
        config = TokenizeConfig(
            **RQVAE | {"method": method, "level_size": 32}, last_level=last_level, random_levels=random_levels
        )
        artifact = run(config, inputs, tmp_path / key, seed=0)
        metrics[key], codes[key] = artifact.metrics, np.load(artifact.file("codes.npy"))
    assert [metrics[key]["unique"] for key in metrics] == [1.0, 1.0, 1.0, 0.05]
    assert metrics["nearest-1"]["collisions"] == 38
    np.testing.assert_array_equal(codes["random-1"][:, :2], codes["nearest-1"][:, :2])
    np.testing.assert_array_equal(codes["random-2"][:, :1], codes["nearest-1"][:, :1])
    assert not np.array_equal(codes["assign-1"], codes["random-1"])


def test_items_without_any_text_are_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    items = Catalog([1, 2, 3], ["soap", None, None], [None] * 3, [[]] * 3, [None] * 3, [None] * 3)
    artifact = run(TokenizeConfig(), prepared(tmp_path, items), tmp_path / "out", seed=0)
    assert artifact.metrics["without_content"] == 2
    assert artifact.metrics["unique"] == 1.0
    assert "2 items have no text" in capsys.readouterr().err


def test_sources_name_every_file_read(tmp_path: Path) -> None:
    default = sources(TokenizeConfig())
    assert {"file:model/modules.json", "file:model/model.safetensors"} <= default.keys()
    assert all(path.is_relative_to(default_model()) for path in default.values())
    assert sources(TokenizeConfig(vectors="own.npz")) == {"file:vectors": Path("own.npz")}
    (tmp_path / "config.json").write_text("{}")
    assert sources(TokenizeConfig(model=str(tmp_path))) == {"file:model/config.json": tmp_path / "config.json"}
    with pytest.raises(ConfigError, match="models are not downloaded by name"):
        sources(TokenizeConfig(model="sentence-transformers/all-MiniLM-L6-v2"))


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"model": "m", "vectors": "v.npz"}, "exclude each other"),
        ({"levels": 1}, "levels must be 2 to 8"),
        ({"level_size": 70_000}, "level_size must be 2 to 65536"),
        ({"random_levels": 4}, "random_levels must be 1 to 3, got 4"),
        ({"epochs": 0}, "epochs must be at least 1"),
        ({"iterations": 0}, "iterations must be at least 1"),
    ],
)
def test_settings_that_cannot_work_are_refused(options: dict[str, int | str], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        TokenizeConfig(**options)  # type: ignore[arg-type]
