import math

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM, Qwen3Config, Qwen3ForCausalLM

from gr2.decoding import CandidateTrie
from gr2.models.answer_decoding import generate_answers, process_answers
from gr2.models.answer_grammar import AnswerGrammar
from gr2.models.answer_processor import AnswerProcessor
from gr2.models.reading import takes_gaps
from gr2.prompts.answer import parse_answer
from gr2.training.policy.vllm_explanations import explanation_sets

LEVEL_SIZE = 8


@pytest.fixture(scope="module")
def grammar(tiny_reasoner):
    return AnswerGrammar(tiny_reasoner)


def tries_of(slates):
    codes = [np.array([item.codes for item in slate.candidates], np.uint16) for slate in slates]
    return [CandidateTrie(each, np.ones(len(each), bool), LEVEL_SIZE) for each in codes]


def encoded(reasoner, prompts):
    return [reasoner.encode_chat(prompt.messages) for prompt in prompts]


class Passes:
    """Counts the passes of a model and the tokens that it reads."""

    def __init__(self, model):
        self.passes = self.tokens = 0
        self.handle = model.register_forward_pre_hook(self.count, with_kwargs=True)

    def count(self, model, positional, named):
        self.passes += 1
        self.tokens += named["input_ids"].numel()


@pytest.mark.parametrize("limit", [0, 1, 7])
def test_passes_that_skip_what_is_forced_give_the_tokens_of_generate(tiny_reasoner, asked, grammar, limit):
    prompts, slates = asked
    model, ids = tiny_reasoner.model, encoded(tiny_reasoner, prompts)
    ours, theirs = (AnswerProcessor(tries_of(slates), grammar, max_reasoning=limit) for _ in range(2))
    counted = Passes(model)
    found = process_answers(model, ids, ours, samples=1, temperature=0.0, seed=0)
    ours_passes, counted.passes = counted.passes, 0
    eos = grammar.vocabulary.eos
    expected = generate_answers(
        model, ids, theirs, most=grammar.length(5, limit), eos=eos, samples=1, temperature=0.0, seed=0
    )
    counted.handle.remove()
    assert found == [list(grammar.turn(tokens)) for tokens in expected]
    for one, other in zip(ours.rows, theirs.rows, strict=True):
        assert [allowed.tolist() for allowed in one.allowed] == [allowed.tolist() for allowed in other.allowed]
        assert one.stream.decoder.ranking().tolist() == other.stream.decoder.ranking().tolist()
    # Every choice is followed by at least two tokens that are forced, but in an explanation.
    assert ours_passes <= limit + (counted.passes - limit) / 2


def test_samples_are_drawn_as_often_as_the_model_says(tiny_reasoner, asked, grammar):
    prompts, slates = asked
    model, prompt = tiny_reasoner.model, encoded(tiny_reasoner, prompts[1:2])
    tries = tries_of(slates[1:2])
    samples, temperature = 2_000, 20.0
    processor = AnswerProcessor(tries, grammar, max_reasoning=0)
    counted = Passes(model)
    found = process_answers(model, prompt, processor, samples=samples, temperature=temperature, seed=3)
    counted.handle.remove()
    (item, other) = (each.codes for each in slates[1].candidates)
    opening = [*grammar.ranking_opening, *grammar.vocabulary.begin]
    place = next(level for level in range(3) if item[level] != other[level])
    opening += [int(grammar.vocabulary.tokens[level, item[level]]) for level in range(place)]
    first, second = (int(grammar.vocabulary.tokens[place, codes[place]]) for codes in (item, other))
    with torch.no_grad():
        logits = model(torch.tensor([[*prompt[0], *opening]])).logits[0, -1].double() / temperature
    expected = float(torch.softmax(logits[[first, second]], 0)[0])
    share = float(np.mean([tokens[len(opening)] == first for tokens in found]))
    assert 0.05 < expected < 0.95
    assert share == pytest.approx(expected, abs=4 * math.sqrt(expected * (1 - expected) / samples))
    # The prompt is read once, and there is one choice: what follows it is forced.
    assert (counted.passes, counted.tokens) == (1, len(prompt[0]) + len(opening))


def test_answers_that_leave_no_choice_need_no_model(tiny_reasoner, asked, grammar):
    prompts, slates = asked
    processor = AnswerProcessor(tries_of(slates[3:]), grammar, max_reasoning=0)
    counted = Passes(tiny_reasoner.model)
    (tokens,) = process_answers(
        tiny_reasoner.model, encoded(tiny_reasoner, prompts[3:]), processor, samples=1, temperature=0.0, seed=0
    )
    counted.handle.remove()
    assert counted.passes == 0
    assert tokens[-1] == grammar.vocabulary.eos


SHAPE = {
    "vocab_size": 16, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 2, "num_attention_heads": 1,
    "num_key_value_heads": 1,
}  # fmt: skip


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (Qwen3ForCausalLM(Qwen3Config(**SHAPE)), True),
        (Qwen3ForCausalLM(Qwen3Config(**SHAPE, use_sliding_window=True, sliding_window=4, max_window_layers=1)), False),
        (LlamaForCausalLM(LlamaConfig(**SHAPE)), True),
        (MistralForCausalLM(MistralConfig(**SHAPE, sliding_window=4)), False),
        (MistralForCausalLM(MistralConfig(**SHAPE, sliding_window=None)), True),
    ],
)
def test_padding_inside_a_sequence_is_for_models_that_attend_to_all(model, expected):
    assert takes_gaps(model) is expected


def test_rankings_after_explanations_that_are_given_are_those_after_ones_own(tiny_reasoner, asked, grammar):
    prompts, slates = asked
    model, ids = tiny_reasoner.model, encoded(tiny_reasoner, prompts)
    own, given = (AnswerProcessor(tries_of(slates), grammar, max_reasoning=7) for _ in range(2))
    options = {"samples": 1, "temperature": 0.0, "seed": 0}
    expected = process_answers(model, ids, own, **options)
    sets = {id(each) for each in grammar.allowed}
    written = []
    for row, tokens in zip(own.rows, expected, strict=True):
        places = [place for place, each in enumerate(row.allowed) if id(each) in sets]
        written.append(([tokens[place] for place in places], [row.allowed[place] for place in places]))
    assert all(len(tokens) for tokens, _ in written)
    assert process_answers(model, ids, given, **options, written=written) == expected
    for one, other in zip(own.rows, given.rows, strict=True):
        assert [allowed.tolist() for allowed in one.allowed] == [allowed.tolist() for allowed in other.allowed]


def test_an_explanation_that_does_not_end_is_ended(tiny_reasoner, asked, grammar):
    prompts, slates = asked
    ids = encoded(tiny_reasoner, prompts)
    first, later = explanation_sets(grammar)
    rng = np.random.default_rng(0)
    ends = np.setdiff1d(later, first)
    written = []
    for number in range(len(prompts)):
        tokens = rng.choice(first, 6).tolist() + ([int(rng.choice(ends))] if number % 2 else [])
        written.append((tokens, [first, *[later] * (len(tokens) - 1)]))
    processor = AnswerProcessor(tries_of(slates), grammar, max_reasoning=7)
    found = process_answers(tiny_reasoner.model, ids, processor, samples=1, temperature=1.0, seed=0, written=written)
    for (tokens, sets), answer, row, slate in zip(written, found, processor.rows, slates, strict=True):
        text = grammar.text(answer)
        parsed = parse_answer(text, [item.codes for item in slate.candidates], level_size=LEVEL_SIZE)
        assert parsed.ranking == tuple(row.stream.decoder.ranking().tolist())
        start = len(grammar.opening)
        assert answer[start : start + len(tokens)] == tokens
        assert [id(each) for each in row.allowed[start : start + len(tokens)]] == [id(each) for each in sets]
        assert len(row.allowed) == len(answer)
