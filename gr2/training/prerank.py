"""The stage `prerank`: a SASRec pre-ranker and its candidate lists, cross-fitted on the training split.

Lists for training positions must look like those for new events. A model that has trained on a user knows the user's
targets, so a training list always comes from a model that trained on other users: users are divided into folds, and
one model is trained without each. Validation and test lists come from the model trained on all users' training
events, which end before either target.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save as to_safetensors

from gr2.artifact import Artifact, file_digest, open_stage, write_atomic
from gr2.data.candidates import CandidateLists, import_lists
from gr2.data.dataset import Dataset
from gr2.models.preranker import PreRanker
from gr2.training.retrieval import NOT_RANKED, catalogue_metrics, target_ranks, top_candidates
from gr2.training.sasrec import Fitted, Recipe, fit

__all__ = ["INPUTS", "PrerankConfig", "fold_of_users", "run", "sources"]

INPUTS = ("prepare",)
FULL = 0
ARRAYS = [column.name for column in fields(CandidateLists) if column.name != "features"]
# Users whose validation targets decide when to stop; a larger sample would not decide better, only later.
VALIDATION_USERS = 10_000


@dataclass(frozen=True)
class PrerankConfig:
    """The pre-ranker's shape and training, the folds, and the lists.

    Attributes:
        dim: width of the embeddings and of the network.
        layers: transformer blocks.
        heads: attention heads; they divide `dim`.
        dropout: on embeddings, attention weights and block outputs.
        max_history: events that the network sees, the most recent ones.
        batch: sequences a step.
        epochs: length of the learning-rate schedule.
        patience: epochs without a better validation N@10 before the full model stops; the folds' models train as
            many epochs as it kept.
        learning_rate: of AdamW, at its peak.
        warmup: share of the steps in which the learning rate rises.
        weight_decay: of AdamW, on matrices and embeddings.
        precision: of the logits in training; `auto` is bfloat16 where the processor multiplies it in hardware.
        folds: models that are trained for the training lists, each without one share of the users.
        list_size: candidates a list.
        threads: of torch; 0 leaves torch's own choice.
        test_lists: a Parquet file with others' lists for the test targets, which take the place of ours; "" for none.
        test_ranker: whose lists to take, if `test_lists` has a column `ranker`; "" for the only one.
    """

    dim: int = 64
    layers: int = 2
    heads: int = 2
    dropout: float = 0.5
    max_history: int = 50
    batch: int = 256
    epochs: int = 30
    patience: int = 5
    learning_rate: float = 2e-3
    warmup: float = 0.05
    weight_decay: float = 0.0
    precision: Literal["auto", "bfloat16", "float32"] = "auto"
    folds: int = 3
    list_size: int = 50
    threads: int = 0
    test_lists: str = ""
    test_ranker: str = ""

    def __post_init__(self) -> None:
        for name in ("dim", "layers", "heads", "max_history", "batch", "epochs", "patience", "list_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.dim % self.heads:
            raise ValueError(f"dim must be a multiple of heads, got dim {self.dim} and heads {self.heads}")
        if self.folds < 2:
            raise ValueError(
                f"folds must be at least 2, so that a list's model has not seen its user; got {self.folds}"
            )
        if not 0 <= self.dropout < 1 or not 0 <= self.warmup < 1:
            raise ValueError(f"dropout and warmup must be in [0, 1), got {self.dropout} and {self.warmup}")
        if self.learning_rate <= 0 or self.weight_decay < 0 or self.threads < 0:
            raise ValueError("learning_rate must be above 0, weight_decay and threads not below 0")
        if self.test_ranker and not self.test_lists:
            raise ValueError("test_ranker chooses from test_lists, which is not set")


def sources(config: PrerankConfig) -> dict[str, Path]:
    """The files outside the run that the stage reads."""
    return {"file:test_lists": Path(config.test_lists)} if config.test_lists else {}


def fold_of_users(users: int, folds: int, seed: int) -> NDArray[np.int64]:
    """(U,) int64: each user's fold, drawn with `seed`; folds differ by at most one user."""
    fold = np.empty(users, dtype=np.int64)
    fold[np.random.default_rng(_entropy(seed)).permutation(users)] = np.arange(users) % folds
    return fold


def run(config: PrerankConfig, inputs: Mapping[str, Artifact], out: Path, seed: int) -> Artifact:
    """Train, then write train.parquet, val.parquet, test.parquet (CandidateLists) and preranker.safetensors."""
    dataset = Dataset.load(inputs["prepare"].path)
    imported = (
        import_lists(config.test_lists, dataset, ranker=config.test_ranker or None) if config.test_lists else None
    )
    parents = {name: inputs[name].digest for name in INPUTS}
    parents |= {name: file_digest(path) for name, path in sources(config).items()}
    with open_stage(out, "prerank", config, parents, seed) as work, _threads(config.threads):
        began = time.monotonic()
        full = _fit_full(dataset, config, seed, work.checkpoints)
        write_atomic(work.path / "preranker.safetensors", to_safetensors(full.model.state_dict()))
        everyone = np.arange(dataset.users)
        val = top_candidates(full.model, dataset, everyone, dataset.lengths - 2, config.list_size)
        test = top_candidates(full.model, dataset, everyone, dataset.lengths - 1, config.list_size)
        metrics = work.metrics
        metrics |= {"epochs": full.epochs, "loss": full.loss, **_catalogue(full.model, dataset, everyone)}
        train, metrics["folds"] = _cross_fit(dataset, config, seed, work.checkpoints, full.epochs)
        if imported is not None:
            test = imported.top(config.list_size)
        lists = {"train": train, "val": val, "test": test}
        for split, split_lists in lists.items():
            split_lists.save(work.path / f"{split}.parquet")
        metrics["lists"] = {split: _list_metrics(split_lists) for split, split_lists in lists.items()}
        metrics["train_seconds"] = full.seconds
        metrics["total_seconds"] = time.monotonic() - began
    return Artifact.load(out, "prerank")


def _fit_full(dataset: Dataset, config: PrerankConfig, seed: int, checkpoints: Path) -> Fitted:
    """The model of all users, stopped by the validation N@10 of a sample of them."""
    sample = np.random.default_rng(_entropy(seed, 1)).permutation(dataset.users)[:VALIDATION_USERS]

    def validate(model: PreRanker) -> float:
        ranks = target_ranks(model, dataset, sample, dataset.lengths[sample] - 2)
        return catalogue_metrics(ranks)["N@10"]

    return fit(
        dataset,
        np.arange(dataset.users),
        _recipe(config),
        seed=_entropy(seed, 2, FULL),
        checkpoint=checkpoints / "full.pt",
        description="pre-ranker",
        validate=validate,
    )


def _cross_fit(
    dataset: Dataset, config: PrerankConfig, seed: int, checkpoints: Path, epochs: int
) -> tuple[CandidateLists, list[dict[str, Any]]]:
    """Lists for every training position, in the order of users and positions, and each fold's metrics.

    A fold's metrics are those of its own users, whom its model has not seen: what a training list is worth.
    """
    fold = fold_of_users(dataset.users, config.folds, seed)
    parts, metrics = [], []
    for number in range(config.folds):
        fitted = fit(
            dataset,
            np.flatnonzero(fold != number),
            replace(_recipe(config), stop_after=epochs),
            seed=_entropy(seed, 2, number + 1),
            checkpoint=checkpoints / f"fold{number}.pt",
            description=f"pre-ranker, fold {number + 1} of {config.folds}",
        )
        own = np.flatnonzero(fold == number)
        user = np.repeat(own, dataset.lengths[own] - 3)
        position = np.concatenate([np.arange(1, dataset.train_length(one)) for one in own.tolist()] or [user])
        parts.append(top_candidates(fitted.model, dataset, user, position, config.list_size))
        metrics.append(
            {"users": len(own), "loss": fitted.loss, "train_seconds": fitted.seconds}
            | _catalogue(fitted.model, dataset, own)
        )
    columns = [np.concatenate([getattr(part, name) for part in parts]) for name in ARRAYS]
    joined = CandidateLists(*columns)
    return joined.take(np.lexsort((joined.position, joined.user))), metrics


def _catalogue(model: PreRanker, dataset: Dataset, users: NDArray[np.int64]) -> dict[str, dict[str, float]]:
    """Full-catalogue metrics of the validation and the test targets of `users`."""
    lengths = dataset.lengths[users]
    splits = {"val": lengths - 2, "test": lengths - 1}
    return {
        split: catalogue_metrics(target_ranks(model, dataset, users, position)) for split, position in splits.items()
    }


def _list_metrics(lists: CandidateLists) -> dict[str, float]:
    """The number of lists, the share that hold their target, and the metrics of the incoming order."""
    label = lists.label()
    found = catalogue_metrics(np.where(label < 0, NOT_RANKED, label + 1))
    return {"lists": len(lists), "with_target": float((label >= 0).mean()) if len(lists) else 0.0, **found}


def _recipe(config: PrerankConfig) -> Recipe:
    names = {field.name for field in fields(Recipe)} - {"stop_after"}
    return Recipe(**{name: getattr(config, name) for name in names})


def _entropy(seed: int, *more: int) -> tuple[int, ...]:
    """NumPy's seed sequences take no negative number."""
    return (seed & 0xFFFF_FFFF_FFFF_FFFF, *more)


@contextmanager
def _threads(threads: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
