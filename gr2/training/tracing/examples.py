"""Traces as token sequences, so written as a reasoner is made to write: fixed text, explanation and ranking apart."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gr2.data.dataset import Dataset
from gr2.models.answer_grammar import AnswerGrammar
from gr2.models.reasoner import Reasoner
from gr2.prompts.render import Prompt, PromptConfig, render, slate_of
from gr2.prompts.semantic_id import BEGIN, END
from gr2.training.language.weighted import PROMPT, RANKING, REASONING, Example
from gr2.training.reasoner.contexts import Contexts
from gr2.training.tracing.table import Trace

__all__ = ["TraceExamples"]

CITED = re.compile(f"{re.escape(BEGIN)}.*?{re.escape(END)}", re.DOTALL)


@dataclass(frozen=True, eq=False)
class TraceExamples:
    """What turns traces into examples for one reasoner, with `contexts` in the place of histories if there are any.

    `codes` (N, L) are the catalogue's.
    """

    reasoner: Reasoner
    grammar: AnswerGrammar
    dataset: Dataset
    codes: NDArray[np.uint16]
    config: PromptConfig
    contexts: Contexts | None = None

    def __call__(self, traces: Sequence[Trace]) -> tuple[list[Example], float]:
        """An example a trace, and the mean number of events a prompt that its budget had no room for.

        A trace that cites an item which its prompt does not show is left out: it would teach to invent.
        """
        made, dropped = [], 0
        for trace in traces:
            history = self.dataset.history(trace.user, trace.position).tolist()
            slate = slate_of(self.dataset.catalog, self.codes, history, trace.candidates)
            if self.contexts is not None:
                (slate,) = self.contexts.slates([slate], [(trace.user, trace.position)])
            prompt = render(slate, self.config, lambda messages: len(self.reasoner.encode_chat(messages)))
            dropped += prompt.dropped
            shown = prompt.messages[-1]["content"]
            if not self.config.reasoning or all(item in shown for item in CITED.findall(trace.explanation)):
                made.append(self.example(prompt, trace))
        return made, dropped / max(1, len(traces))

    def example(self, prompt: Prompt, trace: Trace) -> Example:
        """The prompt's tokens, then the answer's; without `config.reasoning` the answer is the ranking alone."""
        ids = self.reasoner.encode_chat(prompt.messages)
        ranking = [trace.candidates[place] for place in trace.ranking]
        reasoning, recommended = self._reasoning(trace.explanation), self._ranking(ranking)
        parts = np.repeat([PROMPT, REASONING, RANKING], [len(ids), len(reasoning), len(recommended)])
        return Example(np.array([*ids, *reasoning, *recommended], dtype=np.int64), parts.astype(np.int8))

    def _reasoning(self, explanation: str) -> list[int]:
        """The tokens up to the last of the explanation."""
        if not self.config.reasoning:
            return []
        text = json.dumps(explanation, ensure_ascii=False)[1:-1]
        # Behind a token of its own, no tokenizer adds the space that some put before a text.
        return [*self.grammar.opening, *self.reasoner.encode(END + text)[1:]]

    def _ranking(self, items: Sequence[int]) -> list[int]:
        """The tokens from the bridge to the end of the turn."""
        vocabulary = self.grammar.vocabulary
        ids = list(self.grammar.bridge[0] if self.config.reasoning else self.grammar.ranking_opening)
        for number, tokens in enumerate(self.reasoner.item_tokens(self.codes[list(items)]).tolist()):
            ids += [*(vocabulary.separator if number else ()), *tokens]
        return [*ids, *vocabulary.close, vocabulary.eos]
