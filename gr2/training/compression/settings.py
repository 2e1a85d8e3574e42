"""The configuration of the stage `compress`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from gr2.config import refuse_below
from gr2.models.compressing import Compressing
from gr2.training.language.weighted import Recipe
from gr2.training.policy.settings import PolicyConfig
from gr2.training.reasoner.settings import RankedConfig
from gr2.training.teachers.endpoint_keys import EndpointKeys

__all__ = ["CompressConfig"]


@dataclass(frozen=True)
class CompressConfig(PolicyConfig, RankedConfig, EndpointKeys):
    """Prompts and DAPO (see `PolicyConfig`), contexts, their judge (see `EndpointKeys`), and `RankedConfig`.

    The keys about prompts say which events are shortened and how their lines are written, and how the reasoner that
    ranks from them is asked.

    Attributes:
        start: the stage whose model becomes the compressor, `midtrain` or `sft`.
        reasoner: the stage whose model ranks from contexts: `midtrain`, `sft`, `opd`, `rl` or `bypass`.
        ranking: how it ranks: by its `answer` to a prompt, or by the `likelihood` of each candidate's ID after the
            context's, as mid-training taught it, which reads no text: contexts then hold none.
        share: tokens of a context, as a share of the history's.
        form: `select` keeps some of the history's lines, whole or the ID alone; `free` is text of the model's own.
        warm: what the compressor learns to say before it learns by trying: the `covering` selection, the `newest`
            events, or nothing (`none`).
        warm_epochs: passes over the training lists' histories.
        warm_batch: histories of one batch.
        warm_learning_rate: of AdamW, at its peak.
        judge: `reasoner` ranks from the context; `endpoint` and `local` are asked what they think of it.
        alpha: weight of shortness in the reward.
        penalty: what the reward of a context that trails off in dots is multiplied by.
    """

    reasoning: bool = False
    start: Literal["midtrain", "sft"] = "midtrain"
    reasoner: Literal["midtrain", "sft", "opd", "rl", "bypass"] = "sft"
    ranking: Literal["answer", "likelihood"] = "answer"
    share: float = 0.2
    form: Literal["select", "free"] = "select"
    warm: Literal["covering", "newest", "none"] = "covering"
    warm_epochs: int = 1
    warm_batch: int = 16
    warm_learning_rate: float = 1e-3
    judge: Literal["reasoner", "endpoint", "local"] = "reasoner"
    alpha: float = 0.1
    penalty: float = 0.5
    validation_lists: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.compressor:
            raise ValueError("compressor: this is the stage that makes one; leave it out here")
        if not self.max_history:
            raise ValueError("max_history must be at least 1, got 0: without events there is nothing to shorten")
        if not 0 < self.share < 1:
            raise ValueError(f"share must be in (0, 1), got {self.share}")
        for name in ("alpha", "penalty"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be in [0, 1], got {getattr(self, name)}")
        refuse_below(self, 1, "warm_epochs", "warm_batch")
        if self.warm_learning_rate <= 0:
            raise ValueError(f"warm_learning_rate must be positive, got {self.warm_learning_rate}")
        if self.judge == "endpoint" and not (self.base_url and self.model):
            raise ValueError("judge = 'endpoint' needs base_url (http://HOST:PORT/v1) and model (its name there)")
        if self.judge == "local" and not self.model:
            raise ValueError("judge = 'local' needs model, a folder with a causal language model")

    def compressing(self, *, sampling: bool) -> Compressing:
        """How contexts are sampled to learn from, or the likeliest one of each history."""
        samples, temperature = (self.samples, self.temperature) if sampling else (1, 0.0)
        return Compressing(
            self.share,
            self.form == "select",
            self.answer_batch,
            temperature,
            samples,
            ids_only=self.ranking == "likelihood",
        )

    def warm_recipe(self) -> Recipe:
        """How the compressor learns the selections that it starts from."""
        return Recipe(
            reasoning_weight=0.0,
            ranking_weight=1.0,
            epochs=self.warm_epochs,
            batch=self.warm_batch,
            accumulate=1,
            learning_rate=self.warm_learning_rate,
            weight_decay=self.weight_decay,
            warmup=self.warmup,
            clip=self.clip,
            lora_rank=self.lora_rank,
            activation_checkpointing=False,
            checkpoint_seconds=self.checkpoint_seconds,
            tracker="none",
        )

    def judge_files(self) -> dict[str, Path]:
        """The files of a local judge."""
        folder = Path(self.model)
        if self.judge != "local" or not folder.is_dir():
            return {}
        return {f"judge:{path.name}": path for path in sorted(folder.iterdir()) if path.is_file()}
