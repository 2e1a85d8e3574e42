"""Answers' tokens from a model: by its own `generate`, or by passes that skip what is forced anyway."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import DynamicCache, GenerationConfig, LogitsProcessorList, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from gr2.models.answer_processor import AnswerProcessor, AnswerRow
from gr2.models.selection import SelectionProcessor, SelectionRow

# Tokens for which a cache keeps room.
ROOM = 128
# An explanation's tokens, and the set that each was chosen from.
Written = tuple[Sequence[int], Sequence[NDArray[np.int64]]]

__all__ = ["Written", "generate_answers", "process_answers", "takes_gaps"]


class RoomyLayer(DynamicLayer):  # type: ignore[no-untyped-call]
    """A layer's keys and values with room for more, so that a token is written beside the others.

    The layer that it stands for makes all of them anew for each token.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._room: list[Tensor] = []

    def update(
        self, key_states: Tensor, value_states: Tensor, *_arguments: Any, **_options: Any
    ) -> tuple[Tensor, Tensor]:
        """All keys and values, those of the new tokens last."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        before = self.get_seq_length()
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
        self.cache.layers = [RoomyLayer() for _ in self.cache.layers]
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
        ).logits
        return logits[:, -1].float()

    def repeat(self, times: int) -> None:
        """Make so many rows of each, side by side."""
        self.cache.batch_repeat_interleave(times)
        self.seen = self.seen.repeat_interleave(times, 0)


def takes_gaps(model: PreTrainedModel) -> bool:
    """Whether padding inside a sequence is nothing to the model: all its layers attend to everything before."""
    config = model.config.get_text_config()
    kinds = getattr(config, "layer_types", None)
    return set(kinds) == {"full_attention"} if kinds else getattr(config, "sliding_window", None) is None


@torch.no_grad()
def process_answers(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    processor: AnswerProcessor | SelectionProcessor,
    *,
    samples: int,
    temperature: float,
    seed: int,
    written: Sequence[Written] | None = None,
) -> list[list[int]]:
    """The tokens of `samples` answers to each prompt, those of one prompt side by side, `eos` included.

    With explanations that are `written`, one for each answer, rankings alone are chosen.

    The model is asked only where there is something to decide: forced tokens are read with what follows them, and a
    prompt is read once for all its samples. Temperature 0 takes the likeliest token.
    """
    processor.start(len(prompts) * samples)
    rows: Sequence[AnswerRow | SelectionRow] = processor.rows
    device = model.device
    generator = torch.Generator(device=device).manual_seed(seed)
    answers = [row.drain() for row in rows]
    opened = [list(answers[samples * number]) for number in range(len(prompts))]
    rest = _written(rows, written) if written is not None else []
    answers = [[*answer, *more] for answer, more in zip(answers, rest, strict=True)] if rest else answers
    if all(row.ended for row in rows):
        return answers
    with evaluating(model):
        context = Context(model, len(prompts))
        logits = context.read([[*prompt, *opening] for prompt, opening in zip(prompts, opened, strict=True)])
        context.repeat(samples)
        logits = context.read(rest) if rest else logits.repeat_interleave(samples, 0)
        while True:
            scores = processor.choices(logits)
            if temperature:
                chosen = torch.multinomial(torch.softmax(scores / temperature, -1), 1, generator=generator)[:, 0]
            else:
                chosen = scores.argmax(-1)
            fresh: list[list[int]] = []
            for row, answer, token in zip(rows, answers, chosen.tolist(), strict=True):
                went_on = [] if row.ended else row.go_on(token)
                answer += went_on
                # Nothing is read after the end of an answer.
                fresh.append([] if row.ended else went_on)
            if all(row.ended for row in rows):
                return answers
            logits = context.read(fresh)


def _written(rows: Sequence[AnswerRow | SelectionRow], written: Sequence[Written]) -> list[list[int]]:
    """What each row has after its opening: an explanation, and what must follow."""
    result = []
    for row, (tokens, sets) in zip(rows, written, strict=True):
        assert isinstance(row, AnswerRow), "a selection explains nothing"
        result.append(row.write(tokens, sets))
    return result


def generate_answers(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    processor: AnswerProcessor | SelectionProcessor | None,
    *,
    most: int,
    eos: int,
    samples: int,
    temperature: float,
    seed: int,
) -> list[list[int]]:
    """The same by `model.generate`, in up to `most` tokens; what follows `eos` is padding. None is free answers."""
    width = max(map(len, prompts))
    ids = torch.full((len(prompts), width), eos)
    attention = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = torch.tensor(prompt)
        attention[row, width - len(prompt) :] = 1
    # A checkpoint's own defaults would narrow what is sampled from.
    sampling = {"temperature": temperature, "top_k": 0, "top_p": 1.0} if temperature else {}
    config = GenerationConfig(  # type: ignore[no-untyped-call]
        **sampling,
        max_new_tokens=most,
        do_sample=temperature > 0,
        repetition_penalty=1.0,
        num_return_sequences=samples,
        eos_token_id=eos,
        pad_token_id=eos,
    )
    devices = [model.device] if model.device.type == "cuda" else []
    with evaluating(model), torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        sequences: Tensor = model.generate(  # type: ignore[operator]
            ids.to(model.device),
            attention_mask=attention.to(model.device),
            generation_config=config,
            logits_processor=LogitsProcessorList([] if processor is None else [processor]),
        )
    if processor is not None:
        # It has not seen the last tokens.
        processor.rankings(sequences)
    answers: list[list[int]] = sequences[:, width:].tolist()
    return answers


@contextmanager
def evaluating(model: PreTrainedModel) -> Iterator[None]:
    """The model is in evaluation mode inside the block, and in its own after it."""
    training = model.training
    model.eval()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        model.train(training)
