from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch

from gr2.models.answer_decoding import generate_answers, process_answers
from gr2.models.compressing import Compressing, Compressor
from gr2.models.reasoner import Reasoner, SidSpec, from_scratch
from gr2.models.selection import SelectionProcessor, SelectionRow, selection_options, selection_tokens
from gr2.prompts.context import Passage, Pick, covering
from gr2.prompts.render import ItemView, PromptConfig

PROMPT = PromptConfig(max_history=4)
HISTORY = [ItemView((number % 3, 1), f"item {number}", ("Bath",)) for number in range(5)]


@pytest.fixture(scope="module")
def reasoner() -> Reasoner:
    return from_scratch("tiny", ["item Bath History"], SidSpec(2, 4, "toy"), vocabulary=320, seed=0)


@pytest.fixture(scope="module")
def passage(reasoner: Reasoner) -> Passage:
    return Passage.of(HISTORY, PROMPT, lambda text: len(reasoner.encode(text)))


def reachable(row: SelectionRow, path: tuple[int, ...] = ()) -> dict[tuple[int, ...], tuple[Pick, ...]]:
    """Every sequence that the row allows, with what it picks; rows are rebuilt along the way."""
    found: dict[tuple[int, ...], tuple[Pick, ...]] = {}
    for token in row.choices.tolist():
        again = SelectionRow(row.options, row.budget, row.eos)
        for before in (*path, token):
            again.take(before)
        if again.ended:
            found[(*path, token)] = tuple(again.picks)
        else:
            found |= reachable(again, (*path, token))
    return found


def test_the_sequences_allowed_are_the_selections_within_the_budget(reasoner: Reasoner, passage: Passage) -> None:
    options = selection_options(reasoner, passage)
    eos = reasoner.vocabulary.eos
    budget = passage.whole_cost[0] + 2 * passage.brief_cost[0]
    found = reachable(SelectionRow(options, budget, eos))
    wanted = set()
    for forms in product((None, False, True), repeat=len(passage.items)):
        picks = [Pick(event, whole) for event, whole in enumerate(forms) if whole is not None]
        if picks and passage.cost(picks) <= budget:
            wanted.add(passage.lines(picks))
    assert {passage.lines(picks) for picks in found.values()} == wanted
    assert all(passage.cost(picks) <= budget for picks in found.values())
    assert all(tuple(selection_tokens(options, picks, eos)) == tokens for tokens, picks in found.items())


def test_nothing_fits_and_nothing_is_said(reasoner: Reasoner, passage: Passage) -> None:
    row = SelectionRow(selection_options(reasoner, passage), 1, reasoner.vocabulary.eos)
    assert row.drain() == [reasoner.vocabulary.eos]
    assert (row.ended, row.picks) == (True, [])


def test_a_token_that_no_line_goes_on_with_is_refused(reasoner: Reasoner, passage: Passage) -> None:
    row = SelectionRow(selection_options(reasoner, passage), 99, reasoner.vocabulary.eos)
    with pytest.raises(ValueError, match="is not allowed; expected one of"):
        row.take(reasoner.vocabulary.eos)


def test_both_ways_to_decode_give_the_same_contexts(reasoner: Reasoner, passage: Passage) -> None:
    other = Passage.of(HISTORY[:2], PROMPT, lambda text: len(reasoner.encode(text)))
    passages = [passage, other]
    compressor = Compressor(reasoner, PROMPT, Compressing(share=0.6))
    prompts = [compressor.prompt(each) for each in passages]
    eos = reasoner.vocabulary.eos

    def processor() -> SelectionProcessor:
        budgets = [each.budget(0.6) for each in passages]
        return SelectionProcessor(reasoner, [selection_options(reasoner, each) for each in passages], budgets)

    sampling = {"samples": 1, "temperature": 0.0, "seed": 0}
    fast = process_answers(reasoner.model, prompts, processor(), **sampling)
    slow = generate_answers(reasoner.model, prompts, processor(), most=200, eos=eos, **sampling)
    assert [tokens[: tokens.index(eos) + 1] for tokens in slow] == fast
    with pytest.raises(ValueError, match="multiple of the 2 passages"):
        processor().start(3)


def test_sampled_contexts_keep_to_the_budget_and_record_their_sets(reasoner: Reasoner, passage: Passage) -> None:
    compressor = Compressor(reasoner, PROMPT, Compressing(share=0.5, batch=8, temperature=1.0, samples=4))
    other = compressor.passage(HISTORY[:3])
    seen = {}
    for places, written in compressor.write([other, passage, other], seed=3):
        for number, place in enumerate(places):
            seen[place] = written[number * 4 : number * 4 + 4]
    assert sorted(seen) == [0, 1, 2]
    for place, contexts in seen.items():
        original = passage if place == 1 else other
        for each in contexts:
            assert each.lines
            assert each.cost <= original.budget(0.5)
            assert len(each.allowed) == len(each.tokens)
            assert all(token in allowed for token, allowed in zip(each.tokens, each.allowed, strict=True))


def test_the_model_decides(reasoner: Reasoner, passage: Passage) -> None:
    """Logits that favour the tokens of one selection give that selection."""
    options = selection_options(reasoner, passage)
    picks = covering(passage, passage.budget(0.6))
    wanted = selection_tokens(options, picks, reasoner.vocabulary.eos)
    processor = SelectionProcessor(reasoner, [options], [passage.budget(0.6)])
    processor.start(1)
    (row,) = processor.rows
    for token in wanted:
        scores = torch.zeros(1, len(reasoner.tokenizer))
        scores[0, token] = 1.0
        assert int(processor.choices(scores).argmax()) == token
        row.take(token)
    assert sorted(row.picks) == picks
    assert row.ended
    assert np.concatenate(row.allowed).dtype == np.int64
