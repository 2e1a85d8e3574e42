import numpy as np
import pytest
import torch

from gr2.decoding import CandidateTrie
from gr2.models.answer_grammar import AnswerGrammar
from gr2.models.answering import Answering, AnswerProcessor, answer_batch, answers, answers_by_batch
from gr2.models.reasoner import SidSpec, from_scratch
from gr2.prompts.answer import Answer, AnswerError, answer_text, parse_answer
from gr2.prompts.render import PromptConfig, Slate, render

LEVEL_SIZE = 8


def candidates(slate):
    return [item.codes for item in slate.candidates]


def explanation_tokens(grammar, answered):
    return [allowed for allowed in answered.allowed if any(allowed is each for each in grammar.allowed)]


@pytest.mark.parametrize("reasoning", [True, False])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_constrained_answers_are_valid_whatever_the_model(tiny_reasoner, asked, reasoning, temperature):
    prompts, slates = asked
    grammar = AnswerGrammar(tiny_reasoner)
    samples = 2 if temperature else 1
    options = {"reasoning": reasoning, "max_reasoning": 9, "temperature": temperature, "samples": samples}
    found = answers(tiny_reasoner, prompts, slates, grammar=grammar, **options)
    assert len(found) == samples * len(slates)
    for row, answered in enumerate(found):
        codes = candidates(slates[row // samples])
        expected = parse_answer(answered.text, codes, level_size=LEVEL_SIZE, reasoning=reasoning)
        assert answered.answer == expected
        assert answered.ranking.tolist() == list(expected.ranking)
        assert sorted(expected.ranking) == list(range(len(codes)))
        assert answered.tokens[-1] == grammar.vocabulary.eos
        assert len(answered.tokens) <= grammar.length(len(expected.ranking), 9 if reasoning else 0)
        assert 1 <= len(explanation_tokens(grammar, answered)) <= 10 or not reasoning


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_each_token_is_of_its_recorded_set_and_the_likeliest_if_greedy(tiny_reasoner, asked, temperature):
    """By one pass over each whole answer, without padding and cache."""
    prompts, slates = asked
    for prompt, answered in zip(
        prompts, answers(tiny_reasoner, prompts, slates, max_reasoning=8, temperature=temperature), strict=True
    ):
        assert len(answered.tokens) == len(answered.allowed)
        context = tiny_reasoner.encode_chat(prompt.messages)
        with torch.no_grad():
            logits = tiny_reasoner.model(torch.tensor([[*context, *answered.tokens]])).logits[0, len(context) - 1 : -1]
        for token, allowed, row in zip(answered.tokens, answered.allowed, logits, strict=True):
            assert token in allowed
            if temperature == 0:
                assert float(row[token]) == pytest.approx(float(row[torch.from_numpy(allowed)].max()), abs=1e-4)


def test_what_is_forced_has_a_set_of_one(tiny_reasoner, asked):
    prompts, slates = asked
    grammar = AnswerGrammar(tiny_reasoner)
    answered = answers(tiny_reasoner, prompts[3:], slates[3:], reasoning=False)[0]
    assert [allowed.tolist() for allowed in answered.allowed] == [[token] for token in answered.tokens]
    assert answered.tokens[: len(grammar.ranking_opening)] == grammar.ranking_opening


def test_candidates_of_equal_codes_are_each_named(tiny_reasoner, asked):
    twin, other = asked[1][0].candidates[:2]
    slate = Slate((), (twin, other, twin))
    (answered,) = answers(tiny_reasoner, [render(slate, PromptConfig())], [slate], max_reasoning=3)
    assert isinstance(answered.answer, Answer)
    assert answered.answer.ranking == tuple(answered.ranking.tolist())
    assert sorted(answered.answer.ranking) == [0, 1, 2]


def test_neither_the_batch_nor_its_padding_change_a_greedy_answer(tiny_reasoner, asked):
    prompts, slates = asked
    together = answers(tiny_reasoner, prompts, slates, max_reasoning=8)
    alone = answers(tiny_reasoner, prompts, slates, max_reasoning=8, batch=1)
    assert [each.tokens for each in together] == [each.tokens for each in alone]


def test_samples_differ_and_come_again_by_their_seed(tiny_reasoner, asked):
    prompts, slates = asked
    tiny_reasoner.model.generation_config.top_k = 1
    options = {"samples": 4, "temperature": 1.0, "max_reasoning": 6}
    first, again, other = (answers(tiny_reasoner, prompts, slates, seed=seed, **options) for seed in (1, 1, 2))
    tiny_reasoner.model.generation_config.top_k = None
    assert [each.text for each in first] == [each.text for each in again]
    assert [each.text for each in first] != [each.text for each in other]
    assert len({each.text for each in first[:4]}) > 1


def test_neither_the_mode_nor_the_random_state_of_the_caller_change(tiny_reasoner, asked):
    tiny_reasoner.model.train()
    torch.manual_seed(3)
    expected = torch.rand(2).tolist()
    torch.manual_seed(3)
    answers(tiny_reasoner, asked[0][:1], asked[1][:1], reasoning=False, temperature=1.0)
    assert torch.rand(2).tolist() == expected
    assert tiny_reasoner.model.training
    tiny_reasoner.model.eval()


def test_a_loop_goes_on_where_another_ended(tiny_reasoner, asked):
    asking = Answering(max_reasoning=5, batch=2, temperature=1.0)
    whole = list(answers_by_batch(tiny_reasoner, *asked, asking))
    rest = list(answers_by_batch(tiny_reasoner, *asked, asking, start=1))
    assert sorted(row for rows, _ in whole for row in rows) == [0, 1, 2, 3]
    assert [rows for rows, _ in rest] == [rows for rows, _ in whole[1:]]
    assert [each.tokens for _, found in rest for each in found] == [
        each.tokens for _, found in whole[1:] for each in found
    ]


class TestFreeAnswers:
    def test_a_refused_answer_keeps_the_incoming_order(self, tiny_reasoner, asked):
        for slate, answered in zip(asked[1], answers(tiny_reasoner, *asked, constrained=False), strict=True):
            assert isinstance(answered.answer, AnswerError)
            assert answered.ranking.tolist() == list(range(len(slate.candidates)))
            assert answered.allowed == []

    def test_what_a_model_has_learnt_is_what_it_answers_freely_or_not(self, asked):
        """An explanation that ends by itself, in a token that is part of the bridge."""
        prompts, slates = asked[0][:1], asked[1][:1]
        order = [candidates(slates[0])[place] for place in (3, 0, 4, 2, 1)]
        text = answer_text('They bought "oil".', order)
        reasoner = from_scratch("tiny", [text] * 9, SidSpec(3, LEVEL_SIZE, "f00d"), vocabulary=420, seed=1)
        ids = torch.tensor([reasoner.encode_chat(prompts[0].messages, answer=text)])
        labels = ids.clone()
        labels[:, : len(reasoner.encode_chat(prompts[0].messages))] = -100
        optimiser = torch.optim.AdamW(reasoner.model.parameters(), lr=1e-2)
        for _ in range(80):
            optimiser.zero_grad()
            reasoner.model(ids, labels=labels).loss.backward()
            optimiser.step()
        for constrained in (True, False):
            (answered,) = answers(reasoner, prompts, slates, constrained=constrained)
            assert answered.text == text
            assert answered.answer == Answer('They bought "oil".', (3, 0, 4, 2, 1))
            assert answered.tokens == tuple(ids[0, -len(answered.tokens) :].tolist())
        (cut,) = answers(reasoner, prompts, slates, max_reasoning=3)
        assert isinstance(cut.answer, Answer)
        assert len(cut.answer.explanation) < len('They bought "oil".')


@pytest.mark.parametrize(("key", "value"), [("max_reasoning", 0), ("batch", 0), ("samples", 0), ("temperature", -0.1)])
def test_values_that_cannot_be_are_named(key, value):
    with pytest.raises(ValueError, match=f"{key} must .*{value}"):
        Answering(**{key: value})


def test_a_slate_without_candidates_is_refused(tiny_reasoner):
    slate = Slate((), ())
    prompt = tiny_reasoner.encode_chat(render(slate, PromptConfig()).messages)
    with pytest.raises(ValueError, match="a slate has no candidates"):
        answer_batch(tiny_reasoner, AnswerGrammar(tiny_reasoner), [prompt], [slate], Answering(), seed=0)


def test_a_token_that_no_explanation_holds_is_named(tiny_reasoner, asked):
    grammar = AnswerGrammar(tiny_reasoner)
    trie = CandidateTrie(np.array([[1, 2, 3]], np.uint16), np.ones(1, bool), LEVEL_SIZE)
    processor = AnswerProcessor([trie], grammar, max_reasoning=3)
    scores = torch.zeros(1, grammar.moves.shape[1])
    ids = [0]
    for token in (*grammar.opening, grammar.vocabulary.eos):
        processor(torch.tensor([ids]), scores)
        ids.append(token)
    with pytest.raises(ValueError, match=r"row 0: token .* is not allowed in an explanation"):
        processor(torch.tensor([ids]), scores)
