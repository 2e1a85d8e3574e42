"""What a causal model has read, a row a sequence, with room for what comes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

# Tokens for which a cache keeps room.
ROOM = 128

__all__ = ["Context", "takes_gaps"]


class RoomyLayer(DynamicLayer):  # type: ignore[no-untyped-call]
    """A layer's keys and values with room for more, so that a token is written beside the others.

    The layer that it stands for makes all of them anew for each token. `prompt` are the keys and values that came
    before `keys` and `values` and are shared, a row a prompt.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._room: list[Tensor] = []
        self.prompt: tuple[Tensor, Tensor] | None = None

    def update(
        self, key_states: Tensor, value_states: Tensor, *_arguments: Any, **_options: Any
    ) -> tuple[Tensor, Tensor]:
        """All keys and values that are not a shared prompt's, those of the new tokens last."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        before = super().get_seq_length()
        after = before + key_states.shape[-2]
        kept, fresh = (self.keys, self.values), (key_states, value_states)
        # What repeats or selects rows puts other tensors in place of ours.
        ours = bool(self._room) and before > 0 and self._room[0].data_ptr() == kept[0].data_ptr()  # type: ignore[union-attr]
        if not ours or self._room[0].shape[-2] < after:
            self._room = [_with_room(new, old if before else None, after) for new, old in zip(fresh, kept, strict=True)]
        for room, new in zip(self._room, fresh, strict=True):
            room[..., before:after, :] = new
        self.keys, self.values = (room[..., :after, :] for room in self._room)
        return self.keys, self.values

    def get_seq_length(self) -> int:
        """How many tokens there are, those of a shared prompt among them."""
        length: int = super().get_seq_length()
        return length + (self.prompt[0].shape[-2] if self.prompt else 0)

    def share(self) -> None:
        """Make what is here the prompt of the rows that follow."""
        assert self.keys is not None
        assert self.values is not None
        self.prompt = self.keys, self.values
        self.keys, self.values, self._room = self.keys[..., :0, :], self.values[..., :0, :], []


def _with_room(new: Tensor, old: Tensor | None, length: int) -> Tensor:
    room = new.new_empty(*new.shape[:-2], length + ROOM, new.shape[-1])
    if old is not None:
        room[..., : old.shape[-2], :] = old
    return room


class Context:
    """What a model has read, a row a sequence. Rows may take in different numbers of tokens at once.

    A block of tokens is padded on the left, so that the last column has each row's last token; attention never sees the
    padding, and positions do not count it.
    """

    def __init__(self, model: PreTrainedModel, rows: int) -> None:
        self.model, self.cache = model, DynamicCache(config=model.config)
        self._layers = [RoomyLayer() for _ in self.cache.layers]
        self.cache.layers = list(self._layers)
        self._sharing: dict[str, Any] = {}
        self.seen = torch.zeros(rows, 0, dtype=torch.int64, device=model.device)

    def read(self, tokens: Sequence[Sequence[int]]) -> Tensor:
        """(B, N) logits of what follows each row's `tokens`; those of a row that is given none mean nothing."""
        width = max(map(len, tokens))
        ids = torch.tensor([[0] * (width - len(each)) + list(each) for each in tokens], device=self.seen.device)
        fresh = torch.tensor([[0] * (width - len(each)) + [1] * len(each) for each in tokens], device=self.seen.device)
        positions = (self.seen.sum(1, keepdim=True) + fresh.cumsum(1) - 1).clamp(min=0)
        self.seen = torch.cat([self.seen, fresh], 1)
        logits: Tensor = self.model(
            input_ids=ids,
            attention_mask=self.seen,
            position_ids=positions,
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
            **self._sharing,
        ).logits
        return logits[:, -1].float()

    def repeat(self, times: int, *, share: bool = False) -> None:
        """Make so many rows of each, side by side. What they share is read where it is inside `sharing_prompts`."""
        if share:
            for layer in self._layers:
                layer.share()
            self._sharing = {"shared_prompt": [layer.prompt for layer in self._layers]}
        else:
            self.cache.batch_repeat_interleave(times)
        self.seen = self.seen.repeat_interleave(times, 0)


def takes_gaps(model: PreTrainedModel) -> bool:
    """Whether padding inside a sequence is nothing to the model: all its layers attend to everything before."""
    config = model.config.get_text_config()
    kinds = getattr(config, "layer_types", None)
    return set(kinds) == {"full_attention"} if kinds else getattr(config, "sliding_window", None) is None
