"""The stage `distill`: the student learns to rank the pre-ranker's lists.

Two losses share one tree pass. On lists that hold their target: listwise softmax over the candidates,
-log softmax(s)[target], with s = path log-likelihood + prior. On every training position: alpha times the generative
loss, -log p(target's path). The first `pretrain_epochs` see positions only. Training lists are cross-fitted by the
pre-ranker; the best epoch is the one with the highest N@5 on the validation lists.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save as to_safetensors
from torch import Tensor

from gr2.artifact import Artifact, open_stage, write_atomic, write_json
from gr2.config import to_json
from gr2.data.candidates import CandidateLists
from gr2.data.dataset import Dataset
from gr2.metrics import rank_of_target, ranking_metrics
from gr2.models.scoring import slate_losses, slate_scores
from gr2.models.slate import Slates, build_slates, epoch_batches, list_features
from gr2.models.student import Student, StudentConfig
from gr2.progress import track
from gr2.training.checkpoint import load_checkpoint, save_checkpoint

__all__ = ["INPUTS", "DistillConfig", "load_student", "run"]

INPUTS = ("prepare", "prerank", "tokenize")
WEIGHTS, SIZES = "student.safetensors", "student.json"
EVALUATION_BATCH = 256
PLACE = ("epoch", "step", "done", "stale", "best_score")


@dataclass(frozen=True)
class DistillConfig:
    """The student's sizes (see `StudentConfig`) and its training.

    `candidates` is how many of a list are trained on; `slate` is how many are re-ranked in validation. `alpha` weighs
    the generative loss. `pretrain_epochs` passes over positions come before `epochs` passes over positions and lists;
    training stops when N@5 has not risen for `patience` epochs. Batches are counted in rows.
    """

    dim: int = 64
    layers: int = 2
    heads: int = 2
    max_history: int = 50
    memory: int = 0
    head: bool = False
    dropout: float = 0.2
    candidates: int = 20
    slate: int = 10
    alpha: float = 0.1
    pretrain_epochs: int = 4
    epochs: int = 6
    patience: int = 3
    batch_lists: int = 64
    batch_positions: int = 256
    learning_rate: float = 2e-3
    weight_decay: float = 0.01
    warmup: float = 0.05
    clip: float = 1.0
    checkpoint_seconds: float = 60.0

    def __post_init__(self) -> None:
        for name in ("candidates", "slate", "patience", "batch_lists", "batch_positions"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("alpha", "pretrain_epochs", "epochs", "weight_decay", "checkpoint_seconds"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        for name in ("learning_rate", "clip"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        if not 0 <= self.warmup < 1:
            raise ValueError(f"warmup must be in [0, 1), got {self.warmup}")
        self.student(levels=4, level_size=2, features=3)

    def student(self, *, levels: int, level_size: int, features: int) -> StudentConfig:
        """The model's configuration for a codebook and a width of features."""
        names = ("dim", "layers", "heads", "max_history", "memory", "head", "dropout")
        own = {name: getattr(self, name) for name in names}
        return StudentConfig(levels=levels, level_size=level_size, features=features, **own)


@dataclass(frozen=True)
class Corpus:
    """What is trained on: `positions` are lists of the target alone, `lists` hold their target."""

    dataset: Dataset
    codes: NDArray[np.uint16]
    level_size: int
    positions: CandidateLists
    lists: CandidateLists
    validation: CandidateLists

    def slates(self, lists: CandidateLists, features: NDArray[np.float32], longest: int) -> Slates:
        """The batch of all rows of `lists`."""
        return build_slates(self.dataset, self.codes, lists, features, level_size=self.level_size, longest=longest)


def run(config: DistillConfig, inputs: Mapping[str, Artifact], out: Path, seed: int) -> Artifact:
    """Train the student; the artefact holds `student.safetensors` and `student.json` (its configuration)."""
    parents = {name: inputs[name].digest for name in INPUTS}
    with open_stage(out, "distill", config, parents, seed) as work:
        started = time.monotonic()
        corpus = _read(config, inputs)
        trainer = Trainer(config, corpus, seed)
        trainer.resume(work.checkpoints / "student.pt")
        trainer.train()
        student = trainer.best_student()
        write_atomic(work.path / WEIGHTS, to_safetensors(student.state_dict()))
        write_json(work.path / SIZES, to_json(student.config))
        work.metrics.update(trainer.metrics(), train_seconds=time.monotonic() - started)
    return Artifact.load(out, "distill")


def load_student(artifact: Artifact) -> Student:
    """The student of a `distill` artefact, in evaluation mode."""
    import json

    from safetensors.torch import load_file

    student = Student(StudentConfig(**json.loads(artifact.file(SIZES).read_text())))
    student.load_state_dict(load_file(artifact.file(WEIGHTS)))
    return student.eval()


def _read(config: DistillConfig, inputs: Mapping[str, Artifact]) -> Corpus:
    dataset = Dataset.load(inputs["prepare"].path)
    codes = np.load(inputs["tokenize"].file("codes.npy"), allow_pickle=False)
    level_size = int(inputs["tokenize"].config["level_size"])
    train = CandidateLists.load(inputs["prerank"].file("train.parquet"))
    val = CandidateLists.load(inputs["prerank"].file("val.parquet"))
    return Corpus(
        dataset,
        codes,
        level_size,
        training_positions(dataset),
        train.top(config.candidates).with_target(),
        val.top(config.slate).with_target(),
    )


def training_positions(dataset: Dataset) -> CandidateLists:
    """Every position of the training split, first events included, as lists of the target alone."""
    counts = dataset.lengths - 2
    user = np.repeat(np.arange(dataset.users), counts)
    position = np.arange(len(user)) - np.repeat(np.cumsum(counts) - counts, counts)
    target = dataset.items[dataset.offsets[user] + position]
    scores = np.zeros((len(user), 1), dtype=np.float32)
    return CandidateLists(user.astype(np.int32), position.astype(np.int32), target, target[:, None], scores)


class Trainer:
    """The training loop and all of its state: a checkpoint after any step continues bit for bit."""

    def __init__(self, config: DistillConfig, corpus: Corpus, seed: int) -> None:
        self.config, self.corpus, self.seed = config, corpus, seed
        self.features = list_features(corpus.lists)
        self.position_features = np.zeros((len(corpus.positions), 1, self.features.shape[2]), dtype=np.float32)
        self.validation_features = list_features(corpus.validation)
        sizes = config.student(
            levels=corpus.codes.shape[1], level_size=corpus.level_size, features=self.features.shape[2]
        )
        torch.manual_seed(seed)
        self.student = Student(sizes)
        self.optimiser = torch.optim.AdamW(self._groups(), lr=config.learning_rate, betas=(0.9, 0.98), fused=True)
        self.epoch = self.step = self.done = self.stale = 0
        self.best_score = -1.0
        self.best: dict[str, Tensor] = {}
        self.history: list[dict[str, float]] = []
        self.checkpoint: Path | None = None
        self.saved = time.monotonic()

    def _groups(self) -> list[dict[str, Any]]:
        matrices = [parameter for parameter in self.student.parameters() if parameter.ndim > 1]
        others = [parameter for parameter in self.student.parameters() if parameter.ndim <= 1]
        return [
            {"params": matrices, "weight_decay": self.config.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ]

    def batches(self, epoch: int) -> list[tuple[int, NDArray[np.int64]]]:
        """The epoch's batches: source 0 are positions, source 1 lists. Only (seed, epoch) decide them."""
        lengths = [np.minimum(self.corpus.positions.position, self.config.max_history)]
        sizes = [self.config.batch_positions]
        if epoch >= self.config.pretrain_epochs:
            lengths.append(np.minimum(self.corpus.lists.position, self.config.max_history))
            sizes.append(self.config.batch_lists)
        return epoch_batches(lengths, sizes, self.seed & 0xFFFF_FFFF, epoch)

    def train(self) -> None:
        """Train from where the state stands to the end of the schedule, or until validation stops rising."""
        epochs = self.config.pretrain_epochs + self.config.epochs
        total = self._total_steps()
        while self.epoch < epochs and self.stale < self.config.patience:
            batches = self.batches(self.epoch)
            rows = sum(len(rows) for _, rows in batches)
            start = sum(len(rows) for _, rows in batches[: self.done])
            phase = "pre-training" if self.epoch < self.config.pretrain_epochs else "training"
            with track(rows, f"student {phase}, epoch {self.epoch + 1} of {epochs}", unit="lists", start=start) as bar:
                for source, chosen in batches[self.done :]:
                    self._step(source, chosen, total, bar.advance)
            self._finish_epoch()

    def _step(self, source: int, chosen: NDArray[np.int64], total: int, report: Any) -> None:
        lists = self.corpus.positions if source == 0 else self.corpus.lists
        features = self.position_features if source == 0 else self.features
        slates = self.corpus.slates(lists.take(chosen), features[chosen], self.config.max_history)
        for group in self.optimiser.param_groups:
            group["lr"] = self.config.learning_rate * _schedule(self.step, total, self.config.warmup)
        self.student.train()
        listwise, generative = slate_losses(self.student, slates)
        loss = self.config.alpha * generative if source == 0 else listwise
        if self.epoch < self.config.pretrain_epochs:
            loss = generative
        self.optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.student.parameters(), self.config.clip)
        self.optimiser.step()
        self.step, self.done = self.step + 1, self.done + 1
        name = "generative" if source == 0 else "listwise"
        report(len(chosen), **{name: float(generative if source == 0 else listwise)})
        if self.checkpoint is not None and time.monotonic() - self.saved >= self.config.checkpoint_seconds:
            self.save()

    def _finish_epoch(self) -> None:
        ranks = self.validate()
        values = ranking_metrics(ranks)
        score = values["N@5"]
        self.history.append({"N@5": score, "R@1": values["R@1"]})
        self.stale += 1
        if score > self.best_score:
            self.best_score, self.stale = score, 0
            self.best = {name: value.detach().clone() for name, value in self.student.state_dict().items()}
        if self.epoch < self.config.pretrain_epochs:
            self.stale = 0
        self.epoch, self.done = self.epoch + 1, 0
        if self.checkpoint is not None:
            self.save()

    def validate(self) -> NDArray[np.int64]:
        """The target's rank in each validation list, from 1."""
        return student_ranks(self.student, self.corpus, self.corpus.validation, self.validation_features)

    def best_student(self) -> Student:
        """The student of the best epoch, in evaluation mode."""
        student = Student(self.student.config)
        student.load_state_dict(self.best or self.student.state_dict())
        return student.eval()

    def metrics(self) -> dict[str, Any]:
        """Sizes, the course of validation, and the validation metrics of the incoming order and the student."""
        validation = self.corpus.validation
        record: dict[str, Any] = {
            "parameters": sum(parameter.numel() for parameter in self.student.parameters()),
            "lists": len(self.corpus.lists),
            "positions": len(self.corpus.positions),
            "validation_lists": len(validation),
            "epochs": self.history,
        }
        if len(validation):
            record["incoming"] = ranking_metrics(validation.label() + 1)
            best = student_ranks(self.best_student(), self.corpus, validation, self.validation_features)
            record["student"] = ranking_metrics(best)
        return record

    def save(self) -> None:
        """Write the checkpoint: weights, moments, random state, and the place in the schedule."""
        assert self.checkpoint is not None
        save_checkpoint(
            self.checkpoint,
            {
                "student": self.student.state_dict(),
                "optimiser": self.optimiser.state_dict(),
                "random": torch.get_rng_state(),
                "best": self.best,
                "history": self.history,
                "place": {name: getattr(self, name) for name in PLACE},
            },
        )
        self.saved = time.monotonic()

    def resume(self, checkpoint: Path) -> None:
        """Keep checkpoints in the file `checkpoint`, and continue from what a killed run left there."""
        self.checkpoint = checkpoint
        state = load_checkpoint(checkpoint)
        if state is None:
            return
        self.student.load_state_dict(state["student"])
        self.optimiser.load_state_dict(state["optimiser"])
        torch.set_rng_state(state["random"])
        self.best, self.history = state["best"], state["history"]
        for name in PLACE:
            setattr(self, name, state["place"][name])

    def _total_steps(self) -> int:
        first = math.ceil(len(self.corpus.positions) / self.config.batch_positions)
        second = math.ceil(len(self.corpus.lists) / self.config.batch_lists)
        return first * (self.config.pretrain_epochs + self.config.epochs) + second * self.config.epochs


def student_ranks(
    student: Student, corpus: Corpus, lists: CandidateLists, features: NDArray[np.float32]
) -> NDArray[np.int64]:
    """(R,) int64: the target's rank, from 1, in each list by the student's scores; every list holds its target."""
    student.eval()
    label = lists.label()
    ranks = np.zeros(len(lists), dtype=np.int64)
    for rows in np.array_split(np.argsort(lists.position, kind="stable"), max(1, len(lists) // EVALUATION_BATCH)):
        slates = corpus.slates(lists.take(rows), features[rows], student.config.max_history)
        ranks[rows] = rank_of_target(slate_scores(student, slates), label[rows])
    return ranks


def _schedule(step: int, total: int, warmup: float) -> float:
    """The learning rate's factor: linear warm-up, then half a cosine down to 1 %."""
    rise = max(1, round(warmup * total))
    if step < rise:
        return (step + 1) / rise
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, total - rise)))
