"""DAPO (arXiv 2503.14476) on TRL's GRPO trainer, with rollouts and log-probabilities of constrained answers.

TRL keeps the loop, the optimiser, the clipped token-mean loss and the checkpoints. Replaced are what its hooks cannot
know: where rollouts come from, that groups of equal rewards are dropped and redrawn, and that a token chosen from a set
has the probability that the set gives it. A frozen model may be stayed close to (KL, or on-policy distillation).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from datasets import Dataset
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl.trainer.grpo_config import GRPOConfig
from trl.trainer.grpo_trainer import GRPOTrainer

from gr2.errors import ConfigError, Gr2Error
from gr2.models.policy import Choices, add_choice_scores, anchor_of
from gr2.models.reading import takes_gaps
from gr2.training.loop.resumable import Resumable, tracker_callbacks
from gr2.training.policy.recipe import Recipe
from gr2.training.policy.rollouts import Draw, Group, advantages, has_signal, training_batch

__all__ = ["DapoTrainer", "Watch"]

# From the outcomes of a step's answers, on all processes, and what was logged before, to figures by name.
Watch = Callable[[Sequence[Any], Sequence[Mapping[str, float]]], dict[str, float]]


class DapoTrainer(Resumable, GRPOTrainer):
    """Trains `model` by the groups that `draw` samples from it for tasks 0 to `tasks` - 1.

    A step draws `groups` groups, divided over the processes. Of a group with equal rewards another task is drawn in its
    place, at most `redraws` times, on all processes alike; what is still missing then counts for nothing, not even in
    the number of tokens that the loss is divided by. With an anchor no group is dropped, since all of them teach.

    Which tasks a step draws, and every sample, depends on the seed and the step alone, so that a checkpoint continues
    exactly. `watch` turns the outcomes of all answers that were drawn into figures, which TRL logs; it may raise.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        settings: GRPOConfig,
        recipe: Recipe,
        *,
        stage: str,
        tasks: int,
        draw: Draw,
        watch: Watch,
        anchor: PreTrainedModel | None = None,
    ) -> None:
        recipe.refuse(tasks, PartialState().num_processes)
        if recipe.kl and anchor is None:
            raise ValueError("kl needs a model to stay close to")
        super().__init__(
            model=model,
            args=settings,
            reward_funcs=_rewarded,
            # TRL's loop wants rows; what is drawn depends on the step alone.
            train_dataset=Dataset.from_dict({"prompt": [""] * recipe.groups}),
            processing_class=tokenizer,
            callbacks=tracker_callbacks(recipe.tracker, Path(str(settings.output_dir)) / "logs")[1],
            stage=stage,
            checkpoint_seconds=recipe.checkpoint_seconds,
            seconds=60.0 * recipe.minutes,
        )
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            raise ConfigError(
                "answers are sampled from a whole model in each process: launch without FSDP and DeepSpeed"
            )
        add_choice_scores(model)
        self._recipe, self._settings, self._tasks = recipe, settings, tasks
        self._draw, self._watch = draw, watch
        self._anchor = None if anchor is None else anchor.to(self.accelerator.device).eval().requires_grad_(False)
        self._outside = torch.zeros(1, _rows(model), dtype=torch.bool, device=self.accelerator.device)
        self._parts: list[dict[str, Tensor]] = []
        self._choices: Choices | None = None
        self._divergences: Tensor | None = None

    def _due(self) -> bool:
        """Only where new answers are drawn: others would have to be kept with the weights."""
        return self.state.global_step % self._recipe.updates == 0 and super()._due()

    def _prepare_inputs(self, generation_batch: Any) -> dict[str, Any]:
        """A part of the answers. TRL shuffles them; whole groups need their prompt read but once."""
        parts = self._settings.steps_per_generation or 1
        if self._step % parts == 0 or not self._parts:
            whole = self._generate_and_score_completions(generation_batch)
            self._parts = [_trimmed(_part(whole, number, parts)) for number in range(parts)]
            # With several updates a batch the weights move before the answers are used up.
            if self._recipe.updates > 1:
                for part in self._parts:
                    part["old_per_token_logps"] = self._log_probs(part)
        return self._parts[self._step % parts]

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        recipe, rank = self._recipe, self.accelerator.process_index
        step = self.state.global_step // recipe.updates
        model = self.accelerator.unwrap_model(self.model)
        model.eval()
        groups, drawn = self._live_groups(step, rank, len(inputs) // recipe.samples)
        model.train()
        live = np.repeat([self._counts(group) for group in groups], recipe.samples)
        values = np.concatenate([advantages(group, recipe.scale) for group in groups])
        answers = [rollout for group in groups for rollout in group]
        batch, self._outside = training_batch(
            answers, values * live, live, pad=self._tokenizer.pad_token_id, vocabulary=_rows(self.model)
        )
        self._outside = self._outside.to(self.accelerator.device)
        batch = {name: tensor.to(self.accelerator.device) for name, tensor in batch.items()}
        batch["num_items_in_batch"] = self.accelerator.gather(batch["tool_mask"].sum()).sum()
        self._log_rollouts(drawn, live)
        return batch

    def _live_groups(self, step: int, rank: int, wanted: int) -> tuple[list[Group], list[Group]]:
        """This process's groups, live ones first, and all that were drawn for them."""
        recipe = self._recipe
        order = self._schedule(step)
        tasks = order[rank * wanted : (rank + 1) * wanted].tolist()
        drawn: list[Group] = []
        for attempt in range(recipe.redraws + 1):
            seed = _mixed(self.args.seed, step, attempt, rank)
            if tasks:
                drawn += self._draw(tasks, seed)
            missing = wanted - sum(map(self._counts, drawn))
            if not int(self.accelerator.gather(torch.tensor([missing], device=self.accelerator.device)).max()):
                break
            generator = np.random.default_rng(seed)
            tasks = generator.integers(self._tasks, size=max(0, missing)).tolist()
        return sorted(drawn, key=self._counts, reverse=True)[:wanted], drawn

    def _schedule(self, step: int) -> NDArray[np.int64]:
        """(groups,) the step's tasks: every pass over the tasks is in an order of its own."""
        first = step * self._recipe.groups
        places = np.arange(first, first + self._recipe.groups)
        orders = {
            epoch: np.random.default_rng([self.args.seed, epoch]).permutation(self._tasks)
            for epoch in np.unique(places // self._tasks).tolist()
        }
        return np.array([orders[place // self._tasks][place % self._tasks] for place in places.tolist()])

    def _counts(self, group: Group) -> bool:
        """Whether a group has something to teach."""
        return self._recipe.kl > 0 or has_signal(group)

    def _log_rollouts(self, drawn: Sequence[Group], live: NDArray[np.bool_]) -> None:
        outcomes = gather_object([rollout.outcome for group in drawn for rollout in group])
        counts = gather_object(
            [(len(drawn), int(live.sum()), sum(len(each.tokens) for group in drawn for each in group))]
        )
        groups, alive, tokens = (sum(column) for column in zip(*counts, strict=True))
        self._refuse_idling(alive)
        figures = {
            "rollouts/drawn": groups / self._recipe.groups,
            "rollouts/live": alive / (self._recipe.groups * self._recipe.samples),
            "rollouts/tokens": tokens / (groups * self._recipe.samples),
            **self._watch(outcomes, self.state.log_history),
        }
        for name, value in figures.items():
            self._metrics["train"][name].append(value)

    def _refuse_idling(self, alive: int) -> None:
        """Raise Gr2Error if no answer of the first `idle_steps` has taught anything: nothing that follows will.

        A policy that has learnt to be sure, whose groups earn the same in the end, goes on.
        """
        before = [entry["rollouts/live"] for entry in self.state.log_history if "rollouts/live" in entry]
        recipe = self._recipe
        if alive or any(before) or not recipe.idle_steps or len(before) + 1 < recipe.idle_steps:
            return
        raise Gr2Error(
            f"nothing to learn from: in each of the first {recipe.idle_steps} steps all {recipe.samples} answers to a "
            "list earned the same. Where they are all refused (valid is 0), sample among what is allowed (constrained "
            "= true, of a compressor form = 'select') or start from a model that answers; where they are all alike, "
            "raise temperature or samples, or see whether the lists' candidates have different semantic IDs; "
            "idle_steps = 0 goes on"
        )

    def _log_probs(self, batch: dict[str, Tensor]) -> Tensor:
        """(B, C) log-probabilities of a part's answers under the weights as they are."""
        ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1)
        mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], 1)
        choices, model = self._chosen(batch), self.accelerator.unwrap_model(self.model)
        with torch.no_grad(), self.accelerator.autocast():
            scores = model(ids, mask, choices=choices, temperature=self.temperature, shared=self._shared(ids, choices))
        found: Tensor = scores.log_probs
        return found

    def _shared(self, ids: Tensor, choices: Choices) -> int:
        """How many rows side by side have a prompt in common: all those of a group, or none."""
        samples, prompts = self._recipe.samples, ids[:, : -choices.tokens.shape[1]]
        if len(ids) % samples or not takes_gaps(self.accelerator.unwrap_model(self.model)):
            return 1
        firsts = prompts[::samples].repeat_interleave(samples, 0)
        return samples if torch.equal(firsts, prompts) else 1

    def _chosen(self, batch: dict[str, Tensor]) -> Choices:
        tokens, allowed, counts, made = (batch[n] for n in ("completion_ids", "allowed", "allowed_counts", "made"))
        return Choices(tokens, allowed, counts, made, self._outside)

    def _get_per_token_logps_and_entropies(
        self, model: torch.nn.Module, input_ids: Tensor, attention_mask: Tensor, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor, None]:
        """(B, C) log-probabilities over the sets, and entropies; the divergences are kept for the loss."""
        choices = self._choices
        assert choices is not None, "TRL's loss asks for log-probabilities of a batch that `_compute_loss` has named"
        anchor, shared = None, self._shared(input_ids, choices)
        if self._anchor is not None:
            form = self._recipe.divergence
            anchor = anchor_of(self._anchor, input_ids, attention_mask, choices, form, shared=shared)
        scores = model(
            input_ids, attention_mask, choices=choices, temperature=self.temperature, anchor=anchor, shared=shared
        )
        self._divergences = scores.divergence
        return scores.log_probs, scores.entropy, None

    def _compute_loss(self, model: torch.nn.Module, inputs: dict[str, Any]) -> Tensor:
        self._choices = self._chosen(inputs)
        loss: Tensor = super()._compute_loss(model, inputs) * self._recipe.policy  # type: ignore[no-untyped-call]
        if self._anchor is not None and self._divergences is not None:
            away = (self._divergences * inputs["tool_mask"]).sum()
            share = self.current_gradient_accumulation_steps / (self._settings.steps_per_generation or 1)
            tokens = inputs["num_items_in_batch"].clamp(min=1.0) / self.accelerator.num_processes
            loss = loss + self._recipe.kl * away / (tokens * share)
            chosen = self.accelerator.reduce(torch.stack([away.detach(), inputs["tool_mask"].sum()]), reduction="sum")
            self._metrics["train"]["divergence"].append(float(chosen[0] / chosen[1].clamp(min=1)))
        self._choices = self._divergences = None
        number = loss.new_full((), 1.0 / self.current_gradient_accumulation_steps)
        read = inputs["prompt_mask"].sum() + inputs["completion_mask"].sum()
        self.count({"loss": (loss, number)}, read)
        return loss


def _part(batch: dict[str, Tensor], number: int, parts: int) -> dict[str, Tensor]:
    rows = len(batch["prompt_ids"]) // parts
    return {
        name: tensor[number * rows : (number + 1) * rows] if tensor.ndim else tensor for name, tensor in batch.items()
    }


def _trimmed(part: dict[str, Tensor]) -> dict[str, Tensor]:
    """The part without the columns that are padding in all of its rows; of rows that teach nothing, next to none.

    The number of rows stays, because TRL compares it among processes.
    """
    live = bool(part["tool_mask"].any())
    prompt = int(part["prompt_mask"].any(0).sum()) if live else 1
    answer = int(part["completion_mask"].any(0).sum()) if live else 1
    trimmed = {}
    for name, tensor in part.items():
        if name.startswith("prompt_"):
            trimmed[name] = tensor[:, -prompt:]
        else:
            trimmed[name] = tensor[:, :answer] if tensor.ndim > 1 else tensor
    return trimmed


def _rewarded(**_: Any) -> NoReturn:
    raise NotImplementedError("rollouts come with their rewards")


def _rows(model: Any) -> int:
    """The tokens that a model has logits for."""
    return int(model.get_output_embeddings().weight.shape[0])


def _mixed(*numbers: int) -> int:
    """One seed out of several numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])
