"""The stage `distill`: the student, from the pre-ranker's lists and the interactions.

1. The memory of the training lists is cross-fitted over users, and the prior is fitted to it with a listwise loss: to
   the logged outcomes, to a reasoner's distribution over the candidates (`lessons`), or to both.
2. The path likelihood and the head are trained on every position of the training split (`generative`).
3. The weights of path, prior and head are fitted to the validation lists. Only here may path and head be compared with
   the incoming order: they have trained on the training lists' targets, and would look better there than they are.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as to_safetensors

from gr2.artifact import Artifact, open_stage, write_atomic, write_json
from gr2.config import to_json
from gr2.data.candidates import PADDING, CandidateLists
from gr2.data.dataset import Dataset
from gr2.errors import ConfigError, DataError
from gr2.features import SCORE_FEATURES
from gr2.metrics import metric_values, paired_bootstrap, rank_of_target, ranking_metrics
from gr2.models.evidence import CoPurchase, CrossFit
from gr2.models.memory import ItemMemory, list_memory
from gr2.models.pairs import Neighbours
from gr2.models.scoring import Parts, score_parts
from gr2.models.slate import build_slates, list_features
from gr2.models.student import Student, StudentConfig
from gr2.training.loop.optimisation import refuse_divergence, threads
from gr2.training.student.generative import GenerativeTrainer
from gr2.training.student.lessons import Lessons, mixed_worth
from gr2.training.student.prior import combine_parts, fit_prior
from gr2.training.student.propensity import click_weights, place_propensities
from gr2.training.student.pruning import prune
from gr2.training.student.remember import catalog_memory, code_vectors, cross_fitted_memory, item_memory
from gr2.training.student.settings import DistillConfig

__all__ = [
    "INPUTS",
    "DistillConfig",
    "fit_student",
    "inputs",
    "load_memory",
    "load_student",
    "remember",
    "run",
    "student_features",
    "student_parts",
]

INPUTS = ("prepare", "prerank", "tokenize")
WEIGHTS, SIZES = "student.safetensors", "student.json"
COUNTS = ("neighbours", "counts", "popularity")
MEMORY_FILES = (*COUNTS, "following", "following_weights", "titles", "titles_weights", "together", "text")
SCORING_BATCH = 128
SLATES = {
    "training": "slates that more than two of their user's events follow",
    "validation": "slates that two of their user's events follow",
}


def inputs(config: DistillConfig) -> tuple[str, ...]:
    """The stages whose artefacts are read."""
    return (*INPUTS, config.teacher) if config.teacher else INPUTS


def run(config: DistillConfig, artifacts: Mapping[str, Artifact], out: Path, seed: int) -> Artifact:
    """Train the student; the artefact holds `student.safetensors`, `student.json` (its sizes) and the memory."""
    parents = {name: artifacts[name].digest for name in inputs(config)}
    with open_stage(out, "distill", config, parents, seed) as work, threads(config.threads):
        began = time.monotonic()
        dataset = Dataset.load(artifacts["prepare"].path)
        tokenize, lists = artifacts["tokenize"], artifacts["prerank"]
        train, val = (CandidateLists.load(lists.file(f"{split}.parquet")) for split in ("train", "val"))
        student, memory, metrics = distill(
            config,
            dataset,
            tokenize.array("codes.npy"),
            int(tokenize.config["level_size"]),
            train,
            val,
            vectors=code_vectors(tokenize),
            lessons=_lessons(config, artifacts, work.checkpoints / "lessons"),
            seed=seed,
            checkpoint=work.checkpoints / "student.pt",
        )
        write_atomic(work.path / WEIGHTS, to_safetensors(student.state_dict()))
        write_json(work.path / SIZES, to_json(student.config))
        for name, array in zip(MEMORY_FILES, _arrays(memory), strict=True):
            np.save(work.path / f"{name}.npy", array, allow_pickle=False)
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
    vectors: NDArray[np.float32] | None = None,
    lessons: Lessons | None = None,
    seed: int,
    checkpoint: Path | None = None,
) -> tuple[Student, ItemMemory, dict[str, Any]]:
    """The trained student in evaluation mode, the memory of all users, and the metrics.

    `vectors` (N, D) say what the items are, beside the words of the catalogue. Raises ConfigError if the sizes do not
    go with the codes.
    """
    try:
        config.student(items=len(codes), levels=codes.shape[1], level_size=level_size, features=1)
    except ValueError as error:
        raise ConfigError(f"[distill] {error}") from error
    entropy = seed & 0xFFFF_FFFF
    for split, lists in (("training", train), ("validation", val)):
        if not len(lists):
            raise DataError(
                f"prerank made no {split} list; of impressions, those are {SLATES[split]} (its metrics say what was "
                "left out)"
            )
        if not lists.width:
            raise DataError(f"no {split} list has a candidate: the users have had all {len(dataset.catalog):,} items")
    train, val = train.top(config.slate).with_target(), val.top(config.slate).with_target()
    features, memory = remember(config, dataset, codes, train, vectors=vectors, seed=seed)
    known = features[:, :, len(SCORE_FEATURES) :]
    propensities = place_propensities(
        config.propensity, train, known, given=config.propensities, least=config.least_propensity
    )
    clicks = [(lists, click_weights(lists, propensities)) for lists in (train, val)]
    taught = train, _worth(config, dataset, codes, clicks[0], lessons, entropy)
    student, metrics = fit_student(
        config, dataset, codes, level_size, features, taught, clicks[1], memory, seed=seed, checkpoint=checkpoint
    )
    if propensities is not None:
        metrics["propensities"] = propensities.tolist()
    return student, memory, metrics


def remember(
    config: DistillConfig,
    dataset: Dataset,
    codes: NDArray[np.uint16],
    train: CandidateLists,
    *,
    vectors: NDArray[np.float32] | None = None,
    seed: int,
) -> tuple[NDArray[np.float32], ItemMemory]:
    """(R, K, 3 + F + E) what the student sees of the training lists, cross-fitted, and the memory of all users."""
    fit = CrossFit(
        neighbours=config.neighbours, longest=config.max_history, folds=config.folds, seed=seed & 0xFFFF_FFFF
    )
    known = catalog_memory(dataset.catalog, vectors, neighbours=config.neighbours // 2, dim=config.vectors)
    remembered = cross_fitted_memory(dataset, codes, train, known, fit, dim=config.vectors)
    everyone = np.arange(dataset.users)
    memory = item_memory(dataset, everyone, known, neighbours=config.neighbours, dim=config.vectors)
    return np.concatenate([list_features(train), remembered], -1), memory


def fit_student(
    config: DistillConfig,
    dataset: Dataset,
    codes: NDArray[np.uint16],
    level_size: int,
    features: NDArray[np.float32],
    training: tuple[CandidateLists, NDArray[np.float64]],
    validation: tuple[CandidateLists, NDArray[np.float64]],
    memory: ItemMemory,
    *,
    seed: int,
    checkpoint: Path | None = None,
) -> tuple[Student, dict[str, Any]]:
    """The trained student and its metrics, from lists and what each of their candidates is worth.

    `features` are the training lists'; all lists hold their targets. Path and head learn from the data set alone: a
    `checkpoint` of the last epoch serves other lists, too.
    """
    entropy = seed & 0xFFFF_FFFF
    (train, worth), (val, val_worth) = training, validation
    torch.manual_seed(entropy)
    student = Student(
        config.student(
            items=len(dataset.catalog), levels=codes.shape[1], level_size=level_size, features=features.shape[2]
        )
    )
    prior = fit_prior(
        features,
        train.candidates != PADDING,
        worth,
        hidden=student.config.prior_hidden,
        epochs=config.prior_epochs,
        dropout=config.prior_dropout,
        seed=entropy,
    )
    trainer = GenerativeTrainer(student, dataset, codes, config.recipe(), seed=entropy, checkpoint=checkpoint)
    trainer.train()
    metrics: dict[str, Any] = {"losses": trainer.losses}
    if config.pruned_layers:
        deep, student = student, prune(student, config.pruned_layers)
        recipe = replace(config.recipe(), epochs=config.pruned_epochs)
        after = None if checkpoint is None else checkpoint.with_name(f"pruned-{checkpoint.name}")
        shorter = GenerativeTrainer(student, dataset, codes, recipe, seed=entropy, checkpoint=after, teacher=deep)
        shorter.train()
        # Its path learns from the deeper student's: these are no likelihoods.
        metrics["pruned_losses"] = shorter.losses
    student.prior.load_state_dict(prior.state_dict())
    student.eval()
    metrics |= {
        "parameters": sum(parameter.numel() for parameter in student.parameters()),
        "lists": len(train),
        "positions": len(trainer.positions),
        "validation_lists": len(val),
    }
    if len(val):
        parts = student_parts(
            student, dataset, codes, val, student_features(dataset, codes, val, memory, longest=config.max_history)
        )
        valid, label = val.candidates != PADDING, val.label()
        weights = combine_parts(parts, valid, val_worth)
        student.weights.copy_(torch.tensor(weights))
        metrics |= {"weights": {"prior": weights[0], "head": weights[1]}}
        metrics |= _validation(parts, weights, valid, label, entropy)
    return student, metrics


def _lessons(config: DistillConfig, artifacts: Mapping[str, Artifact], folder: Path) -> Lessons | None:
    """The reasoner that teaches, if there is one."""
    if not config.teacher:
        return None
    from gr2.models.reasoner import Reasoner, SidSpec

    reasoner = Reasoner.load(artifacts[config.teacher].file("model"), sids=SidSpec.of(artifacts["tokenize"]))
    return Lessons(reasoner, config.max_history, folder)


def _worth(
    config: DistillConfig,
    dataset: Dataset,
    codes: NDArray[np.uint16],
    clicks: tuple[CandidateLists, NDArray[np.float64]],
    lessons: Lessons | None,
    seed: int,
) -> NDArray[np.float64]:
    """(R, K) what the prior learns of each candidate of the training lists: outcomes, lessons, or both."""
    lists, worth = clicks
    if lessons is None or not len(lists):
        return worth
    rows = np.arange(len(lists))
    if 0 < config.teacher_lists < len(rows):
        rows = np.sort(np.random.default_rng(seed).permutation(rows)[: config.teacher_lists])
    scores = np.full(lists.candidates.shape, -np.inf, dtype=np.float32)
    scores[rows] = lessons.scores(dataset, codes, lists.take(rows))
    return mixed_worth(worth, scores, config.teacher_weight, config.teacher_temperature)


def student_features(
    dataset: Dataset, codes: NDArray[np.uint16], lists: CandidateLists, memory: ItemMemory, *, longest: int
) -> NDArray[np.float32]:
    """(R, K, 3 + F + E) float32: the lists' own features, then what the memory has."""
    return np.concatenate([list_features(lists), list_memory(dataset, codes, lists, memory, longest=longest)], -1)


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


def load_memory(artifact: Artifact) -> ItemMemory:
    """The memory of a `distill` artefact."""
    near, counts, popularity, following, weights, titles, likeness, together, text = (
        artifact.array(f"{name}.npy") for name in MEMORY_FILES
    )
    return ItemMemory(
        CoPurchase(near, counts, popularity),
        Neighbours(following, weights),
        Neighbours(titles, likeness),
        together,
        text,
    )


def _arrays(memory: ItemMemory) -> list[NDArray[Any]]:
    """The memory's arrays in the order of `MEMORY_FILES`."""
    counted = memory.copurchase
    pairs = [each for near in (memory.following, memory.titles) for each in (near.items, near.weights)]
    return [counted.neighbours, counted.counts, counted.popularity, *pairs, memory.together, memory.text]
