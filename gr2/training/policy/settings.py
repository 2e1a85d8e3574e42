"""The keys that every stage has whose model learns from its own rollouts."""

from __future__ import annotations

from dataclasses import dataclass, field, fields

from gr2.config import INCIDENTAL, refuse_below
from gr2.models.policy import Divergence
from gr2.training.policy.recipe import Recipe
from gr2.training.policy.rollouts import Scale
from gr2.training.reasoner.settings import ReasonerConfig

__all__ = ["MOST", "PolicyConfig"]

# Logits divided by less overflow.
LEAST_TEMPERATURE = 0.01
# What is far above whatever makes sense; of numbers that no float32 holds, products are lost.
MOST = 100.0


@dataclass(frozen=True)
class PolicyConfig(ReasonerConfig):
    """Prompts, lists and optimiser (see `ReasonerConfig`), and DAPO.

    Attributes:
        steps: batches of answers to learn from.
        groups: lists a step.
        samples: answers a list.
        updates: steps of the optimiser on one batch of answers.
        batch: answers of one forward pass; where it is a multiple of `samples`, a list's prompt is read once for all.
        redraws: times that lists without a difference in reward are replaced by others.
        weight_decay: of AdamW; with adapters there is none.
        clip_low: how far below 1 a ratio of probabilities counts.
        clip_high: how far above 1.
        scale: divide advantages by the standard deviation of their group (`group`), or do not (`none`).
        temperature: of sampling, 0.01 to 100.
        kl: weight of the divergence from the start; 0 is none, and no second model.
        divergence: `reverse`, KL(policy || start), or `forward`.
        idle_steps: a training ends if its first so many steps have nothing to learn from; 0 is never.
        minutes: of training, at the end of which it ends whatever steps are left; 0 is no end. It does not identify
            what is made, since it cannot: the machine decides how many steps a minute has. The artefact says how many
            there were, and a training that was killed goes on with whatever time it is given then.
    """

    steps: int = 200
    groups: int = 8
    samples: int = 8
    updates: int = 1
    redraws: int = 3
    clip_low: float = 0.2
    clip_high: float = 0.28
    scale: Scale = "group"
    temperature: float = 1.0
    kl: float = 0.0
    divergence: Divergence = "reverse"
    idle_steps: int = field(default=20, metadata=INCIDENTAL)
    minutes: float = field(default=0.0, metadata=INCIDENTAL)

    def __post_init__(self) -> None:
        super().__post_init__()
        refuse_below(self, 1, "steps", "groups", "updates")
        refuse_below(self, 0, "redraws", "kl", "minutes", "idle_steps")
        if not 0 < self.clip_high <= MOST:
            raise ValueError(f"clip_high must be in (0, {MOST:g}], got {self.clip_high}")
        if not LEAST_TEMPERATURE <= self.temperature <= MOST:
            raise ValueError(
                f"temperature must be at least {LEAST_TEMPERATURE} and at most {MOST:g}, got {self.temperature}"
            )
        if self.answer_batch < self.samples:
            raise ValueError(f"answer_batch {self.answer_batch} must be at least samples, {self.samples}")
        if not 0 < self.clip_low <= 1:
            raise ValueError(f"clip_low must be in (0, 1], got {self.clip_low}")
        if self.samples < 2:
            raise ValueError(f"samples must be at least 2, got {self.samples}")

    def recipe(self) -> Recipe:
        """What `DapoTrainer` needs to know."""
        names = {field.name for field in fields(Recipe)} & {field.name for field in fields(self)}
        return Recipe(**{name: getattr(self, name) for name in names})
