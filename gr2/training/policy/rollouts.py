"""Rollouts: answers that a policy sampled, in groups of one prompt, their advantages, and the batch they train on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gr2.models.policy import Choices

__all__ = ["Draw", "Group", "Rollout", "Scale", "advantages", "choices_of", "has_signal", "training_batch"]

Scale = Literal["group", "none"]
# Sets of more tokens are an explanation's: nearly the whole vocabulary, and few of them.
SMALL = 256
# Rewards that differ do so by more than the rounding of their sums.
SAME = 1e-6


@dataclass(frozen=True, eq=False)
class Rollout:
    """One sampled answer.

    `prompt` and `tokens` are token IDs. `allowed` has for each of `tokens` the tokens (m,) int64 that it was chosen
    from: None for the whole vocabulary, one token where there was no choice. `outcome` is for whoever watches.
    """

    prompt: Sequence[int]
    tokens: Sequence[int]
    allowed: Sequence[NDArray[np.int64] | None]
    reward: float
    outcome: Any = None

    def __post_init__(self) -> None:
        if len(self.allowed) != len(self.tokens) or not self.tokens:
            raise ValueError(
                f"one token or more, each with its set, expected; got {len(self.tokens)} and {len(self.allowed)}"
            )
        for number, (token, allowed) in enumerate(zip(self.tokens, self.allowed, strict=True)):
            if allowed is not None and len(allowed) <= SMALL and token not in allowed:
                raise ValueError(f"token {number} is {token}, which is not in the set that it was chosen from")


Group = Sequence[Rollout]
# Samples a group for each of these tasks; the same arguments, and weights, give the same groups.
Draw = Callable[[Sequence[int], int], list[Group]]


def has_signal(group: Group) -> bool:
    """Whether rewards differ within the group: where they are equal, all advantages are 0 (DAPO, dynamic sampling)."""
    rewards = [rollout.reward for rollout in group]
    return max(rewards) - min(rewards) > SAME


def advantages(group: Group, scale: Scale = "group") -> NDArray[np.float32]:
    """(G,) float32: rewards less their mean, divided by their standard deviation under "group" (GRPO, DAPO)."""
    rewards = np.array([rollout.reward for rollout in group])
    centred = rewards - rewards.mean()
    scaled: NDArray[np.float32] = (centred / (rewards.std(ddof=1) + 1e-4 if scale == "group" else 1.0)).astype(
        np.float32
    )
    return scaled


def choices_of(rollouts: Sequence[Rollout], vocabulary: int) -> Choices:
    """The rollouts' tokens and sets, on the CPU, padded at the right; the model has `vocabulary` rows.

    A large set is stored once, however many tokens were chosen from the same array.
    """
    length = max(len(rollout.tokens) for rollout in rollouts)
    sets = _Sets(vocabulary)
    tokens = torch.zeros(len(rollouts), length, dtype=torch.int64)
    counts = torch.ones(len(rollouts), length, dtype=torch.int64)
    for row, rollout in enumerate(rollouts):
        tokens[row, : len(rollout.tokens)] = torch.tensor(rollout.tokens)
        counts[row, : len(rollout.tokens)] = torch.tensor([sets.count(allowed) for allowed in rollout.allowed])
    allowed = torch.zeros(len(rollouts), length, max(1, int(counts.max())), dtype=torch.int64)
    for row, column in (counts > 0).nonzero().tolist():
        if column < len(rollouts[row].tokens):
            members = np.asarray(rollouts[row].allowed[column], dtype=np.int64)
            allowed[row, column, : len(members)] = torch.from_numpy(members)
    return Choices(tokens, allowed, counts, counts != 1, sets.outside())


class _Sets:
    """Numbers of the large sets: 0 is the whole vocabulary."""

    def __init__(self, vocabulary: int) -> None:
        self._vocabulary = vocabulary
        self._large: dict[int, NDArray[np.int64]] = {}
        self._numbers: dict[int, int] = {}

    def count(self, allowed: NDArray[np.int64] | None) -> int:
        """The entry of `Choices.counts` for a set."""
        if allowed is None:
            return 0
        if len(allowed) <= SMALL:
            return len(allowed)
        # The array is kept, so that nothing else can come by its number.
        self._large[id(allowed)] = allowed
        return -self._numbers.setdefault(id(allowed), len(self._numbers) + 1)

    def outside(self) -> Tensor:
        """(S, N) bool: `Choices.outside`."""
        rows = torch.zeros(len(self._numbers) + 1, self._vocabulary, dtype=torch.bool)
        for key, number in self._numbers.items():
            rows[number] = True
            rows[number, torch.from_numpy(self._large[key])] = False
        return rows


def training_batch(
    rollouts: Sequence[Rollout],
    advantage: NDArray[np.float32],
    live: NDArray[np.bool_],
    *,
    pad: int,
    vocabulary: int,
) -> tuple[dict[str, Tensor], Tensor]:
    """What TRL's loss reads, by its names, with the choices; and `Choices.outside`, which is not divided with them.

    `advantage` (B,) and `live` (B,) are the rollouts'. Tokens of rollouts that are not live, and tokens that were not
    chosen, are masked from loss and token count alike.
    """
    choices = choices_of(rollouts, vocabulary)
    longest = max(len(rollout.prompt) for rollout in rollouts)
    prompt_ids = torch.full((len(rollouts), longest), pad, dtype=torch.int64)
    prompt_mask = torch.zeros_like(prompt_ids)
    completion_mask = torch.zeros_like(choices.tokens)
    for row, rollout in enumerate(rollouts):
        prompt_ids[row, longest - len(rollout.prompt) :] = torch.tensor(rollout.prompt)
        prompt_mask[row, longest - len(rollout.prompt) :] = 1
        completion_mask[row, : len(rollout.tokens)] = 1
    batch = {
        "prompt_ids": prompt_ids,
        "prompt_mask": prompt_mask,
        "completion_ids": choices.tokens.masked_fill(completion_mask == 0, pad),
        "completion_mask": completion_mask,
        "tool_mask": (choices.made & torch.from_numpy(live)[:, None]).long(),
        "advantages": torch.from_numpy(advantage),
        "allowed": choices.allowed,
        "allowed_counts": choices.counts,
        "made": choices.made,
    }
    return batch, choices.outside
