"""Training a causal language model on rows of tokens: the loop and all of its state."""

from __future__ import annotations

import math
import time
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict

from gr2.checkpoint import load_checkpoint, save_checkpoint
from gr2.progress import Bar, track
from gr2.training.language.causal_loss import CausalLoss
from gr2.training.language.mix import Mix
from gr2.training.language.packing import Batch, packed_batches
from gr2.training.loop.optimisation import adamw, refuse_divergence
from gr2.training.loop.workers import Workers

__all__ = ["CausalTrainer", "Recipe", "schedule"]

PLACE = ("epoch", "step", "done", "total", "targets", "tokens", "seconds")
WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)
# The learning rate ends at this share of its peak.
FLOOR = 0.01


@dataclass(frozen=True)
class Recipe:
    """How rows are trained on; see `MidtrainConfig`."""

    epochs: int
    batch_tokens: int
    accumulate: int
    learning_rate: float
    weight_decay: float
    warmup: float
    clip: float
    checkpoint_seconds: float
    packed: bool = False


class CausalTrainer:
    """Trains what of a model is not frozen. A checkpoint after any step continues bit for bit.

    Nothing random outlives a step: batches are drawn by the seed and the epoch, dropout by the seed, the step and the
    process. An epoch's batches go to the processes in turn, and a step's loss is the mean over all their tokens.
    """

    def __init__(
        self,
        loss: CausalLoss,
        mix: Mix,
        recipe: Recipe,
        *,
        seed: int,
        workers: Workers,
        name: str,
        checkpoint: Path | None = None,
    ) -> None:
        self.mix, self.recipe, self.seed, self.workers, self.name = mix, recipe, seed, workers, name
        optimiser = adamw(loss, recipe.learning_rate, recipe.weight_decay)
        self.loss, self.optimiser = workers.accelerator.prepare(loss, optimiser)
        self.epoch = self.step = self.done = 0
        self.losses: list[float] = []
        self.total, self.targets = 0.0, 0
        self.tokens, self.seconds = 0, 0.0
        self.checkpoint, self.saved = checkpoint, time.monotonic()
        self._resume()

    def train(self) -> None:
        """Train from where the state stands to the end of the schedule. Raises Gr2Error if a loss is not finite."""
        while self.epoch < self.recipe.epochs:
            groups = self._groups(self._batches())
            sizes = [self._size(group) for group in groups]
            name = f"{self.name}, epoch {self.epoch + 1} of {self.recipe.epochs}"
            start = sum(sizes[: self.done])
            with track(sum(sizes), name, unit="tokens", start=start, stream=self.workers.stream) as bar:
                for group in groups[self.done :]:
                    self._step(group, len(groups), bar)
            self.losses.append(self.total / max(1, self.targets))
            self.total, self.targets = 0.0, 0
            self.epoch, self.done = self.epoch + 1, 0
            self._save()

    def _batches(self) -> list[Batch]:
        """Those of this epoch."""
        generator = np.random.default_rng([self.seed, self.epoch])
        rows, drawn, tokens = self.mix.rows, self.mix.draw(generator), self.recipe.batch_tokens
        if self.recipe.packed:
            return packed_batches(rows, drawn, tokens, generator)
        return [Batch(each) for each in rows.batches(drawn, tokens, generator)]

    def _groups(self, batches: list[Batch]) -> list[list[Batch]]:
        """The batches of every step, those of the first process first; the last step is filled up from the start."""
        size = self.workers.count * self.recipe.accumulate
        missing = -len(batches) % size
        filled = batches + [batches[number % len(batches)] for number in range(missing)]
        return [filled[first : first + size] for first in range(0, len(filled), size)]

    def _step(self, group: list[Batch], steps: int, bar: Bar) -> None:
        began, recipe, workers = time.monotonic(), self.recipe, self.workers
        factor = schedule((self.epoch + self.done / steps) / recipe.epochs, recipe.warmup)
        for parameters in self.optimiser.param_groups:
            parameters["lr"] = recipe.learning_rate * factor
        torch.manual_seed(_mixed(self.seed, self.step, workers.rank))
        self.loss.train()
        learnt = int(sum(self.mix.rows.targets[batch.rows].sum() for batch in group))
        loss = self._gradients(group[workers.rank :: workers.count], learnt)
        workers.accelerator.clip_grad_norm_(self.loss.parameters(), recipe.clip)
        self.optimiser.step()
        self.optimiser.zero_grad()
        loss = workers.mean(loss)
        refuse_divergence("midtrain", f"the loss of {self.name} in epoch {self.epoch + 1}", loss)
        self.step, self.done = self.step + 1, self.done + 1
        self.total, self.targets = self.total + loss * learnt, self.targets + learnt
        size = self._size(group)
        self.tokens, self.seconds = self.tokens + size, self.seconds + time.monotonic() - began
        workers.log({f"{self.name}/loss": loss, f"{self.name}/learning_rate": recipe.learning_rate * factor}, self.step)
        bar.advance(size, loss=loss, tokens_s=self.tokens / self.seconds)
        if workers.agree(int(time.monotonic() - self.saved >= recipe.checkpoint_seconds)):
            self._save()

    def _gradients(self, batches: list[Batch], learnt: int) -> float:
        """Add up the gradients of this process's batches of a step that learns so many tokens; their share of its loss.

        Gradients are averaged over the processes, so each batch weighs by its tokens times their number.
        """
        total = 0.0
        for number, batch in enumerate(batches, 1):
            tensors = [tensor.to(self.workers.device) for tensor in batch.tensors(self.mix.rows)]
            weight = int(self.mix.rows.targets[batch.rows].sum()) * self.workers.count / learnt
            last = number == len(batches)
            with nullcontext() if last else self.workers.accelerator.no_sync(self.loss):
                loss = self.loss(*tensors) * weight
                self.workers.accelerator.backward(loss)
            total += loss.item()
        return total

    def _size(self, group: list[Batch]) -> int:
        return int(sum(self.mix.rows.lengths[batch.rows].sum() for batch in group))

    def _save(self) -> None:
        """Write the checkpoint: weights, moments, losses, and the place in the schedule."""
        if self.checkpoint is None:
            return
        model, optimiser = get_state_dict(self.loss, self.optimiser, options=WHOLE)
        if self.workers.rank == 0:
            place = {name: getattr(self, name) for name in PLACE}
            state = {"model": model, "optimiser": optimiser, "losses": self.losses, "place": place}
            save_checkpoint(self.checkpoint, state)
        self.saved = time.monotonic()

    def _resume(self) -> None:
        """Continue from what a killed run left in the checkpoint file, which every process reads."""
        state = load_checkpoint(self.checkpoint) if self.checkpoint is not None else None
        self.workers.wait()
        if state is None:
            return
        set_state_dict(
            self.loss,
            self.optimiser,
            model_state_dict=state["model"],
            optim_state_dict=state["optimiser"],
            options=WHOLE,
        )
        self.losses = state["losses"]
        for name in PLACE:
            setattr(self, name, state["place"][name])


def schedule(progress: float, warmup: float) -> float:
    """The learning rate's factor at a share of the training: linear warm-up, then half a cosine."""
    if progress < warmup:
        return max(progress / warmup, FLOOR)
    return FLOOR + (1 - FLOOR) * 0.5 * (1 + math.cos(math.pi * (progress - warmup) / (1 - warmup)))


def _mixed(*numbers: int) -> int:
    """One seed for torch out of several numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)
