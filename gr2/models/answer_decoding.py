"""Answers' tokens from a model: by its own `generate`, or by passes that skip what is forced anyway."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessorList, PreTrainedModel

from gr2.models.answer_processor import AnswerProcessor, AnswerRow
from gr2.models.reading import Context
from gr2.models.selection import SelectionProcessor, SelectionRow
from gr2.models.shared_attention import can_share_prompts, sharing_prompts

# An explanation's tokens, and the set that each was chosen from.
Written = tuple[Sequence[int], Sequence[NDArray[np.int64]]]

__all__ = ["Written", "generate_answers", "process_answers"]


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
    prompt is read once for all its samples, which share its keys. Temperature 0 takes the likeliest token.
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
    with ExitStack() as stack:
        stack.enter_context(evaluating(model))
        context = Context(model, len(prompts))
        logits = context.read([[*prompt, *opening] for prompt, opening in zip(prompts, opened, strict=True)])
        share = samples > 1 and can_share_prompts(model)
        if share:
            stack.enter_context(sharing_prompts(model))
        context.repeat(samples, share=share)
        logits = context.read(rest) if rest else logits.repeat_interleave(samples, 0)
        # What each row has chosen and the model has not read. Nothing is read after the end of an answer.
        waiting: list[list[int]] = [[] for _ in rows]
        asked = {number for number, row in enumerate(rows) if not row.ended}
        while True:
            scores = processor.choices(logits)
            if temperature:
                chosen = torch.multinomial(torch.softmax(scores / temperature, -1), 1, generator=generator)[:, 0]
            else:
                chosen = scores.argmax(-1)
            tokens = chosen.tolist()
            for number in asked:
                went_on = rows[number].go_on(tokens[number])
                answers[number] += went_on
                waiting[number] = [] if rows[number].ended else went_on
            if all(row.ended for row in rows):
                return answers
            asked = _narrow(waiting)
            logits = context.read([waiting[number] if number in asked else [] for number in range(len(rows))])


def _narrow(waiting: Sequence[Sequence[int]]) -> set[int]:
    """The rows to read next: those with few tokens, since all are padded to the widest; the others wait for company."""
    least = min(len(each) for each in waiting if each)
    return {number for number, each in enumerate(waiting) if 0 < len(each) <= 2 * least}


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
