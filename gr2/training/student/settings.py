"""The configuration of the stage `distill`."""

from __future__ import annotations

from dataclasses import dataclass, field, fields

from gr2.config import LATER, refuse_below
from gr2.models.student import Encoding, StudentConfig
from gr2.training.student.generative import Recipe
from gr2.training.student.lessons import TEACHERS
from gr2.training.student.propensity import Method

__all__ = ["DistillConfig"]


@dataclass(frozen=True)
class DistillConfig:
    """The student's sizes (see `StudentConfig`) and its training.

    Attributes:
        dim: width of the transformer and the head.
        layers: transformer blocks.
        pruned_layers: blocks that are left after the training; those go on to learn from the deeper student. 0 for all.
        pruned_epochs: passes over the training positions after pruning.
        encoding: what the transformer's token of the history is, an "item" (the sum of its codes' vectors) or a "code".
        heads: attention heads; they divide `dim`.
        max_history: events that the student sees, the most recent ones.
        dropout: of the transformer.
        neighbours: items of each kind that the memory keeps for each item.
        vectors: width of the memory's vectors, of those made of users and of those made of texts.
        folds: divisions of the users for the cross-fitted memory.
        slate: candidates of a list that the prior is fitted on and validation re-ranks.
        prior_epochs: passes over the training lists.
        prior_dropout: of the prior's hidden units.
        teacher: the stage whose reasoner teaches the prior its distribution over each list's candidates; "" for none.
        teacher_weight: share of the teacher in what the prior learns, from 0, the outcomes alone, to 1.
        teacher_temperature: what the reasoner's log-likelihoods are divided by.
        teacher_lists: most lists that the teacher reads, drawn by the seed; 0 for all. The others teach their outcomes.
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
    pruned_layers: int = field(default=0, metadata=LATER)
    pruned_epochs: int = field(default=2, metadata=LATER)
    encoding: Encoding = field(default="item", metadata=LATER)
    heads: int = 2
    max_history: int = 50
    dropout: float = 0.2
    neighbours: int = 64
    vectors: int = 64
    folds: int = 5
    slate: int = 10
    prior_epochs: int = 20
    prior_dropout: float = 0.3
    teacher: str = ""
    teacher_weight: float = 0.5
    teacher_temperature: float = 1.0
    teacher_lists: int = 0
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
        refuse_below(self, 1, "neighbours", "vectors", "slate", "batch", "negatives")
        if self.folds < 2:
            raise ValueError(
                f"folds must be at least 2, so that no list is counted in its own evidence; got {self.folds}"
            )
        refuse_below(
            self,
            0,
            "prior_epochs",
            "epochs",
            "weight_decay",
            "checkpoint_seconds",
            "threads",
            "teacher_lists",
            "pruned_epochs",
        )
        for name in ("learning_rate", "clip", "teacher_temperature"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        if not 0 < self.least_propensity <= 1:
            raise ValueError(f"least_propensity must be in (0, 1], got {self.least_propensity}")
        if (self.propensity == "given") != bool(self.propensities):
            raise ValueError('propensities go with propensity = "given", and it needs them')
        if not all(0 < each <= 1 for each in self.propensities):
            raise ValueError(f"propensities must be in (0, 1], got {self.propensities}")
        for name in ("warmup", "prior_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be in [0, 1), got {getattr(self, name)}")
        if self.pruned_layers and not 0 < self.pruned_layers < self.layers:
            raise ValueError(
                f"pruned_layers must be fewer than layers, {self.layers}, got {self.pruned_layers}; 0 prunes none"
            )
        if not 0 <= self.teacher_weight <= 1:
            raise ValueError(f"teacher_weight must be in [0, 1], got {self.teacher_weight}")
        if self.teacher and self.teacher not in TEACHERS:
            raise ValueError(f"teacher must be one of {', '.join(TEACHERS)}, or empty; got {self.teacher!r}")
        self.student(items=1, levels=1, level_size=2, features=3)

    def student(self, *, items: int, levels: int, level_size: int, features: int) -> StudentConfig:
        """The model's configuration for a catalogue, a codebook and a width of features."""
        names = ("dim", "layers", "heads", "max_history", "dropout")
        own = {name: getattr(self, name) for name in names}
        return StudentConfig(
            items=items, levels=levels, level_size=level_size, features=features, encoding=self.encoding, **own
        )

    def recipe(self) -> Recipe:
        """What `GenerativeTrainer` needs to know."""
        return Recipe(**{field.name: getattr(self, field.name) for field in fields(Recipe)})
