"""Training one pre-ranker on some users' training events, with a checkpoint an epoch."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gr2.checkpoint import load_checkpoint, save_checkpoint
from gr2.data.dataset import Dataset
from gr2.errors import DataError
from gr2.models.linear_cross_entropy import fast_logits_dtype
from gr2.models.preranker import PreRanker
from gr2.progress import track
from gr2.training.loop.batches import epoch_batches
from gr2.training.loop.optimisation import adamw, refuse_divergence
from gr2.training.prerankers.sequences import Windows, training_windows

__all__ = ["Fitted", "Recipe", "fit"]


@dataclass(frozen=True)
class Recipe:
    """The network's shape and how it is trained; `stop_after` epochs of a schedule that is `epochs` long (0: all)."""

    dim: int
    layers: int
    heads: int
    dropout: float
    max_history: int
    batch: int
    epochs: int
    patience: int
    learning_rate: float
    warmup: float
    weight_decay: float
    precision: str
    stop_after: int = 0


@dataclass
class Fitted:
    """A trained pre-ranker: `epochs` counts to the epoch whose weights were kept, `seconds` is the training time."""

    model: PreRanker
    epochs: int
    loss: float
    validation: float
    seconds: float


@dataclass
class _Progress:
    """All of a checkpoint but the weights in training: the epochs done and the best of them."""

    epoch: int = 0
    seconds: float = 0.0
    best_epoch: int = 0
    best_loss: float = math.inf
    best_validation: float = -math.inf
    best: dict[str, Tensor] = field(default_factory=dict)
    finished: bool = False


def fit(
    dataset: Dataset,
    users: NDArray[np.int64],
    recipe: Recipe,
    *,
    seed: tuple[int, ...],
    checkpoint: Path,
    description: str,
    validate: Callable[[PreRanker], float] | None = None,
) -> Fitted:
    """A pre-ranker trained on the training events of `users` only.

    With `validate` (higher is better) it keeps the best epoch and stops `patience` epochs after it; without, it keeps
    the last. `checkpoint` holds the state after the last finished epoch and is taken up again: every epoch's order
    and dropout follow from (`seed`, epoch) alone, so that an interrupted training ends in the same weights. Raises
    DataError without anything to train on, Gr2Error if the loss is not finite.
    """
    windows = training_windows(dataset, users, recipe.max_history)
    if not len(windows):
        raise DataError(
            f"{description}: none of the {len(users):,} users that it trains on (of {dataset.users:,}) has two events "
            "in the training split, which takes four in all; more users or longer histories are needed"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_torch_seed(*seed))
        shape = {"dim": recipe.dim, "layers": recipe.layers, "heads": recipe.heads}
        model = PreRanker(len(dataset.catalog), **shape, dropout=recipe.dropout, max_history=recipe.max_history)
        optimizer = adamw(model, recipe.learning_rate, recipe.weight_decay)
        progress = _Progress()
        saved = load_checkpoint(checkpoint)
        if saved is not None:
            model.load_state_dict(saved["model"])
            optimizer.load_state_dict(saved["optimizer"])
            progress = _Progress(**saved["progress"])
        last = recipe.stop_after or recipe.epochs
        with track(last, description, "epoch", start=progress.epoch) as bar:
            while not progress.finished:
                began = time.monotonic()
                torch.manual_seed(_torch_seed(*seed, progress.epoch))
                order = np.random.default_rng([*seed, progress.epoch])
                loss = _train_epoch(model, optimizer, windows, recipe, progress.epoch, order)
                progress.epoch += 1
                refuse_divergence("prerank", f"{description}: the loss of epoch {progress.epoch}", loss)
                value = float(progress.epoch) if validate is None else validate(model)
                if value > progress.best_validation:
                    progress.best = copy.deepcopy(model.state_dict())
                    progress.best_epoch, progress.best_loss, progress.best_validation = progress.epoch, loss, value
                stale = progress.epoch - progress.best_epoch
                progress.finished = progress.epoch >= last or stale >= recipe.patience
                progress.seconds += time.monotonic() - began
                state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "progress": vars(progress)}
                save_checkpoint(checkpoint, state)
                bar.advance(1, loss=loss, **({} if validate is None else {"val N@10": value}))
        model.load_state_dict(progress.best)
    return Fitted(model.eval(), progress.best_epoch, progress.best_loss, progress.best_validation, progress.seconds)


def _train_epoch(
    model: PreRanker,
    optimizer: torch.optim.Optimizer,
    windows: Windows,
    recipe: Recipe,
    epoch: int,
    order: np.random.Generator,
) -> float:
    """The mean loss of a target over one epoch."""
    model.train()
    dtype = fast_logits_dtype() if recipe.precision == "auto" else getattr(torch, recipe.precision)
    steps = math.ceil(len(windows) / recipe.batch)
    total, targets = 0.0, 0
    for step, rows in enumerate(epoch_batches(windows.length, recipe.batch, order), start=epoch * steps):
        rate = recipe.learning_rate * _schedule(step, steps * recipe.epochs, recipe.warmup)
        for group in optimizer.param_groups:
            group["lr"] = rate
        loss, count = model.loss(*windows.batch(rows), dtype=dtype)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        total += loss.item() * count
        targets += count
    return total / targets


def _schedule(step: int, steps: int, warmup: float) -> float:
    """The learning rate's factor: linear to 1 over the first `warmup` share of all steps, then a cosine to .01."""
    rising = warmup * steps
    if step < rising:
        return (step + 1) / (rising + 1)
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * (step - rising) / (steps - rising)))


def _torch_seed(*entropy: int) -> int:
    return int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0] >> 1)
