"""Lessons: the reasoner's likelihoods of a list's candidates, kept once made, and mixed with the outcomes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from gr2.artifact import Artifact
from gr2.data.candidates import CandidateLists
from gr2.data.dataset import Dataset
from gr2.models.item_likelihood import item_likelihoods
from gr2.models.reasoner import Reasoner
from gr2.training.distill import DistillConfig, inputs, load_student, run
from gr2.training.student.lessons import Lessons, mixed_worth


def test_worth_is_mixed_row_by_row() -> None:
    worth = np.array([[1.0, 0.0, 0.0], [0.0, 2.0, 0.0], [0.0, 1.0, 0.0]])
    scores = np.array([[0.0, 0.0, -np.inf], [np.log(3.0), 0.0, -np.inf], [-np.inf] * 3], dtype=np.float32)
    np.testing.assert_allclose(
        mixed_worth(worth, scores, 0.5, 1.0), [[0.75, 0.25, 0.0], [0.75, 1.25, 0.0], [0.0, 1.0, 0.0]], atol=1e-6
    )
    np.testing.assert_array_equal(mixed_worth(worth, scores, 0.0, 1.0), worth)
    cold = mixed_worth(worth, scores, 1.0, 0.1)
    assert cold[1, 0] == pytest.approx(2 / (1 + 3.0**-10))


def test_scores_are_likelihoods_and_are_kept(untrained: dict[str, Artifact], tmp_path: Path) -> None:
    dataset = Dataset.load(untrained["prepare"].path)
    codes = untrained["tokenize"].array("codes.npy")
    lists = CandidateLists.load(untrained["prerank"].file("val.parquet")).take(np.arange(3))
    reasoner = Reasoner.load(untrained["midtrain"].file("model"))
    found = Lessons(reasoner, 4, tmp_path).scores(dataset, codes, lists)
    for row in range(3):
        past = dataset.history(int(lists.user[row]), int(lists.position[row]))[-4:]
        alone = item_likelihoods(reasoner, [codes[past].tolist()], [codes[lists.candidates[row]].tolist()])[0]
        np.testing.assert_allclose(found[row], alone, rtol=1e-4)
    (kept,) = tmp_path.iterdir()
    np.save(kept, found + 1)
    np.testing.assert_array_equal(Lessons(reasoner, 4, tmp_path).scores(dataset, codes, lists), found + 1)
    np.testing.assert_array_equal(Lessons(reasoner, 3, tmp_path).scores(dataset, codes, lists) == found + 1, False)


def test_a_reasoner_teaches_the_stage(untrained: dict[str, Artifact], tmp_path: Path) -> None:
    config = DistillConfig(
        dim=8, max_history=6, neighbours=8, vectors=4, folds=3, epochs=0, prior_epochs=1, teacher="midtrain"
    )
    assert inputs(config)[-1] == "midtrain"
    taught = run(replace(config, teacher_weight=1.0, teacher_lists=20), untrained, tmp_path / "taught", 0)
    every = run(replace(config, teacher_weight=1.0), untrained, tmp_path / "every", 0)
    told = run(replace(config, teacher_weight=0.0), untrained, tmp_path / "told", 0)
    alone = run(replace(config, teacher=""), untrained, tmp_path / "alone", 0)
    assert taught.parents["midtrain"] == untrained["midtrain"].digest
    priors = [load_student(each).prior.linear.weight for each in (taught, told, alone, every)]
    assert torch.equal(priors[1], priors[2])
    assert not torch.equal(priors[0], priors[2])
    assert not torch.equal(priors[0], priors[3])


def test_unknown_teachers_are_refused() -> None:
    with pytest.raises(ValueError, match="teacher must be one of midtrain, sft"):
        DistillConfig(teacher="nobody")
