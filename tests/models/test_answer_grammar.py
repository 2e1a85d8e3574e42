import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gr2.models.answer_grammar import CLOSED, ESCAPED, FIRST, FORBIDDEN, INSIDE, AnswerGrammar
from gr2.prompts.answer import (
    ANSWER_BRIDGE,
    ANSWER_CLOSING,
    ANSWER_OPENING,
    ANSWER_SEPARATOR,
    RANKING_OPENING,
    answer_text,
    parse_answer,
)
from gr2.prompts.semantic_id import sid_text


@pytest.fixture(scope="module")
def grammar(tiny_reasoner):
    return AnswerGrammar(tiny_reasoner)


@pytest.fixture(scope="module")
def texts(tiny_reasoner):
    """What each token is written as, inside a text."""
    tokenizer = tiny_reasoner.tokenizer
    return [tokenizer.decode([70, token]).removeprefix(tokenizer.decode([70])) for token in range(len(tokenizer))]


def test_fixed_text_is_written_as_it_stands(grammar):
    assert grammar.text(grammar.opening) == ANSWER_OPENING
    assert grammar.text(grammar.ranking_opening) == RANKING_OPENING
    assert grammar.text(grammar.vocabulary.separator) == ANSWER_SEPARATOR
    assert grammar.text(grammar.vocabulary.close) == ANSWER_CLOSING
    assert [grammar.text(tokens) for tokens in grammar.bridge] == [
        ANSWER_BRIDGE[given:] for given in range(len(ANSWER_BRIDGE) + 1)
    ]


@pytest.mark.parametrize("explanation", ["They bought oil.", f"{sid_text((1, 2, 3))} fits", 'A 12" brush\\', "é"])
def test_the_tokens_of_an_answer_that_was_trained_on_are_allowed(tiny_reasoner, grammar, explanation):
    """Token by token, as RankingProcessor would force and allow them."""
    order = [(1, 2, 3), (4, 5, 6)]
    tokens = tiny_reasoner.encode(answer_text(explanation, order))
    assert tuple(tokens[: len(grammar.opening)]) == grammar.opening
    state, place = FIRST, len(grammar.opening)
    while state < CLOSED:
        state = int(grammar.moves[state, tokens[place]])
        assert state != FORBIDDEN
        place += 1
    vocabulary = grammar.vocabulary
    rest = list(grammar.bridge[state - CLOSED])
    for number, codes in enumerate(order):
        rest += vocabulary.separator if number else ()
        rest += tiny_reasoner.item_tokens(np.array([codes]))[0].tolist()
    assert tokens[place:] == [*rest, *vocabulary.close]


def test_an_answer_without_an_explanation_begins_as_it_was_trained(tiny_reasoner, grammar):
    tokens = tiny_reasoner.encode(answer_text(None, [(1, 2, 3)]))
    assert tuple(tokens[: len(grammar.ranking_opening)]) == grammar.ranking_opening


def is_string(text):
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


@pytest.mark.parametrize(("state", "before"), [(INSIDE, '"a'), (ESCAPED, '"a\\')])
def test_moves_are_what_json_says(tiny_reasoner, grammar, texts, state, before):
    special = {*tiny_reasoner.tokenizer.all_special_ids}
    seen = set()
    for token, text in enumerate(texts):
        move = int(grammar.moves[state, token])
        seen.add(min(move, CLOSED))
        if token in special:
            assert move == FORBIDDEN
        elif move == INSIDE:
            assert is_string(before + text + '"')
        elif move == ESCAPED:
            assert is_string(before + text + 'n"')
        elif move >= CLOSED:
            written = ANSWER_BRIDGE[: move - CLOSED]
            assert text.endswith(written)
            assert is_string(before + text.removesuffix(written) + '"')
        else:
            whole = any(is_string(before + text + end) for end in ('"', 'n"'))
            # Two escapes on end would outlast the limit of an explanation.
            assert not whole or text.endswith("\\")
    assert seen == ({FORBIDDEN, INSIDE, ESCAPED, CLOSED} if state == INSIDE else {FORBIDDEN, INSIDE, CLOSED} | seen)


def test_tokens_that_hold_the_end_and_more_exist_and_are_used(grammar, texts):
    closing = {texts[token] for token in np.flatnonzero(grammar.moves[INSIDE] > CLOSED + 1)}
    assert any(text.startswith(('."', '",')) for text in closing)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_whatever_walk_is_taken_the_answer_is_valid(grammar, data):
    state, walk = FIRST, []
    for _ in range(data.draw(st.integers(1, 12))):
        chosen = data.draw(st.sampled_from(grammar.allowed[state].tolist()))
        walk.append(chosen)
        state = int(grammar.moves[state, chosen])
        if state >= CLOSED:
            break
    if state == ESCAPED:
        walk.append(data.draw(st.sampled_from(grammar.allowed[ESCAPED].tolist())))
        state = int(grammar.moves[ESCAPED, walk[-1]])
    bridge = grammar.bridge[max(state - CLOSED, 0)]
    text = grammar.text([*grammar.opening, *walk, *bridge]) + sid_text((1, 2, 3)) + ANSWER_CLOSING
    assert parse_answer(text, [(1, 2, 3)], level_size=8).ranking == (0,)


def test_text_ends_with_the_turn(grammar):
    eos = grammar.vocabulary.eos
    tokens = [*grammar.opening, eos, eos, eos]
    assert grammar.turn(tokens) == (*grammar.opening, eos)
    assert grammar.text(tokens) == ANSWER_OPENING
