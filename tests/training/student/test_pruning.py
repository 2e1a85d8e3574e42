"""Depth pruning: which blocks stay, what is learnt from the deeper student, and the stage that does both."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from gr2.artifact import Artifact
from gr2.data.dataset import Dataset
from gr2.models.slate import Slates, build_slates
from gr2.models.student import Encoding, Student, StudentConfig
from gr2.training.distill import DistillConfig, load_student, run
from gr2.training.student.generative import GenerativeTrainer, training_positions
from gr2.training.student.pruning import path_divergence, prune

CONFIG = DistillConfig(
    dim=16, layers=3, max_history=6, neighbours=8, vectors=4, folds=3, epochs=3, batch=64, negatives=16, prior_epochs=1,
    dropout=0.0,
)  # fmt: skip


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def random_student(layers: int) -> Student:
    torch.manual_seed(0)
    student = Student(StudentConfig(items=64, features=4, levels=3, level_size=8, dim=8, max_history=4, layers=layers))
    for parameter in student.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return student.eval()


@pytest.mark.parametrize(("layers", "kept"), [(1, [3]), (2, [1, 3]), (3, [1, 2, 3]), (4, [0, 1, 2, 3])])
def test_blocks_that_stay_are_spread_and_end_with_the_last(layers: int, kept: list[int]) -> None:
    deep = random_student(4)
    shallow = prune(deep, layers)
    assert shallow.config.layers == len(shallow.blocks) == layers
    for place, block in enumerate(kept):
        for name, value in deep.blocks[block].state_dict().items():
            assert torch.equal(shallow.blocks[place].state_dict()[name], value)
    assert torch.equal(shallow.logits, deep.logits)
    assert torch.equal(shallow.head.memory.weight, deep.head.memory.weight)


@pytest.mark.parametrize("layers", [0, 5])
def test_no_student_has_more_blocks_than_it_had(layers: int) -> None:
    with pytest.raises(ValueError, match="layers must be from 1 to the student's 4"):
        prune(random_student(4), layers)


def slates_of(parents: dict[str, Artifact]) -> tuple[Dataset, np.ndarray, Slates]:
    dataset, codes = Dataset.load(parents["prepare"].path), parents["tokenize"].array("codes.npy")
    positions = training_positions(dataset).take(np.arange(20))
    features = np.zeros((20, 1, 4), dtype=np.float32)
    return dataset, codes, build_slates(dataset, codes, positions, features, level_size=8, longest=4)


def test_divergence_is_none_from_itself_and_the_sum_over_levels(tiny_parents: dict[str, Artifact]) -> None:
    slates = slates_of(tiny_parents)[2]
    deep = random_student(2)
    assert path_divergence(deep, deep, slates).abs().max() < 1e-5
    found = path_divergence(deep, prune(deep, 1), slates)
    assert found.shape == (20,)
    assert (found > 0).all()


def test_what_is_left_comes_closer_to_the_deeper_student(tiny_parents: dict[str, Artifact]) -> None:
    dataset, codes, slates = slates_of(tiny_parents)
    torch.manual_seed(0)
    sizes = {"items": len(dataset.catalog), "levels": 3, "level_size": 8}
    deep = Student(StudentConfig(features=4, dim=16, max_history=4, layers=3, **sizes))
    GenerativeTrainer(deep, dataset, codes, CONFIG.recipe(), seed=0).train()
    shallow = prune(deep.eval(), 1)
    before = path_divergence(deep, shallow.eval(), slates).mean()
    GenerativeTrainer(shallow, dataset, codes, CONFIG.recipe(), seed=0, teacher=deep).train()
    assert path_divergence(deep, shallow.eval(), slates).mean() < 0.5 * before


@pytest.mark.parametrize("encoding", ["item", "code"])
def test_the_stage_prunes_and_resumes(tiny_parents: dict[str, Artifact], tmp_path: Path, encoding: Encoding) -> None:
    config = replace(CONFIG, pruned_layers=1, pruned_epochs=1, encoding=encoding)
    first = run(config, tiny_parents, tmp_path / "a", 0)
    assert load_student(first).config.layers == 1
    assert load_student(first).config.encoding == encoding
    assert [len(first.metrics[name]) for name in ("losses", "pruned_losses")] == [CONFIG.epochs, 1]
    before, after = (first.metrics[name][-1]["path"] for name in ("losses", "pruned_losses"))
    assert after < 0.5 * before  # a divergence from the deeper student, no longer from the events
    assert run(config, tiny_parents, tmp_path / "b", 0).digest == first.digest


@pytest.mark.parametrize("left", [-1, 1, 2])
def test_as_many_layers_as_there_are_cannot_be_left(left: int) -> None:
    with pytest.raises(ValueError, match=f"pruned_layers must be fewer than layers, 1, got {left}"):
        DistillConfig(pruned_layers=left)
