"""Training an RQ-VAE."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from gr2.errors import ArtifactError
from gr2.tokenizer import rqvae
from gr2.tokenizer.assign import assign_codes
from gr2.tokenizer.pairs import Partners
from gr2.tokenizer.rqvae import Rqvae, fit_rqvae
from gr2.tokenizer.settings import RqvaeSettings

SMALL: dict[str, Any] = {"hidden": (16,), "latent_dim": 8, "epochs": 4, "train_batch": 64}


def clustered(items: int = 256, clusters: int = 8, dim: int = 12) -> NDArray[np.float32]:
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(clusters, dim))
    points = centres[np.arange(items) % clusters] + 0.2 * rng.normal(size=(items, dim))
    return ((points - points.mean(0)) / points.std(0)).astype(np.float32)


def fit(points: NDArray[np.float32], *, seed: int = 0, checkpoint: Path | None = None, **options: Any) -> Rqvae:
    partners = options.pop("partners", None)
    settings = RqvaeSettings(**SMALL | options)
    return fit_rqvae(points, settings, levels=3, level_size=16, seed=seed, partners=partners, checkpoint=checkpoint)


def ring(items: int) -> Partners:
    """The partner of item i is item i + 1."""
    return Partners(np.arange(items + 1, dtype=np.int64), (np.arange(items, dtype=np.int64) + 1) % items)


def error(model: Rqvae, points: NDArray[np.float32]) -> float:
    latents, book = model.encode(points), model.codebook(16)
    codes = assign_codes(latents, book, last_level="nearest").codes
    decoded = model.decode(sum(book.centroids[level, codes[:, level]] for level in range(3)))
    return float(np.square(points - decoded).mean())


@pytest.mark.parametrize("update", ["ema", "ema_step", "gradient"])
def test_training_learns_to_rebuild_the_vectors(update: str) -> None:
    points = clustered()
    assert error(fit(points, codebook_update=update, epochs=40, learning_rate=5e-3), points) < 0.4


SWITCHES: list[dict[str, Any]] = [
    {},
    {"kmeans_init": False},
    {"codebook_update": "gradient"},
    {"codebook_update": "ema_step"},
    {"ema_decay": 0.5},
    {"diversity": 1.0},
    {"kmeans_init": False, "dead_after": 1},
    {"contrastive": 1.0},
    {"commitment": 0.0},
]


def test_every_switch_changes_the_codes_and_each_is_the_same_for_a_seed() -> None:
    points = clustered()
    made = []
    for options in SWITCHES:
        books = [fit(points, partners=ring(len(points)), **options).codebook(16).centroids for _ in range(2)]
        np.testing.assert_array_equal(books[0], books[1])
        made.append(books[0].tobytes())
    assert len(set(made)) == len(SWITCHES)
    assert fit(points, seed=1).codebook(16).centroids.tobytes() not in made


def test_training_leaves_the_global_random_state_alone() -> None:
    before = torch.get_rng_state()
    fit(clustered(64))
    assert torch.equal(before, torch.get_rng_state())


def test_kmeans_initialisation_starts_with_every_code_in_use() -> None:
    points = clustered()
    used = []
    for start in (True, False):
        model = fit(points, kmeans_init=start, epochs=1, learning_rate=1e-6)
        codes = assign_codes(model.encode(points), model.codebook(16), last_level="nearest").codes
        used.append(sum(len(np.unique(codes[:, level])) for level in range(3)))
    assert used[0] == 48
    assert used[1] < used[0]


def test_dead_code_reset_brings_codes_into_use() -> None:
    points = clustered()
    used = []
    for dead_after in (0, 2):
        model = fit(points, kmeans_init=False, dead_after=dead_after, epochs=10)
        codes = assign_codes(model.encode(points), model.codebook(16), last_level="nearest").codes
        used.append(sum(len(np.unique(codes[:, level])) for level in range(3)))
    assert used[1] > used[0]


def test_contrastive_loss_brings_partners_together() -> None:
    points = clustered()
    pairs = np.arange(256) ^ 1
    partners = Partners(np.arange(257, dtype=np.int64), pairs.astype(np.int64))
    cosines = []
    for weight in (0.0, 1.0):
        latents = fit(points, contrastive=weight, partners=partners, epochs=15).encode(points)
        latents /= np.linalg.norm(latents, axis=1, keepdims=True)
        cosines.append(float((latents * latents[pairs]).sum(1).mean() - (latents @ latents.T).mean()))
    assert cosines[1] > cosines[0] + 0.1


def test_contrastive_loss_without_partners_is_refused() -> None:
    with pytest.raises(ValueError, match="needs partners"):
        fit(clustered(64), contrastive=1.0)


def test_items_that_were_never_met_have_no_partner() -> None:
    points = clustered(64)
    nobody = Partners(np.zeros(65, dtype=np.int64), np.zeros(0, dtype=np.int64))
    met = fit(points, contrastive=1.0, partners=nobody).codebook(16).centroids
    np.testing.assert_array_equal(met, fit(points).codebook(16).centroids)


@pytest.mark.parametrize("options", [{"contrastive": 0.5, "dead_after": 2}, {"codebook_update": "ema_step"}])
def test_killed_run_arrives_at_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    points = clustered()
    options["partners"] = ring(len(points))
    whole = fit(points, **options)
    saved = rqvae.save_checkpoint

    def save_and_die(path: Path, state: dict[str, Any]) -> None:
        saved(path, state)
        if state["epoch"] == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(rqvae, "save_checkpoint", save_and_die)
    with pytest.raises(KeyboardInterrupt):
        fit(points, checkpoint=tmp_path / "rqvae.pt", **options)
    resumed = fit(points, checkpoint=tmp_path / "rqvae.pt", **options)
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name


def test_saved_model_encodes_alike(tmp_path: Path) -> None:
    points = clustered()
    model = fit(points)
    model.save(tmp_path / "a.safetensors")
    loaded = Rqvae.load(tmp_path / "a.safetensors", RqvaeSettings(**SMALL))
    np.testing.assert_array_equal(loaded.encode(points), model.encode(points))
    np.testing.assert_array_equal(loaded.codebook(16).centroids, model.codebook(16).centroids)
    with pytest.raises(ArtifactError, match="not an RQ-VAE of these settings"):
        Rqvae.load(tmp_path / "a.safetensors", RqvaeSettings(hidden=(4,)))
    (tmp_path / "b.safetensors").write_bytes(b"garbage")
    with pytest.raises(ArtifactError, match="not an RQ-VAE"):
        Rqvae.load(tmp_path / "b.safetensors", RqvaeSettings(**SMALL))


@pytest.mark.parametrize("items", [1, 3, 40])
def test_small_catalogue_uses_fewer_codes(items: int) -> None:
    points = np.random.default_rng(0).normal(size=(items, 5)).astype(np.float32)
    book = fit(points).codebook(16)
    assert book.centroids.shape == (3, 16, 8)
    assert book.used == (max(1, items // 8),) * 3


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"epochs": 0}, "epochs must be at least 1"),
        ({"learning_rate": 0.0}, "learning_rate must be above 0"),
        ({"diversity": -1.0}, "diversity must be at least 0"),
        ({"hidden": (8, 0)}, "hidden must be widths"),
        ({"ema_decay": 1.0}, "ema_decay must be"),
    ],
)
def test_settings_that_cannot_work_are_refused(options: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        RqvaeSettings(**options)
