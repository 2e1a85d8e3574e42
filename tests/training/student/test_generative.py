"""Training on positions: which they are, what the losses are, and that a killed run continues bit for bit."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from gr2.catalog import Catalog
from gr2.data.dataset import Dataset
from gr2.models.slate import build_slates
from gr2.models.student import Student, StudentConfig
from gr2.training.student.generative import GenerativeTrainer, Recipe, head_loss, training_positions

ITEMS, SIZE = 20, 4
RECIPE = Recipe(
    epochs=2,
    batch=32,
    negatives=8,
    learning_rate=1e-2,
    weight_decay=0.01,
    warmup=0.1,
    clip=1.0,
    checkpoint_seconds=0.0,
)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def make_dataset(users: int = 25) -> Dataset:
    """Users walk through the items in order, so the next item is known."""
    rng = np.random.default_rng(0)
    ids: list[int | str] = list(range(ITEMS))
    catalog = Catalog(ids, [None] * ITEMS, [None] * ITEMS, [[] for _ in ids], [None] * ITEMS, [None] * ITEMS)
    lengths = rng.integers(4, 10, users)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    starts = rng.integers(0, ITEMS, users)
    items = np.concatenate([(s + np.arange(n)) % ITEMS for s, n in zip(starts, lengths, strict=True)])
    nothing = np.full(len(items), np.nan)
    return Dataset(catalog, list(range(users)), offsets, items.astype(np.int32), nothing, np.zeros(users, np.bool_))


def make_codes() -> np.ndarray:
    return np.stack(np.unravel_index(np.arange(ITEMS), (SIZE, SIZE, SIZE)), 1).astype(np.uint16)


def make_student() -> Student:
    torch.manual_seed(7)
    return Student(StudentConfig(items=ITEMS, features=3, levels=3, level_size=SIZE, dim=8, layers=1, max_history=6))


def make_trainer(student: Student, recipe: Recipe = RECIPE, checkpoint: Path | None = None) -> GenerativeTrainer:
    return GenerativeTrainer(student, make_dataset(), make_codes(), recipe, seed=3, checkpoint=checkpoint)


def test_positions_are_the_training_events() -> None:
    dataset = make_dataset()
    positions = training_positions(dataset)
    found = list(zip(positions.user.tolist(), positions.position.tolist(), positions.target.tolist(), strict=True))
    assert found == [
        (user, place, int(item))
        for user in range(dataset.users)
        for place, item in enumerate(dataset.events(user)[:-2])
    ]


def test_head_loss_is_a_softmax_over_target_and_raised_negatives() -> None:
    dataset, codes, student = make_dataset(), make_codes(), make_student().eval()
    lists = training_positions(dataset).take(np.arange(5))
    slates = build_slates(dataset, codes, lists, np.zeros((5, 1, 3), np.float32), level_size=SIZE, longest=6)
    head, negatives = student.head, torch.tensor([1, 2, 3, 1, int(lists.target[0])])
    every = torch.from_numpy(codes.astype(np.int64))
    with torch.no_grad():
        query = head.query(*(torch.from_numpy(x) for x in (slates.past, slates.history, slates.lengths)))
        scores = head(query, torch.arange(ITEMS).expand(5, -1), every.expand(5, -1, -1))
        found = head_loss(head, slates, every, negatives)
    expected = 0.0
    for row, target in enumerate(lists.target.tolist()):
        raised = [float(scores[row, item]) + math.log(ITEMS / 5) for item in negatives.tolist() if item != target]
        own = float(scores[row, target])
        expected += math.log(sum(math.exp(x) for x in [own, *raised])) - own
    assert float(found) == pytest.approx(expected / 5, rel=1e-5)


def test_training_learns_the_walk() -> None:
    student = make_student()
    trainer = make_trainer(student, replace(RECIPE, epochs=25))
    trainer.train()
    first, last = trainer.losses[0], trainer.losses[-1]
    assert last["path"] < 0.75 * first["path"]
    assert last["head"] < 0.85 * first["head"]


class Killed(BaseException):
    """Stands for SIGKILL: nothing below catches it."""


@pytest.mark.parametrize("steps", [1, 3, 5])
def test_a_killed_run_continues_bit_for_bit(steps: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    undisturbed = make_student()
    whole = make_trainer(undisturbed)
    whole.train()

    first = make_trainer(make_student(), checkpoint=tmp_path / "student.pt")
    plain = torch.optim.AdamW.step
    taken = 0

    def step(optimiser: torch.optim.AdamW) -> None:
        nonlocal taken
        if taken == steps:
            raise Killed
        taken += 1
        plain(optimiser)

    monkeypatch.setattr(first.optimiser, "step", lambda: step(first.optimiser))
    with pytest.raises(Killed):
        first.train()
    torch.manual_seed(99)
    resumed = make_student()
    second = make_trainer(resumed, checkpoint=tmp_path / "student.pt")
    assert second.step == steps
    second.train()
    assert second.losses == whole.losses
    for name, value in undisturbed.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name
