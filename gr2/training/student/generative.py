"""Training the student's weights on every position of the training split: its path likelihood and its head.

Both losses ask for the item that came next. The path's is generative, -log p(target's codes) in one tree pass over the
target's path. The head's is a softmax over the target and `negatives` uniformly drawn items, whose scores are raised by
log(N / negatives), so that it estimates the softmax over the whole catalogue.

With a deeper student for a teacher, the path learns the teacher's distributions instead (`pruning`).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from gr2.checkpoint import load_checkpoint, save_checkpoint
from gr2.data.candidates import CandidateLists
from gr2.data.dataset import Dataset
from gr2.models.scoring import path_likelihood
from gr2.models.slate import Slates, build_slates
from gr2.models.student import MASKED, Head, Student
from gr2.progress import track
from gr2.training.loop.batches import epoch_batches
from gr2.training.loop.optimisation import adamw, refuse_divergence
from gr2.training.student.pruning import path_divergence

__all__ = ["GenerativeTrainer", "Recipe", "head_loss", "training_positions"]

PLACE = ("epoch", "step", "done")


@dataclass(frozen=True)
class Recipe:
    """How positions are trained on; see `DistillConfig`."""

    epochs: int
    batch: int
    negatives: int
    learning_rate: float
    weight_decay: float
    warmup: float
    clip: float
    checkpoint_seconds: float


def training_positions(dataset: Dataset) -> CandidateLists:
    """Every position of the training split, first events included, as lists of the target alone."""
    counts = dataset.lengths - 2
    user = np.repeat(np.arange(dataset.users), counts)
    position = np.arange(len(user)) - np.repeat(np.cumsum(counts) - counts, counts)
    target = dataset.items[dataset.offsets[user] + position]
    scores = np.zeros((len(user), 1), dtype=np.float32)
    return CandidateLists(user.astype(np.int32), position.astype(np.int32), target, target[:, None], scores)


def head_loss(head: Head, slates: Slates, codes: Tensor, negatives: Tensor) -> Tensor:
    """The mean sampled-softmax loss of the slates' targets; `codes` (N, L) int64, `negatives` (S,) item indices."""
    rows = np.arange(len(slates.label))
    target, target_codes = (torch.from_numpy(each[rows, slates.label]) for each in (slates.items, slates.codes))
    past, history, lengths = (torch.from_numpy(each) for each in (slates.past, slates.history, slates.lengths))
    query = head.query(past, history, lengths)
    own = head(query, target[:, None], target_codes[:, None])
    vectors = head.item(negatives, codes[negatives])
    others = query @ vectors.T + (vectors @ head.bias.weight.T).T + math.log(len(codes) / len(negatives))
    others = others.masked_fill(target[:, None] == negatives, MASKED)
    return F.cross_entropy(torch.cat([own, others], 1), torch.zeros(len(target), dtype=torch.int64))


class GenerativeTrainer:
    """The training loop and all of its state: a checkpoint after any step continues bit for bit."""

    def __init__(
        self,
        student: Student,
        dataset: Dataset,
        codes: NDArray[np.uint16],
        recipe: Recipe,
        *,
        seed: int,
        checkpoint: Path | None = None,
        teacher: Student | None = None,
    ) -> None:
        self.student, self.dataset, self.codes, self.recipe, self.seed = student, dataset, codes, recipe, seed
        self.positions = training_positions(dataset)
        self.lengths = np.minimum(self.positions.position, student.config.max_history)
        self.teacher = None if teacher is None else teacher.eval()
        self.item_codes = torch.from_numpy(codes.astype(np.int64))
        self.optimiser = adamw(student, recipe.learning_rate, recipe.weight_decay)
        self.epoch = self.step = self.done = 0
        self.losses: list[dict[str, float]] = []
        self.total = {"path": 0.0, "head": 0.0}
        self.checkpoint, self.saved = checkpoint, time.monotonic()
        self._resume()

    def train(self) -> None:
        """Train from where the state stands to the end of the schedule. Raises Gr2Error if a loss is not finite."""
        while self.epoch < self.recipe.epochs:
            generator = np.random.default_rng([self.seed, self.epoch])
            batches = list(epoch_batches(self.lengths, self.recipe.batch, generator))
            start = sum(len(rows) for rows in batches[: self.done])
            name = f"student, epoch {self.epoch + 1} of {self.recipe.epochs}"
            with track(len(self.positions), name, unit="positions", start=start) as bar:
                for rows in batches[self.done :]:
                    self._step(rows, len(batches), bar.advance)
            count = max(1, len(self.positions))
            self.losses.append({name: value / count for name, value in self.total.items()})
            self.total = dict.fromkeys(self.total, 0.0)
            self.epoch, self.done = self.epoch + 1, 0
            self._save()

    def _step(self, rows: NDArray[np.int64], batches: int, report: Callable[..., None]) -> None:
        config = self.student.config
        lists = self.positions.take(rows)
        features = np.zeros((len(rows), 1, config.features), dtype=np.float32)
        slates = build_slates(
            self.dataset, self.codes, lists, features, level_size=config.level_size, longest=config.max_history
        )
        factor = _schedule(self.step, batches * self.recipe.epochs, self.recipe.warmup)
        for group in self.optimiser.param_groups:
            group["lr"] = self.recipe.learning_rate * factor
        self.student.train()
        if self.teacher is None:
            path = -path_likelihood(self.student, slates).mean()
        else:
            path = path_divergence(self.teacher, self.student, slates).mean()
        negatives = torch.randint(0, len(self.codes), (self.recipe.negatives,))
        head = head_loss(self.student.head, slates, self.item_codes, negatives)
        shown = {"path": path.item(), "head": head.item()}
        refuse_divergence("distill", f"the student's loss in epoch {self.epoch + 1}", *shown.values())
        self.optimiser.zero_grad()
        (path + head).backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.student.parameters(), self.recipe.clip)
        self.optimiser.step()
        self.step, self.done = self.step + 1, self.done + 1
        for name, value in shown.items():
            self.total[name] += value * len(rows)
        report(len(rows), **shown)
        if time.monotonic() - self.saved >= self.recipe.checkpoint_seconds:
            self._save()

    def _save(self) -> None:
        """Write the checkpoint: weights, moments, random state, losses, and the place in the schedule."""
        if self.checkpoint is None:
            return
        state: dict[str, Any] = {
            "student": self.student.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "random": torch.get_rng_state(),
            "losses": self.losses,
            "total": self.total,
            "place": {name: getattr(self, name) for name in PLACE},
        }
        save_checkpoint(self.checkpoint, state)
        self.saved = time.monotonic()

    def _resume(self) -> None:
        """Continue from what a killed run left in the checkpoint file."""
        state = load_checkpoint(self.checkpoint) if self.checkpoint is not None else None
        if state is None:
            return
        self.student.load_state_dict(state["student"])
        self.optimiser.load_state_dict(state["optimiser"])
        torch.set_rng_state(state["random"])
        self.losses, self.total = state["losses"], state["total"]
        for name in PLACE:
            setattr(self, name, state["place"][name])


def _schedule(step: int, total: int, warmup: float) -> float:
    """The learning rate's factor: linear warm-up, then half a cosine down to 1 %."""
    rise = max(1, round(warmup * total))
    if step < rise:
        return (step + 1) / rise
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, total - rise)))
