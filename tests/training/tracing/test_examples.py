"""Examples say what traces say, in the tokens that a reasoner is made to write."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from gr2.artifact import Artifact
from gr2.data.dataset import Dataset
from gr2.models.answer_grammar import AnswerGrammar
from gr2.models.reasoner import Reasoner, SidSpec, from_scratch
from gr2.prompts.answer import answer_text, parse_answer
from gr2.prompts.render import PromptConfig
from gr2.prompts.semantic_id import sid_text
from gr2.training.language.weighted import PROMPT, RANKING, REASONING
from gr2.training.tracing.examples import TraceExamples
from gr2.training.tracing.table import Trace

EXPLANATION = 'The "pattern" is C:\\care: %s again — naïve, then more.'


@pytest.fixture(scope="module")
def reasoner(tiny_parents: dict[str, Artifact]) -> Reasoner:
    texts = ["You are an analyst. Explain the pattern in the history, then the candidates that match."] * 4
    return from_scratch("tiny", texts, SidSpec.of(tiny_parents["tokenize"]), vocabulary=512)


@pytest.fixture
def examples(tiny_parents: dict[str, Artifact], reasoner: Reasoner) -> TraceExamples:
    dataset = Dataset.load(tiny_parents["prepare"].path)
    codes = tiny_parents["tokenize"].array("codes.npy")
    return TraceExamples(reasoner, AnswerGrammar(reasoner), dataset, codes, PromptConfig())


def trace(examples: TraceExamples, *, citing: int | None = None) -> Trace:
    rng = np.random.default_rng(0)
    candidates = tuple(rng.permutation(60)[:8].tolist())
    explanation = EXPLANATION % sid_text(examples.codes[candidates[4] if citing is None else citing].tolist())
    return Trace(3, 3, candidates[2], candidates, explanation, tuple(rng.permutation(8).tolist()), "rejection", 1)


@pytest.mark.parametrize("reasoning", [True, False])
def test_the_answer_reads_back_to_the_trace(examples: TraceExamples, reasoning: bool) -> None:
    examples = replace(examples, config=PromptConfig(reasoning=reasoning))
    wanted = trace(examples)
    [example], dropped = examples([wanted])
    codes = [tuple(examples.codes[item].tolist()) for item in wanted.candidates]
    text = examples.grammar.text(example.ids[example.parts != PROMPT].tolist())
    assert text == answer_text(wanted.explanation if reasoning else None, [codes[place] for place in wanted.ranking])
    answer = parse_answer(text, codes, level_size=8, reasoning=reasoning)
    assert answer.ranking == wanted.ranking
    assert example.ids[-1] == examples.grammar.vocabulary.eos
    assert dropped == 0


def test_parts_follow_one_another_and_divide_at_the_bridge(examples: TraceExamples) -> None:
    [example], _ = examples([trace(examples)])
    assert (np.diff(example.parts) >= 0).all()
    decode = examples.reasoner.tokenizer.decode
    reasoning, ranking = (decode(example.ids[example.parts == part].tolist()) for part in (REASONING, RANKING))
    assert reasoning.startswith('{"explanation": "The')
    assert reasoning.endswith("then more.")
    assert ranking.startswith('", "recommendations": ["<|sid_begin|>')


def test_the_prompt_is_what_the_reasoner_will_be_asked(examples: TraceExamples) -> None:
    """The prompt part is the chat template's, up to where the assistant speaks."""
    [example], _ = examples([trace(examples)])
    prompt = examples.reasoner.tokenizer.decode(example.ids[example.parts == PROMPT].tolist())
    assert prompt.rstrip().endswith("assistant")
    assert prompt.count("<|sid_begin|>") == 3 + 8


def test_a_short_budget_drops_history_and_says_so(examples: TraceExamples) -> None:
    [long], _ = examples([trace(examples)])
    size = int((long.parts == PROMPT).sum())
    [short], dropped = replace(examples, config=PromptConfig(budget=size - 1))([trace(examples)])
    assert dropped == 1
    assert int((short.parts == PROMPT).sum()) < size


def test_a_trace_that_cites_what_its_prompt_does_not_show_is_left_out(examples: TraceExamples) -> None:
    known = trace(examples)
    shown = {*known.candidates, *examples.dataset.history(known.user, known.position).tolist()}
    unseen = trace(examples, citing=next(item for item in range(60) if item not in shown))
    assert len(examples([known, unseen])[0]) == 1
    assert len(replace(examples, config=PromptConfig(reasoning=False))([known, unseen])[0]) == 2
