"""The stage `prerank`: a SASRec pre-ranker and its candidate lists, cross-fitted on the training split.

Lists for training positions must look like those for new events. A model that has trained on a user knows the user's
targets, so a training list always comes from a model that trained on other users: users are divided into folds, and
one model is trained without each. Validation and test lists come from the model trained on all users' training
events, which end before either target.

Lists of another ranker may take the place of ours in any split; no model is trained that no split needs.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from safetensors.torch import save as to_safetensors

from gr2.artifact import Artifact, file_digest, open_stage, write_atomic
from gr2.config import LATER, refuse_below
from gr2.data.candidates import CandidateLists
from gr2.data.dataset import Dataset
from gr2.data.imported_lists import SPLITS, Split, import_lists
from gr2.data.impressions import read_impressions
from gr2.errors import DataError
from gr2.models.preranker import PreRanker
from gr2.training.loop.optimisation import threads
from gr2.training.prerankers.retrieval import NOT_RANKED, catalogue_metrics, target_ranks, top_candidates
from gr2.training.prerankers.sasrec import Fitted, Recipe, fit

__all__ = ["INPUTS", "PrerankConfig", "fold_of_users", "run", "sources"]

INPUTS = ("prepare",)
FULL = 0
ARRAYS = [column.name for column in fields(CandidateLists) if column.default is MISSING]
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
        train_lists: a Parquet file with another ranker's lists for training positions (see `import_lists`), which take
            the place of ours; "" for none. They must come from a ranker that had not trained on their targets.
        train_ranker: whose lists to take, if `train_lists` has a column `ranker`; "" for the only one.
        val_lists: as `train_lists`, for the validation targets.
        val_ranker: as `train_ranker`, for `val_lists`.
        test_lists: as `train_lists`, for the test targets.
        test_ranker: as `train_ranker`, for `test_lists`.
        impressions: a Parquet file with slates as they were shown and what became of them (see `read_impressions`),
            which make the lists of all three splits; "" for none.
        guard: seconds before a slate whose events its history does not hold.
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
    train_lists: str = ""
    train_ranker: str = ""
    val_lists: str = ""
    val_ranker: str = ""
    test_lists: str = ""
    test_ranker: str = ""
    impressions: str = field(default="", metadata=LATER)
    guard: float = field(default=0.0, metadata=LATER)

    def __post_init__(self) -> None:
        refuse_below(self, 1, "dim", "layers", "heads", "max_history", "batch", "epochs", "patience", "list_size")
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
        for split in SPLITS:
            path, ranker = self.imported(split)
            if ranker and not path:
                raise ValueError(f"{split}_ranker chooses from {split}_lists, which is not set")
            if path and self.impressions:
                raise ValueError(f"impressions make the lists of every split; leave {split}_lists out")
        if self.guard < 0:
            raise ValueError(f"guard must not be negative, got {self.guard}")

    def imported(self, split: Split) -> tuple[str, str]:
        """The file whose lists take the place of ours in `split`, and the ranker to choose; "" for none."""
        return getattr(self, f"{split}_lists"), getattr(self, f"{split}_ranker")


def sources(config: PrerankConfig) -> dict[str, Path]:
    """The files outside the run that the stage reads."""
    files = {f"file:{split}_lists": config.imported(split)[0] for split in SPLITS}
    files["file:impressions"] = config.impressions
    return {name: Path(file) for name, file in files.items() if file}


def fold_of_users(users: int, folds: int, seed: int) -> NDArray[np.int64]:
    """(U,) int64: each user's fold, drawn with `seed`; folds differ by at most one user."""
    fold = np.empty(users, dtype=np.int64)
    fold[np.random.default_rng(_entropy(seed)).permutation(users)] = np.arange(users) % folds
    return fold


def run(config: PrerankConfig, inputs: Mapping[str, Artifact], out: Path, seed: int) -> Artifact:
    """Write train.parquet, val.parquet and test.parquet (CandidateLists), and preranker.safetensors if one is trained.

    Raises DataError if imported lists do not fit, Gr2Error if the training diverges.
    """
    dataset = Dataset.load(inputs["prepare"].path)
    shown: dict[str, Any] = {}
    if config.impressions:
        lists, shown = _shown(config, dataset)
    else:
        lists = _imported(config, dataset)
    parents = {name: inputs[name].digest for name in INPUTS}
    parents |= {name: file_digest(path) for name, path in sources(config).items()}
    with open_stage(out, "prerank", config, parents, seed) as work, threads(config.threads):
        began = time.monotonic()
        metrics = work.metrics
        metrics |= {"models": 0, "imported": list(lists), **shown}
        if len(lists) < len(SPLITS):
            full = _fit_full(dataset, config, seed, work.checkpoints)
            write_atomic(work.path / "preranker.safetensors", to_safetensors(full.model.state_dict()))
            everyone = np.arange(dataset.users)
            ends: tuple[tuple[Split, int], ...] = (("val", 2), ("test", 1))
            for split, ahead in ends:
                if split not in lists:
                    position = dataset.lengths - ahead
                    lists[split] = top_candidates(full.model, dataset, everyone, position, config.list_size)
            metrics |= {"models": 1, "epochs": full.epochs, "loss": full.loss, "train_seconds": full.seconds}
            metrics |= _catalogue(full.model, dataset, everyone)
            if "train" not in lists:
                lists["train"], metrics["folds"] = _cross_fit(dataset, config, seed, work.checkpoints, full.epochs)
                metrics["models"] += config.folds
        for split in SPLITS:
            lists[split].save(work.path / f"{split}.parquet")
        metrics["lists"] = {split: _list_metrics(lists[split]) for split in SPLITS}
        metrics["total_seconds"] = time.monotonic() - began
    return Artifact.load(out, "prerank")


def _imported(config: PrerankConfig, dataset: Dataset) -> dict[Split, CandidateLists]:
    """The lists of every split that has a file, whose features go with those of the other splits."""
    lists: dict[Split, CandidateLists] = {}
    for split in SPLITS:
        path, ranker = config.imported(split)
        if path:
            imported = import_lists(path, dataset, split=split, ranker=ranker or None)
            lists[split] = imported.top(config.list_size)
    widths = {split: lists[split].feature_width if split in lists else 0 for split in SPLITS}
    if len(set(widths.values())) > 1:
        have = ", ".join(
            f"{split}_lists {widths[split] or 'none'}" if split in lists else f"{split} none (gr2's own lists)"
            for split in SPLITS
        )
        raise DataError(
            "dense features must be in the lists of all three splits, as many a candidate, or in none, since what is "
            f"not there in training cannot be learned; got {have}"
        )
    return lists


def _shown(config: PrerankConfig, dataset: Dataset) -> tuple[dict[Split, CandidateLists], dict[str, Any]]:
    """The lists that impressions make, how many were left out, and the names of their features."""
    impressions = read_impressions(Path(config.impressions), dataset, guard=config.guard)
    lists, counts = impressions.splits(dataset)
    lists = {split: each.top(config.list_size) for split, each in lists.items()}
    return lists, {"impressions": counts, "feature_names": list(impressions.features)}


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
    """How many lists there are, how many lack their target, their features, and the incoming order's metrics."""
    label = lists.label()
    found = catalogue_metrics(np.where(label < 0, NOT_RANKED, label + 1))
    share = float((label >= 0).mean()) if len(lists) else 0.0
    counts = {"lists": len(lists), "without_target": int((label < 0).sum()), "features": lists.feature_width}
    return {**counts, "with_target": share, **found}


def _recipe(config: PrerankConfig) -> Recipe:
    names = {field.name for field in fields(Recipe)} - {"stop_after"}
    return Recipe(**{name: getattr(config, name) for name in names})


def _entropy(seed: int, *more: int) -> tuple[int, ...]:
    """NumPy's seed sequences take no negative number."""
    return (seed & 0xFFFF_FFFF_FFFF_FFFF, *more)
