"""The stage `distill`: the student, from the pre-ranker's lists and the interactions.

1. Evidence of the training lists is cross-fitted over users, and the prior is fitted to it with a listwise loss.
2. The path likelihood and the head are trained on every position of the training split (`generative`).
3. The weights of path, prior and head are fitted to the validation lists. Only here may path and head be compared with
   the incoming order: they have trained on the training lists' targets, and would look better there than they are.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as to_safetensors

from gr2.artifact import Artifact, open_stage, write_atomic, write_json
from gr2.config import LATER, to_json
from gr2.data.candidates import PADDING, CandidateLists
from gr2.data.dataset import Dataset
from gr2.errors import DataError
from gr2.features import SCORE_FEATURES
from gr2.metrics import metric_values, paired_bootstrap, rank_of_target, ranking_metrics
from gr2.models.evidence import CoPurchase, CrossFit, count_copurchases, cross_fitted_evidence, list_evidence
from gr2.models.scoring import Parts, score_parts
from gr2.models.slate import build_slates, list_features
from gr2.models.student import Student, StudentConfig
from gr2.training.generative import GenerativeTrainer, Recipe
from gr2.training.optimisation import refuse_divergence, threads
from gr2.training.prior import combine_parts, fit_prior
from gr2.training.propensity import Method, click_weights, place_propensities

__all__ = ["INPUTS", "DistillConfig", "load_copurchases", "load_student", "run", "student_features", "student_parts"]

INPUTS = ("prepare", "prerank", "tokenize")
WEIGHTS, SIZES = "student.safetensors", "student.json"
COUNTS = ("neighbours", "counts", "popularity")
SCORING_BATCH = 128


@dataclass(frozen=True)
class DistillConfig:
    """The student's sizes (see `StudentConfig`) and its training.

    Attributes:
        dim: width of the transformer and the head.
        layers: transformer blocks.
        heads: attention heads; they divide `dim`.
        max_history: events that the student sees, the most recent ones.
        dropout: of the transformer.
        neighbours: co-purchased items stored for each item.
        folds: divisions of the users for the cross-fitted evidence.
        slate: candidates of a list that the prior is fitted on and validation re-ranks.
        prior_epochs: passes over the training lists.
        epochs: passes over the training positions.
        batch: positions a step.
        negatives: items drawn for the head's loss.
        learning_rate: of AdamW, at its peak.
        weight_decay: of AdamW, on matrices and embeddings.
        warmup: share of the steps in which the learning rate rises.
        clip: largest norm of a gradient.
        checkpoint_seconds: time between two checkpoints within an epoch.
        threads: of torch; 0 leaves torch's own choice.
        propensity: how likely a place is to be looked at, by which clicks of impressions are weighed (`propensity`).
        propensities: those of the places, from 1, for `propensity = "given"`.
        least_propensity: no click weighs more than one at a place that is looked at so often.
    """

    dim: int = 64
    layers: int = 1
    heads: int = 2
    max_history: int = 50
    dropout: float = 0.2
    neighbours: int = 64
    folds: int = 5
    slate: int = 10
    prior_epochs: int = 20
    epochs: int = 8
    batch: int = 512
    negatives: int = 512
    learning_rate: float = 4e-3
    weight_decay: float = 0.0
    warmup: float = 0.05
    clip: float = 5.0
    checkpoint_seconds: float = 60.0
    threads: int = 0
    propensity: Method = field(default="off", metadata=LATER)
    propensities: tuple[float, ...] = field(default=(), metadata=LATER)
    least_propensity: float = field(default=0.02, metadata=LATER)

    def __post_init__(self) -> None:
        for name in ("neighbours", "slate", "batch", "negatives"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.folds < 2:
            raise ValueError(
                f"folds must be at least 2, so that no list is counted in its own evidence; got {self.folds}"
            )
        for name in ("prior_epochs", "epochs", "weight_decay", "checkpoint_seconds", "threads"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        for name in ("learning_rate", "clip"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        if not 0 <= self.warmup < 1:
            raise ValueError(f"warmup must be in [0, 1), got {self.warmup}")
        if not 0 < self.least_propensity <= 1:
            raise ValueError(f"least_propensity must be in (0, 1], got {self.least_propensity}")
        if (self.propensity == "given") != bool(self.propensities):
            raise ValueError('propensities go with propensity = "given", and it needs them')
        if not all(0 < each <= 1 for each in self.propensities):
            raise ValueError(f"propensities must be in (0, 1], got {self.propensities}")
        self.student(items=1, levels=4, level_size=2, features=3)

    def student(self, *, items: int, levels: int, level_size: int, features: int) -> StudentConfig:
        """The model's configuration for a catalogue, a codebook and a width of features."""
        names = ("dim", "layers", "heads", "max_history", "dropout")
        own = {name: getattr(self, name) for name in names}
        return StudentConfig(items=items, levels=levels, level_size=level_size, features=features, **own)

    def recipe(self) -> Recipe:
        """What `GenerativeTrainer` needs to know."""
        return Recipe(**{field.name: getattr(self, field.name) for field in fields(Recipe)})


def run(config: DistillConfig, inputs: Mapping[str, Artifact], out: Path, seed: int) -> Artifact:
    """Train the student; the artefact holds `student.safetensors`, `student.json` (its sizes) and the co-purchases."""
    parents = {name: inputs[name].digest for name in INPUTS}
    with open_stage(out, "distill", config, parents, seed) as work, threads(config.threads):
        began = time.monotonic()
        dataset = Dataset.load(inputs["prepare"].path)
        codes = inputs["tokenize"].array("codes.npy")
        level_size = int(inputs["tokenize"].config["level_size"])
        train, val = (CandidateLists.load(inputs["prerank"].file(f"{split}.parquet")) for split in ("train", "val"))
        student, table, metrics = distill(
            config, dataset, codes, level_size, train, val, seed=seed, checkpoint=work.checkpoints / "student.pt"
        )
        write_atomic(work.path / WEIGHTS, to_safetensors(student.state_dict()))
        write_json(work.path / SIZES, to_json(student.config))
        for name in COUNTS:
            np.save(work.path / f"{name}.npy", getattr(table, name), allow_pickle=False)
        work.metrics.update(metrics, total_seconds=time.monotonic() - began)
    return Artifact.load(out, "distill")


def distill(
    config: DistillConfig,
    dataset: Dataset,
    codes: NDArray[np.uint16],
    level_size: int,
    train: CandidateLists,
    val: CandidateLists,
    *,
    seed: int,
    checkpoint: Path | None = None,
) -> tuple[Student, CoPurchase, dict[str, Any]]:
    """The trained student in evaluation mode, the co-purchases of all users, and the metrics."""
    entropy = seed & 0xFFFF_FFFF
    longest = config.max_history
    for split, lists in (("training", train), ("validation", val)):
        if not lists.width:
            raise DataError(f"no {split} list has a candidate: the users have had all {len(dataset.catalog):,} items")
    train, val = train.top(config.slate).with_target(), val.top(config.slate).with_target()
    fit = CrossFit(neighbours=config.neighbours, longest=longest, folds=config.folds, seed=entropy)
    counted = cross_fitted_evidence(dataset, codes, train, fit)
    features = np.concatenate([list_features(train), counted], -1)
    known = features[:, :, len(SCORE_FEATURES) :]
    propensities = place_propensities(config.propensity, train, known, config.propensities)
    table = count_copurchases(dataset, np.arange(dataset.users), neighbours=config.neighbours)
    torch.manual_seed(entropy)
    student = Student(
        config.student(
            items=len(dataset.catalog), levels=codes.shape[1], level_size=level_size, features=features.shape[2]
        )
    )
    prior = fit_prior(
        features,
        train.candidates != PADDING,
        click_weights(train, propensities, config.least_propensity),
        hidden=student.config.prior_hidden,
        epochs=config.prior_epochs,
        seed=entropy,
    )
    trainer = GenerativeTrainer(student, dataset, codes, config.recipe(), seed=entropy, checkpoint=checkpoint)
    trainer.train()
    student.prior.load_state_dict(prior.state_dict())
    student.eval()
    metrics: dict[str, Any] = {
        "parameters": sum(parameter.numel() for parameter in student.parameters()),
        "lists": len(train),
        "positions": len(trainer.positions),
        "validation_lists": len(val),
        "losses": trainer.losses,
    }
    if propensities is not None:
        metrics["propensities"] = propensities.tolist()
    if len(val):
        parts = student_parts(
            student, dataset, codes, val, student_features(dataset, codes, val, table, longest=longest)
        )
        valid, label = val.candidates != PADDING, val.label()
        weights = combine_parts(parts, valid, click_weights(val, propensities, config.least_propensity))
        student.weights.copy_(torch.tensor(weights))
        metrics |= {"weights": {"prior": weights[0], "head": weights[1]}}
        metrics |= _validation(parts, weights, valid, label, entropy)
    return student, table, metrics


def student_features(
    dataset: Dataset, codes: NDArray[np.uint16], lists: CandidateLists, table: CoPurchase, *, longest: int
) -> NDArray[np.float32]:
    """(R, K, 3 + F + E) float32: the lists' own features, then the evidence."""
    return np.concatenate([list_features(lists), list_evidence(dataset, codes, lists, table, longest=longest)], -1)


def student_parts(
    student: Student,
    dataset: Dataset,
    codes: NDArray[np.uint16],
    lists: CandidateLists,
    features: NDArray[np.float32],
) -> Parts:
    """The parts, each (R, K), of all candidates' scores; the student must be in evaluation mode.

    Raises Gr2Error if one is not finite.
    """
    config = student.config
    parts = Parts(*(np.zeros(lists.candidates.shape, dtype=np.float32) for _ in range(3)))
    order = np.argsort(lists.position, kind="stable")
    for first in range(0, len(order), SCORING_BATCH):
        rows = order[first : first + SCORING_BATCH]
        slates = build_slates(
            dataset, codes, lists.take(rows), features[rows], level_size=config.level_size, longest=config.max_history
        )
        scored = score_parts(student, slates)
        for name in ("path", "prior", "head"):
            scores = getattr(scored, name)[:, : lists.width]
            refuse_divergence("distill", f"a score of the student's {name}", *scores.min(1), *scores.max(1))
            getattr(parts, name)[rows] = scores
    return parts


def _validation(
    parts: Parts, weights: tuple[float, float], valid: NDArray[np.bool_], label: NDArray[np.int64], seed: int
) -> dict[str, Any]:
    """Metrics of the incoming order, of each part alone, of path and prior, and of the student."""
    path, prior, head = parts.path, weights[0] * parts.prior, weights[1] * parts.head
    orders = {"path": path, "prior": prior, "head": head, "path+prior": path + prior, "student": path + prior + head}
    ranks = {name: rank_of_target(np.where(valid, scores, -np.inf), label) for name, scores in orders.items()}
    incoming = label + 1
    difference = paired_bootstrap(metric_values(incoming), metric_values(ranks["student"]), seed)
    return {
        "incoming": ranking_metrics(incoming),
        **{name: ranking_metrics(found) for name, found in ranks.items()},
        "difference": {name: to_json(difference[name]) for name in ("R@1", "N@5")},
    }


def load_student(artifact: Artifact) -> Student:
    """The student of a `distill` artefact, in evaluation mode. Raises ArtifactError if a file is damaged."""
    try:
        student = Student(StudentConfig(**json.loads(artifact.file(SIZES).read_text(encoding="utf-8"))))
    except (OSError, TypeError, ValueError) as error:
        raise artifact.damaged(SIZES, f"not the sizes of a student: {error}") from error
    try:
        student.load_state_dict(load_file(artifact.file(WEIGHTS)))
    except (OSError, RuntimeError, SafetensorError) as error:
        raise artifact.damaged(WEIGHTS, f"not the weights of this student: {error}") from error
    return student.eval()


def load_copurchases(artifact: Artifact) -> CoPurchase:
    """The co-purchases of a `distill` artefact."""
    return CoPurchase(*(artifact.array(f"{name}.npy") for name in COUNTS))
