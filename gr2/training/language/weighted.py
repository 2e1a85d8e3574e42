"""Supervised fine-tuning with a weight a token: TRL's trainer, whose loss tells reasoning from ranking."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from datasets import Dataset
from numpy.typing import NDArray
from peft import LoraConfig
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from gr2.training.loop.resumable import Resumable, checkpointing, grouped_steps, tracker_callbacks

__all__ = ["PROMPT", "RANKING", "REASONING", "Collator", "Example", "Recipe", "WeightedTrainer", "weighted_trainer"]

PROMPT, REASONING, RANKING = 0, 1, 2


@dataclass(frozen=True)
class Example:
    """A prompt with its answer: (T,) int64 token `ids` and (T,) int8 `parts`, each PROMPT, REASONING or RANKING."""

    ids: NDArray[np.int64]
    parts: NDArray[np.int8]


@dataclass(frozen=True)
class Recipe:
    """How examples are trained on; see `SftConfig`."""

    reasoning_weight: float
    ranking_weight: float
    epochs: int
    batch: int
    accumulate: int
    learning_rate: float
    weight_decay: float
    warmup: float
    clip: float
    lora_rank: int
    activation_checkpointing: bool
    checkpoint_seconds: float
    tracker: str


@dataclass(frozen=True)
class Collator:
    """Batches from rows whose `rows` are the examples' numbers: padded at the end."""

    examples: Sequence[Example]
    padding: int

    def __call__(self, batches: Sequence[Mapping[str, Sequence[int]]]) -> dict[str, Tensor]:
        """`input_ids` (B, T) int64 and `parts` (B, T) int8; `lengths` (B,) int64 without the padding."""
        chosen = [self.examples[row] for batch in batches for row in batch["rows"]]
        width = max(len(each.ids) for each in chosen)
        ids = np.full((len(chosen), width), self.padding, dtype=np.int64)
        parts = np.full(ids.shape, PROMPT, dtype=np.int8)
        for row, each in enumerate(chosen):
            length = len(each.ids)
            ids[row, :length], parts[row, :length] = each.ids, each.parts
        arrays = {"input_ids": ids, "parts": parts, "lengths": np.array([len(each.ids) for each in chosen])}
        return {name: torch.from_numpy(array) for name, array in arrays.items()}


class WeightedTrainer(Resumable, SFTTrainer):
    """TRL's SFT trainer with the loss L = - sum_t w_t log p(x_t | x_<t) / sum_t w_t over the tokens t of a step.

    w_t is `weights[part of t]`: 0 in the prompt, lambda_r in the reasoning, lambda_o in the ranking and the end of the
    turn (GR2's L_SFT up to its normaliser). The sums run over all batches and devices of a step, so that only the
    ratio of the weights matters and a step weighs the same however it is divided.
    """

    # `compute_loss` divides by a step's whole weight.
    loss_is_scaled_for_ga = True  # type: ignore[assignment]

    def __init__(self, *arguments: Any, weights: Sequence[float], **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.weights = torch.tensor(weights)

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        """The weighted loss of a batch; `num_items_in_batch` is the weight of the whole step."""
        if return_outputs:
            raise NotImplementedError("the weighted loss has no outputs: logits are computed where they count only")
        parts, targets = inputs["parts"][:, 1:].long(), inputs["input_ids"][:, 1:]
        counted = (parts != PROMPT).any(0).nonzero().flatten()
        # From the first answer's first token on: prompts need no logits, which are a third of a small model's work.
        columns = torch.arange(int(counted[0]), int(counted[-1]) + 1, device=parts.device)
        # Padding at the end needs no mask: nothing that counts attends to it.
        logits = model(input_ids=inputs["input_ids"], use_cache=False, logits_to_keep=columns).logits
        parts, targets = parts[:, columns], targets[:, columns]
        answer = parts != PROMPT
        losses = F.cross_entropy(logits[answer].float(), targets[answer], reduction="none")
        part = parts[answer]
        weight = self.weights.to(losses.device)[part]
        self._count(losses.detach(), part, inputs["lengths"])
        total = weight.sum() if num_items_in_batch is None else num_items_in_batch
        # Gradients are averaged over the devices, while the total is the sum over all of them.
        loss: Tensor = (weight * losses).sum() / total * self.accelerator.num_processes
        return loss

    def _count(self, losses: Tensor, part: Tensor, lengths: Tensor) -> None:
        names = {"reasoning": part == REASONING, "ranking": part == RANKING}
        self.count({name: ((losses * own).sum(), own.sum()) for name, own in names.items()}, lengths.sum())

    def _get_num_items_in_batch(self, batch_samples: Sequence[Mapping[str, Tensor]], device: torch.device) -> Tensor:
        weight = sum(
            (self.weights[batch["parts"][:, 1:].long().cpu()].sum() for batch in batch_samples), torch.zeros(())
        )
        total: Tensor = self.accelerator.reduce(weight.to(device), "sum")
        return total


def weighted_trainer(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    recipe: Recipe,
    *,
    seed: int,
    checkpoints: Path,
    bfloat16: bool = False,
    stage: str = "sft",
) -> WeightedTrainer:
    """A trainer of `examples`, each of which must have an answer; `fit` trains the model, or adapters on it, in place.

    `checkpoints` holds the folder's checkpoints and, below `logs`, what TensorBoard reads.
    """
    lengths = np.array([len(each.ids) for each in examples])
    steps = grouped_steps(lengths, recipe.batch, recipe.epochs, seed)
    processes = PartialState(cpu=not torch.cuda.is_available()).num_processes
    reports, callbacks = tracker_callbacks(recipe.tracker, checkpoints / "logs")
    adapter = LoraConfig(
        r=max(1, recipe.lora_rank), lora_alpha=2 * recipe.lora_rank, target_modules="all-linear", task_type="CAUSAL_LM"
    )
    arguments = SFTConfig(
        output_dir=str(checkpoints),
        num_train_epochs=1,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=recipe.accumulate,
        train_sampling_strategy="sequential",
        dataset_kwargs={"skip_prepare_dataset": True},
        remove_unused_columns=False,
        max_length=None,
        learning_rate=recipe.learning_rate,
        weight_decay=recipe.weight_decay,
        max_grad_norm=recipe.clip,
        lr_scheduler_type="cosine",
        warmup_steps=round(recipe.warmup * len(steps) / (recipe.accumulate * processes)),
        bf16=bfloat16,
        use_cpu=not torch.cuda.is_available(),
        dataloader_pin_memory=torch.cuda.is_available(),
        **checkpointing(SFTConfig, on=recipe.activation_checkpointing),
        save_strategy="no",
        logging_steps=10,
        logging_nan_inf_filter=False,
        disable_tqdm=True,
        report_to=reports,
        seed=seed,
    )
    return WeightedTrainer(
        model,
        arguments,
        data_collator=Collator(examples, int(tokenizer.pad_token_id)),
        train_dataset=Dataset.from_dict({"rows": steps}),
        processing_class=tokenizer,
        callbacks=callbacks,
        peft_config=adapter if recipe.lora_rank else None,
        stage=stage,
        checkpoint_seconds=recipe.checkpoint_seconds,
        weights=(0.0, recipe.reasoning_weight, recipe.ranking_weight),
    )
