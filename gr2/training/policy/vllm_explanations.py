"""Explanations by vLLM, on a machine with a GPU: nearly all tokens of an answer, from the weights as they are.

The ranking after them stays with our constrained decoder, which reads prompt and explanation once. vLLM has no seed for
samples of one prompt that are to differ, so that a training by it does not repeat itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from accelerate import Accelerator
from numpy.typing import NDArray
from trl.generation.vllm_generation import VLLMGeneration

from gr2.errors import ConfigError
from gr2.models.answer_decoding import Written
from gr2.models.answer_grammar import CLOSED, FIRST, INSIDE, AnswerGrammar
from gr2.models.reasoner import Reasoner

__all__ = ["VllmExplanations", "explanation_sets"]


def explanation_sets(grammar: AnswerGrammar) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The tokens (m,) that may begin an explanation, and those (n,), the same and its ends, that may follow.

    One set for all places, as vLLM wants it: what would begin an escape is left out, too.
    """
    inner = (grammar.moves[FIRST] == INSIDE) & (grammar.moves[INSIDE] == INSIDE)
    return np.flatnonzero(inner), np.flatnonzero(inner | (grammar.moves[INSIDE] >= CLOSED))


class VllmExplanations:
    """A `Writer` for `reasoner`, whose weights are handed over before each call.

    `memory` is the share of the GPU's memory that vLLM takes. Raises ConfigError where vLLM is not installed.
    """

    def __init__(self, reasoner: Reasoner, grammar: AnswerGrammar, accelerator: Accelerator, *, memory: float) -> None:
        self.sets = explanation_sets(grammar)
        first, later = self.sets
        options: dict[str, Any] = {
            "allowed_token_ids": later.tolist(),
            "stop_token_ids": np.setdiff1d(later, first).tolist(),
            # Ends are masked until there is a token.
            "min_tokens": 1,
            "detokenize": False,
        }
        try:
            self._vllm = VLLMGeneration(
                reasoner.model,
                accelerator,
                reasoner.tokenizer,
                gpu_memory_utilization=memory,
                generation_kwargs=options,
            )
        except ImportError as error:
            raise ConfigError(
                f"engine = 'vllm' needs vLLM and a GPU ({error}); install the version that TRL supports: "
                "pip install 'trl[vllm]', or take engine = 'transformers'"
            ) from error

    def __call__(
        self, prompts: Sequence[Sequence[int]], *, samples: int, temperature: float, most: int
    ) -> list[Written]:
        """Explanations of at most `most` tokens; see `Writer`."""
        self._vllm.temperature, self._vllm.max_completion_length = temperature, most
        self._vllm.sync_weights()  # type: ignore[no-untyped-call]
        repeated = [list(prompt) for prompt in prompts for _ in range(samples)]
        _, explanations, *_ = self._vllm.generate(repeated, images=None, num_generations=samples)
        first, later = self.sets
        return [(tokens, [first, *[later] * (len(tokens) - 1)]) for tokens in explanations]
