"""A causal model as a policy: how likely it was to choose its tokens, each among the tokens that it could choose from.

A token that was sampled from a set has the probability that the softmax over the set gives it. Over the whole
vocabulary it would have another, and an importance ratio or a gradient made of those would be another policy's.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import DynamicCache, PreTrainedModel

from gr2.errors import ConfigError

__all__ = ["Anchor", "Choices", "Divergence", "Scores", "add_choice_scores", "anchor_of", "choice_scores"]

Divergence = Literal["reverse", "forward"]
Head = Callable[[Tensor], Tensor]
# Logits that exist at a time, 128 MiB of float32, whatever the vocabulary.
LOGITS = 2**25
# Keys of models whose logits are more than their head's output.
SCALED = ("final_logit_softcapping", "logit_scale", "logits_scaling", "lm_head_multiplier", "output_multiplier")


class Choices(NamedTuple):
    """The tokens of B answers, of at most C tokens each, and what each was chosen from.

    `tokens` (B, C) int64. By `counts` (B, C) int64, n > 0 is the set of the first n of `allowed` (B, C, A) int64, and
    n <= 0 the tokens that row -n of `outside` (S, N) bool does not name; row 0 names none. `made` (B, C) bool says
    which were choices: not padding, and not the only token of their set.
    """

    tokens: Tensor
    allowed: Tensor
    counts: Tensor
    made: Tensor
    outside: Tensor


class Scores(NamedTuple):
    """Of each choice, (B, C) float32, 0 where there was none: log-probability, entropy, divergence from the anchor."""

    log_probs: Tensor
    entropy: Tensor
    divergence: Tensor


@dataclass(frozen=True, eq=False)
class Anchor:
    """A frozen model to stay close to: its head, and its hidden states (M, D) before each of the choices."""

    head: Head
    hidden: Tensor
    form: Divergence = "reverse"


def add_choice_scores(model: PreTrainedModel) -> None:
    """Teach `model` to answer `model(input_ids, attention_mask, choices=..., temperature=...)` with Scores, in place.

    The last C columns are the answers. Of rows in runs of `shared=S`, which have a prompt in common, the prompt is read
    once. Called otherwise, the model does what it did. It is its own forward pass, so that wrappers for several GPUs
    see it. Raises ConfigError for a model whose logits are not its head's output.
    """
    scaled = [name for name in SCALED if getattr(model.config.get_text_config(), name, None) not in (None, 1, 1.0)]
    if scaled:
        raise ConfigError(f"a {type(model).__name__} changes its logits after the head ({scaled[0]}): not supported")
    original = model.forward

    # `generate` looks at the signature.
    @functools.wraps(type(model).forward)
    def forward(self: PreTrainedModel, *arguments: Any, choices: Choices | None = None, **options: Any) -> Any:
        return original(*arguments, **options) if choices is None else _score(self, choices, *arguments, **options)

    model.forward = types.MethodType(forward, model)


def anchor_of(
    model: PreTrainedModel,
    input_ids: Tensor,
    attention_mask: Tensor,
    choices: Choices,
    form: Divergence,
    *,
    shared: int = 1,
) -> Anchor:
    """What `model`, frozen, has to say of the choices, in one forward pass."""
    with torch.no_grad():
        hidden = _hidden(model, input_ids, attention_mask, choices, shared)[choices.made]
    return Anchor(_head(model), hidden, form)


def choice_scores(
    head: Head,
    hidden: Tensor,
    choices: Choices,
    *,
    temperature: float = 1.0,
    anchor: Anchor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probability, entropy and divergence of M choices, each (M,) float32; the first and last are differentiable.

    `hidden` (M, D) are the states that predict the tokens, `choices` is of shapes (M,) and (M, A). With l the logits
    over a choice's set S, at `temperature`,

        log p(t) = l_t - log sum_{s in S} exp l_s      reverse KL = sum_S p (log p - log q)      q: the anchor's, over S
                                                       forward KL = sum_S q (log q - log p)

    At most `LOGITS` logits exist at a time, going forward and back, so that memory does not grow with the vocabulary.
    """
    scores = [hidden.new_zeros(len(hidden), dtype=torch.float32) for _ in range(3)]
    large = choices.counts <= 0
    for rows, few in ((large.nonzero()[:, 0], False), ((~large).nonzero()[:, 0], True)):
        for block in _blocks(rows, head):
            other = None if anchor is None else (anchor.head, anchor.hidden[block], anchor.form)
            sets = _Sets(choices.counts[block], choices.allowed[block] if few else None, choices.outside)
            parts = checkpoint(
                _score_block, head, hidden[block], choices.tokens[block], sets, temperature, other,
                use_reentrant=False, preserve_rng_state=False,
            )  # fmt: skip
            scores = [score.index_put((block,), part) for score, part in zip(scores, parts, strict=True)]
    return scores[0], scores[1], scores[2]


class _Sets(NamedTuple):
    """Of n choices: among few tokens, (n, A), or among all of the vocabulary that is not outside."""

    counts: Tensor
    few: Tensor | None
    outside: Tensor

    def log_probs(self, logits: Tensor, temperature: float) -> Tensor:
        """(n, S) log-probabilities over the sets by (n, N) logits, -inf where there is nothing."""
        scaled = logits.float() / temperature
        if self.few is None:
            width = min(logits.shape[-1], self.outside.shape[-1])
            return scaled[:, :width].masked_fill(self.outside[-self.counts, :width], -torch.inf).log_softmax(-1)
        padding = torch.arange(self.few.shape[-1], device=self.few.device) >= self.counts[:, None]
        return scaled.gather(-1, self.few).masked_fill(padding, -torch.inf).log_softmax(-1)

    def places(self, tokens: Tensor) -> Tensor:
        """(n,) the columns of tokens (n,)."""
        return tokens if self.few is None else (self.few == tokens[:, None]).int().argmax(-1)


def _score(
    model: PreTrainedModel,
    choices: Choices,
    input_ids: Tensor,
    attention_mask: Tensor,
    *,
    temperature: float,
    anchor: Anchor | None = None,
    shared: int = 1,
) -> Scores:
    hidden = _hidden(model, input_ids, attention_mask, choices, shared)
    made = choices.made
    tokens, allowed, counts = (part[made] for part in choices[:3])
    flat = Choices(tokens, allowed, counts, made[made], choices.outside)
    parts = choice_scores(_head(model), hidden[made], flat, temperature=temperature, anchor=anchor)
    # Answers without a choice still depend on the weights, by nothing.
    nothing = hidden.float().sum(-1) * 0.0
    return Scores(*(nothing.masked_scatter(made, part) for part in parts))


def _head(model: PreTrainedModel) -> Head:
    head: Head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    return head


def _hidden(model: PreTrainedModel, input_ids: Tensor, attention_mask: Tensor, choices: Choices, shared: int) -> Tensor:
    """(B, C, D) the states that predict the answers' tokens, the last C of `input_ids`."""
    length = choices.tokens.shape[1]
    positions = (attention_mask.cumsum(-1) - 1).clamp(min=0)
    body = model.base_model
    if shared == 1:
        states = body(
            input_ids=input_ids, attention_mask=attention_mask, position_ids=positions, use_cache=False
        ).last_hidden_state
        before: Tensor = states[:, -length - 1 : -1]
        return before
    cache = DynamicCache(config=model.config)
    prompts, masks, places = (each[::shared, :-length] for each in (input_ids, attention_mask, positions))
    read = body(
        input_ids=prompts, attention_mask=masks, position_ids=places, past_key_values=cache, use_cache=True
    ).last_hidden_state[:, -1:]
    first: Tensor = read.repeat_interleave(shared, 0)
    if length == 1:
        return first
    cache.batch_repeat_interleave(shared)
    rest = body(
        input_ids=input_ids[:, -length:-1],
        attention_mask=attention_mask[:, :-1],
        position_ids=positions[:, -length:-1],
        past_key_values=cache,
        use_cache=True,
    ).last_hidden_state
    return torch.cat([first, rest], 1)


def _score_block(
    head: Head,
    hidden: Tensor,
    tokens: Tensor,
    sets: _Sets,
    temperature: float,
    other: tuple[Head, Tensor, Divergence] | None,
) -> tuple[Tensor, Tensor, Tensor]:
    mine = sets.log_probs(head(hidden), temperature)
    divergence = torch.zeros_like(mine[:, 0])
    if other is not None:
        divergence = _divergence(mine, sets.log_probs(other[0](other[1]), temperature), other[2])
    return mine.gather(-1, sets.places(tokens)[:, None]).squeeze(-1), _entropy(mine.detach()), divergence


def _entropy(log_probs: Tensor) -> Tensor:
    return -(log_probs.exp() * log_probs.masked_fill(log_probs == -torch.inf, 0.0)).sum(-1)


def _divergence(mine: Tensor, theirs: Tensor, form: Divergence) -> Tensor:
    """(n,) sums over the columns of (n, S); of vocabularies padded to different sizes, over those that both have."""
    shared = min(mine.shape[-1], theirs.shape[-1])
    if mine.shape != theirs.shape:
        mine, theirs = mine[:, :shared].log_softmax(-1), theirs[:, :shared].log_softmax(-1)
    # Outside of a set both probabilities are 0, and their logarithms must not be looked at.
    outside = mine == -torch.inf
    mine, theirs = mine.masked_fill(outside, 0.0), theirs.detach().masked_fill(outside, 0.0)
    left, right = (mine, theirs) if form == "reverse" else (theirs, mine)
    return (left.exp().masked_fill(outside, 0.0) * (left - right)).sum(-1)


def _blocks(rows: Tensor, head: Any) -> Iterator[Tensor]:
    size = max(1, LOGITS // int(head.weight.shape[0]))
    for first in range(0, len(rows), size):
        yield rows[first : first + size]
