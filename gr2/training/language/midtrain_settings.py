"""The configuration of the stage `midtrain`."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Literal

from gr2.config import LATER, MOST_THREADS, refuse_below
from gr2.models.scratch import Size
from gr2.training.language.causal import Recipe
from gr2.training.language.tasks import TASKS

__all__ = ["MidtrainConfig"]


@dataclass(frozen=True)
class MidtrainConfig:
    """The model, the tasks, the training, and the lists.

    Attributes:
        model: a folder with a Hugging Face causal language model; "" for one from scratch.
        from_scratch: size of a model from scratch: `tiny`, `small` or `base`.
        vocabulary: most tokens of a model from scratch, semantic IDs included.
        holdout: training events at each user's end that mid-training does not see.
        max_history: events that the model sees, the most recent ones.
        max_tokens: of a row of text.
        sequential: share of the users' sequences that an epoch learns, as semantic IDs; above 1 some come again.
        caption: share of the items' descriptions, from and to their IDs.
        persona: share of the users' tastes and titled histories.
        general: share of the lines of `corpus`.
        corpus: text files, general text a line.
        warmup_epochs: passes in which a given model's new rows train alone.
        warmup_learning_rate: of these passes.
        epochs: passes in which all of it trains.
        lora_rank: of the adapters; 0 trains all weights. Ignored from scratch.
        dropout: on embeddings and block outputs.
        batch_tokens: tokens of one batch, with padding.
        packing: lay rows side by side in sequences of the longest row's length, `on` or `off`; `auto` is on where the
            device is a GPU and the model keeps such rows apart. Off, a batch has rows of like lengths.
        accumulate: batches a step and process.
        learning_rate: of AdamW, at its peak.
        weight_decay: of AdamW, on matrices and embeddings.
        warmup: share of the steps in which the learning rate rises.
        clip: largest norm of a gradient.
        precision: of matrix products; `auto` is bfloat16 where the device multiplies it in hardware.
        checkpoint_seconds: time between two checkpoints.
        list_size: candidates a list.
        beams: of the search for them, at least `list_size`.
        evaluate: rank the validation and test splits; without it, only the training lists are made.
        tracker: `none`, or where losses go besides the screen: `tensorboard` and whatever else accelerate knows.
        threads: of torch; 0 leaves torch's own choice.
    """

    model: str = ""
    from_scratch: Size = "small"
    vocabulary: int = 4096
    holdout: int = 1
    max_history: int = 50
    max_tokens: int = 512
    sequential: float = 1.0
    caption: float = 0.1
    persona: float = 0.02
    general: float = 1.0
    corpus: tuple[str, ...] = ()
    warmup_epochs: int = 1
    warmup_learning_rate: float = 1e-3
    epochs: int = 12
    lora_rank: int = 0
    dropout: float = 0.2
    batch_tokens: int = 4096
    packing: Literal["auto", "on", "off"] = field(default="auto", metadata=LATER)
    accumulate: int = 1
    learning_rate: float = 3e-3
    weight_decay: float = 0.1
    warmup: float = 0.05
    clip: float = 1.0
    precision: Literal["auto", "bfloat16", "float32"] = "auto"
    checkpoint_seconds: float = 60.0
    list_size: int = 10
    beams: int = 20
    evaluate: bool = True
    tracker: str = "none"
    threads: int = 0

    def __post_init__(self) -> None:
        refuse_below(
            self, 1, "vocabulary", "max_history", "max_tokens", "batch_tokens", "accumulate", "list_size", "beams"
        )
        refuse_below(self, 0, "holdout", *TASKS, "warmup_epochs", "epochs", "lora_rank", "weight_decay", "threads")
        for name in ("learning_rate", "warmup_learning_rate", "clip"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        for name in ("dropout", "warmup"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be in [0, 1), got {getattr(self, name)}")
        if self.threads > MOST_THREADS:
            raise ValueError(f"threads must be at most {MOST_THREADS}, got {self.threads}")
        if self.beams < self.list_size:
            raise ValueError(f"beams must be at least list_size, {self.list_size}, got {self.beams}")
        if self.checkpoint_seconds < 0:
            raise ValueError(f"checkpoint_seconds must not be negative, got {self.checkpoint_seconds}")

    def recipe(self, *, packed: bool) -> Recipe:
        """What `CausalTrainer` needs to know."""
        named = {each.name: getattr(self, each.name) for each in fields(Recipe) if each.name != "packed"}
        return Recipe(**named, packed=packed)
