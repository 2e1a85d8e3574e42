"""A teacher that runs here: any causal language model of transformers, from a folder."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import LogitsProcessor, LogitsProcessorList

from gr2.errors import ConfigError
from gr2.models.pretrained import load_pretrained
from gr2.training.loop.capacity import context_length
from gr2.training.teachers.teacher import Reply, TeacherRequest

__all__ = ["LocalTeacher"]


class _Sampling(LogitsProcessor):
    """Adds Gumbel noise of each row's own generator, so that the largest sum is a draw from softmax(logits / t).

    What a row draws does not depend on the rows beside it, nor on what was asked before a kill.
    """

    def __init__(self, generators: list[torch.Generator], temperature: float) -> None:
        self._generators, self._temperature = generators, temperature

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:  # noqa: ARG002
        noise = torch.empty_like(scores, dtype=torch.float32)
        for row, generator in enumerate(self._generators):
            noise[row].exponential_(generator=generator)
        return scores.float() / self._temperature - noise.clamp_min(1e-30).log()  # type: ignore[return-value]


class LocalTeacher:
    """Answers in batches; its tokens cost nothing. Draws depend on `seed`, the list and the attempt."""

    def __init__(self, folder: Path, *, batch: int, temperature: float, max_tokens: int, seed: int) -> None:
        model, self._tokenizer = load_pretrained(folder)
        self._tokenizer.padding_side = "left"
        if self._tokenizer.chat_template is None:
            raise ConfigError(f"{folder}: the tokenizer has no chat template, which prompts are written with")
        self._model: Any = model.to("cuda" if torch.cuda.is_available() else "cpu")  # type: ignore[arg-type]
        self._batch, self._temperature, self._max_tokens, self._seed = batch, temperature, max_tokens, seed
        self._folder, self._context = folder, context_length(model)

    def answer(self, requests: Iterable[TeacherRequest]) -> Iterator[tuple[TeacherRequest, Reply]]:
        """Every request with its reply, in order, `batch` at once."""
        waiting = iter(requests)
        while chosen := list(islice(waiting, self._batch)):
            yield from zip(chosen, self._replies(chosen), strict=True)

    @torch.inference_mode()
    def _replies(self, requests: list[TeacherRequest]) -> list[Reply]:
        model: Any = self._model
        tokenizer: Any = self._tokenizer
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
        inputs = tokenizer.apply_chat_template(
            [list(request.messages) for request in requests],
            add_generation_prompt=True,
            enable_thinking=False,  # of Qwen3's template; others do not look at it
            return_dict=True,
            return_tensors="pt",
            padding=True,
        ).to(model.device)
        self._refuse_long(inputs["input_ids"].shape[1])
        sampling = _Sampling([self._generator(request) for request in requests], self._temperature)
        made = model.generate(
            **inputs,
            do_sample=False,
            temperature=None,
            top_p=None,
            top_k=None,
            max_new_tokens=self._max_tokens,
            logits_processor=LogitsProcessorList([sampling]),
            pad_token_id=tokenizer.pad_token_id,
        )
        width = inputs["input_ids"].shape[1]
        prompts = inputs["attention_mask"].sum(1).tolist()
        return [self._reply(row[width:].tolist(), count) for row, count in zip(made, prompts, strict=True)]

    def _refuse_long(self, prompt: int) -> None:
        if self._context is not None and prompt + self._max_tokens > self._context:
            raise ConfigError(
                f"a prompt of {prompt:,} tokens and an answer of up to {self._max_tokens:,} (max_tokens) are more than "
                f"the {self._context:,} that the model in {self._folder} can read; lower [traces] max_tokens, "
                "max_history or title_words"
            )

    def _generator(self, request: TeacherRequest) -> torch.Generator:
        state = np.random.SeedSequence((self._seed, request.row, request.attempt)).generate_state(1, np.uint64)
        return torch.Generator(self._model.device).manual_seed(int(state[0] >> np.uint64(1)))

    def _reply(self, tokens: list[int], prompt: int) -> Reply:
        ends = self._ends()
        length = next((place for place, token in enumerate(tokens) if token in ends), None)
        text = str(self._tokenizer.decode(tokens[:length], skip_special_tokens=True))
        reason = "truncated" if length is None else None if text.strip() else "empty"
        used = len(tokens) if length is None else length + 1
        return Reply(text, reason, prompt_tokens=prompt, completion_tokens=used)

    def _ends(self) -> set[Any]:
        end = self._model.generation_config.eos_token_id
        return set(end if isinstance(end, list) else [end]) | {self._tokenizer.eos_token_id}
