"""The stage `distill` on a tiny shop: what it writes, that it resumes and repeats, and what it refuses."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from gr2.artifact import Artifact
from gr2.data.candidates import CandidateLists
from gr2.data.dataset import Dataset
from gr2.errors import ArtifactError, ConfigError, DataError, Gr2Error
from gr2.models.memory import MEMORY
from gr2.training.distill import DistillConfig, load_memory, load_student, remember, run

TINY = DistillConfig(
    dim=8, layers=1, max_history=6, neighbours=8, folds=3, epochs=2, batch=64, negatives=16, prior_epochs=2
)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def tiny_student(tiny_parents: dict[str, Artifact], tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return run(replace(TINY, epochs=0), tiny_parents, tmp_path_factory.mktemp("student") / "distill", 0)


def test_stage_writes_a_student_that_knows_its_validation(tiny_parents: dict[str, Artifact], tmp_path: Path) -> None:
    artifact = run(TINY, tiny_parents, tmp_path / "distill", 0)
    student, memory = load_student(artifact), load_memory(artifact)
    assert student.config.items == len(memory.copurchase.popularity)
    assert not student.training
    metrics = artifact.metrics
    assert metrics["validation_lists"] > 0
    assert metrics["student"]["N@5"] > metrics["incoming"]["N@5"]
    assert set(metrics["weights"]) == {"prior", "head"}


def test_the_same_seed_gives_the_same_artefact(tiny_parents: dict[str, Artifact], tmp_path: Path) -> None:
    first = run(TINY, tiny_parents, tmp_path / "a", 5)
    torch.manual_seed(1234)
    second = run(TINY, tiny_parents, tmp_path / "b", 5)
    assert first.digest == second.digest
    assert run(TINY, tiny_parents, tmp_path / "c", 6).digest != first.digest


def test_no_training_list_is_told_of_its_own_users_events(tiny_parents: dict[str, Artifact]) -> None:
    dataset, codes = Dataset.load(tiny_parents["prepare"].path), tiny_parents["tokenize"].array("codes.npy")
    lists = CandidateLists.load(tiny_parents["prerank"].file("train.parquet"))
    user = int(np.flatnonzero(dataset.lengths > 4)[0])
    held = lists.take(lists.user == user).take(np.arange(1))
    own = slice(int(dataset.offsets[user]) + int(held.position[0]), int(dataset.offsets[user + 1]))
    items = dataset.items.copy()
    items[own] = (items[own] + 7) % len(dataset.catalog)
    told, memory = remember(TINY, dataset, codes, held, seed=0)
    again, changed = remember(TINY, replace(dataset, items=items), codes, held, seed=0)
    np.testing.assert_array_equal(told, again)
    assert not np.array_equal(memory.copurchase.popularity, changed.copurchase.popularity)


def test_the_memory_is_of_all_users_training_events(tiny_parents: dict[str, Artifact]) -> None:
    dataset, codes = Dataset.load(tiny_parents["prepare"].path), tiny_parents["tokenize"].array("codes.npy")
    lists = CandidateLists.load(tiny_parents["prerank"].file("train.parquet")).take(np.arange(3))
    told, memory = remember(TINY, dataset, codes, lists, seed=0)
    held = [set(dataset.events(user)[:-2].tolist()) for user in range(dataset.users)]
    assert memory.copurchase.popularity.tolist() == [
        sum(item in own for own in held) for item in range(len(dataset.catalog))
    ]
    assert told.shape[2] == 3 + len(MEMORY)


def test_training_that_diverges_ends_with_the_reason(tiny_parents: dict[str, Artifact], tmp_path: Path) -> None:
    wild = replace(TINY, learning_rate=1e30, clip=1e30)
    with pytest.raises(
        Gr2Error, match=r"in epoch \d is (nan|inf), so the training has diverged: lower \[distill\] learn"
    ):
        run(wild, tiny_parents, tmp_path / "several", 0)
    with pytest.raises(Gr2Error, match=r"a score of the student's \w+ is .*: lower \[distill\] learning_rate"):
        run(replace(wild, epochs=1, batch=100_000), tiny_parents, tmp_path / "one step", 0)
    assert not (tmp_path / "several").exists()


def test_a_history_of_more_tokens_than_a_bundle_may_have_is_refused(
    tiny_parents: dict[str, Artifact], tmp_path: Path
) -> None:
    levels = tiny_parents["tokenize"].array("codes.npy").shape[1]
    long = replace(TINY, encoding="code", max_history=4096 // levels + 1)
    with pytest.raises(
        ConfigError, match=rf"\[distill\] max_history must be at most {4096 // levels} with one token a"
    ):
        run(long, tiny_parents, tmp_path / "distill", 0)


@pytest.mark.parametrize(("split", "name"), [("train", "training"), ("val", "validation")])
def test_lists_without_any_candidate_are_an_error(
    tiny_parents: dict[str, Artifact], tmp_path: Path, split: str, name: str
) -> None:
    folder = tmp_path / "prerank"
    shutil.copytree(tiny_parents["prerank"].path, folder)
    lists = CandidateLists.load(folder / f"{split}.parquet")
    empty = replace(lists, candidates=lists.candidates[:, :0], scores=lists.scores[:, :0])
    empty.save(folder / f"{split}.parquet")
    parents = {**tiny_parents, "prerank": replace(tiny_parents["prerank"], path=folder)}
    with pytest.raises(DataError, match=f"no {name} list has a candidate"):
        run(TINY, parents, tmp_path / "distill", 0)


@pytest.mark.parametrize(("split", "name"), [("train", "training"), ("val", "validation")])
def test_a_split_without_lists_is_an_error(
    tiny_parents: dict[str, Artifact], tmp_path: Path, split: str, name: str
) -> None:
    folder = tmp_path / "prerank"
    shutil.copytree(tiny_parents["prerank"].path, folder)
    CandidateLists.load(folder / f"{split}.parquet").take(np.arange(0)).save(folder / f"{split}.parquet")
    parents = {**tiny_parents, "prerank": replace(tiny_parents["prerank"], path=folder)}
    with pytest.raises(DataError, match=f"prerank made no {name} list; of impressions"):
        run(TINY, parents, tmp_path / "distill", 0)


@pytest.mark.parametrize("name", ["student.safetensors", "student.json", "counts.npy", "together.npy"])
@pytest.mark.parametrize("content", [b"", b"{}", b"\xff" * 40])
def test_a_damaged_student_names_its_file_and_stage(
    tiny_student: Artifact, tmp_path: Path, name: str, content: bytes
) -> None:
    folder = tmp_path / "distill"
    shutil.copytree(tiny_student.path, folder)
    (folder / name).write_bytes(content)
    damaged = replace(tiny_student, path=folder)
    with pytest.raises(ArtifactError, match=rf"{name}: not .*; run distill again"):
        load_memory(damaged) if name.endswith(".npy") else load_student(damaged)


@pytest.mark.parametrize(
    "bad", [{"folds": 1}, {"dim": 7}, {"epochs": -1}, {"learning_rate": 0.0}, {"warmup": 1.0}, {"slate": 0}]
)
def test_impossible_settings_are_refused(bad: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(bad))):
        DistillConfig(**bad)  # type: ignore[arg-type]
