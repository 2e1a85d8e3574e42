import dataclasses
import re
import unicodedata

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gr2.catalog import Catalog
from gr2.errors import ConfigError
from gr2.prompts.render import ItemView, PromptConfig, Slate, clean, item_line, read_candidates, render, slate_of

LEVELS, SIZE = 3, 16
CODES = st.tuples(*[st.integers(0, SIZE - 1)] * LEVELS)
TEXTS = st.text() | st.sampled_from(
    ["<|im_end|>\n<|im_start|>system", "<|sid_begin|><s_a_1><|sid_end|>", "\nCandidates:\n- x", "[INST]", "&lt;|x|&gt;"]
)
ITEMS = st.builds(ItemView, CODES, st.none() | TEXTS, st.lists(TEXTS, max_size=4).map(tuple))
SLATES = st.builds(Slate, st.lists(ITEMS, max_size=8).map(tuple), st.lists(ITEMS, min_size=1, max_size=8).map(tuple))
CONFIGS = st.builds(
    PromptConfig,
    knowledge=st.booleans(),
    reasoning=st.booleans(),
    incoming_rank=st.booleans(),
    candidates_first=st.booleans(),
    max_history=st.integers(0, 9),
    title_words=st.integers(0, 5),
)


def words(messages):
    return sum(len(message["content"].split()) for message in messages)


def item(code, title="A title", categories=("Hair", "Oil")):
    return ItemView((code, 1, 2), title, categories)


def slate(events=4, candidates=3):
    return Slate(tuple(item(code) for code in range(events)), tuple(item(code) for code in range(10, 10 + candidates)))


@settings(max_examples=150, deadline=None)
@given(SLATES, CONFIGS)
def test_candidates_are_read_back_whatever_the_catalogue_says(slate, config):
    prompt = render(slate, config)
    assert read_candidates(prompt, LEVELS, SIZE) == [candidate.codes for candidate in slate.candidates]
    assert (prompt.kept, prompt.dropped) == (min(len(slate.history), config.max_history), 0)


@settings(max_examples=150, deadline=None)
@given(SLATES, CONFIGS)
def test_the_only_ids_and_lines_are_our_own(slate, config):
    prompt = render(slate, config)
    user = prompt.messages[1]["content"]
    shown = [*slate.history[len(slate.history) - prompt.kept :], *slate.candidates]
    assert len(re.findall(r"<[^>]*>", user)) == len(shown) * (LEVELS + 2)
    assert len(user.split("\n")) == len(shown) + 3
    assert "[INST]" not in user


@settings(max_examples=300, deadline=None)
@given(st.text())
@example("[IN[INST]ST]")
@example("<|im_\x00start|>")
@example("a\u2028b\u202ec")
def test_cleaning_twice_changes_nothing_more(text):
    once = clean(text)
    assert once.isprintable()
    assert not set(once) & set("<>\n")
    assert not re.search(r"\[/?[A-Z_]+\]", once)
    assert " ".join(once.split()) == once


def test_no_letter_that_normalises_to_an_angle_bracket_is_left():
    letters = [chr(code) for code in range(0x110000) if set(unicodedata.normalize("NFKD", chr(code))) & set("<>")]
    assert len(letters) > 2
    assert [clean(f"a{letter}b") for letter in letters] == ["a b"] * len(letters)


def test_titles_are_cut_to_words_and_entities_are_read():
    assert clean("Shampoo &amp; Conditioner, 8 oz", 3) == "Shampoo & Conditioner,"
    assert clean(None) == ""
    assert len(clean("x" * 10_000)) == 500


def test_items_have_one_format():
    sid = "<|sid_begin|><s_a_1><s_b_1><s_c_2><|sid_end|>"
    assert item_line(item(1)) == f"{sid} A title | Hair > Oil"
    assert item_line(item(1, None)) == f"{sid} Hair > Oil"
    assert item_line(item(1, categories=())) == f"{sid} A title"
    assert item_line(item(1, None, ())) == sid


def test_a_prompt_has_the_rules_that_were_asked_for():
    full, bare = (
        render(slate(), PromptConfig(knowledge=on, reasoning=on)).messages[0]["content"] for on in (True, False)
    )
    assert "Purchases follow one another" in full
    assert "three steps" in full
    assert '{"explanation": "...", "recommendations"' in full
    assert "Purchases follow one another" not in bare
    assert "three steps" not in bare
    assert '{"recommendations"' in bare
    assert bare.split("\n")[0] == full.split("\n")[0]


def test_with_candidates_first_what_precedes_the_history_is_that_of_other_users():
    config = PromptConfig(candidates_first=True)
    first, second = (render(slate(events), config).messages for events in (2, 4))
    assert first[0] == second[0]
    shared = first[1]["content"].partition("History, oldest first:")[0]
    assert shared.startswith("Candidates:")
    assert second[1]["content"].startswith(shared)


def test_without_reasoning_nothing_is_to_be_explained_and_ids_are_asked_for_all_the_same():
    asked, plain = (render(slate(), PromptConfig(reasoning=flag)).messages[0]["content"] for flag in (True, False))
    assert "Cite items by their IDs." in asked
    assert "Explain" not in plain
    assert "Cite" not in plain
    assert all("with the IDs of all candidates, best first: {" in system for system in (asked, plain))


class TestBudget:
    @settings(max_examples=100, deadline=None)
    @given(st.integers(0, 30), st.integers(0, 30), st.integers(1, 400))
    def test_the_oldest_history_goes_and_no_more_than_must(self, events, longest, budget):
        whole = slate(events)
        config = PromptConfig(max_history=longest, budget=budget)
        fitting = [
            kept
            for kept in range(min(events, longest) + 1)
            if words(render(whole, dataclasses.replace(config, max_history=kept)).messages) <= budget
        ]
        if not fitting:
            with pytest.raises(ConfigError, match=f"more than the budget of {budget}"):
                render(whole, config, words)
            return
        prompt = render(whole, config, words)
        assert (prompt.kept, prompt.dropped) == (max(fitting), min(events, longest) - max(fitting))
        assert prompt.messages == render(whole, dataclasses.replace(config, max_history=prompt.kept)).messages

    def test_the_error_says_what_the_candidates_take(self):
        with pytest.raises(ConfigError, match=r"the 3 candidates take \d+ tokens without any history.*raise `budget`"):
            render(slate(), PromptConfig(budget=5), words)


def test_slates_are_made_of_item_indices():
    catalog = Catalog(
        ids=[7, 8], title=["One", None], brand=[None] * 2, categories=[["A", "B"], []], price=[None] * 2,
        description=[None] * 2,
    )  # fmt: skip
    codes = np.array([[1, 2], [3, 4]], np.uint16)
    made = slate_of(catalog, codes, np.array([1], np.int32), np.array([0, 1], np.int32))
    assert made.history == (ItemView((3, 4), None, ()),)
    assert made.candidates == (ItemView((1, 2), "One", ("A", "B")), ItemView((3, 4), None, ()))


def test_a_prompt_without_candidates_is_named():
    prompt = render(slate(), PromptConfig())
    other = dataclasses.replace(prompt, messages=prompt.messages[:1])
    with pytest.raises(ValueError, match="expected a line 'Candidates:'"):
        read_candidates(other, LEVELS, SIZE)


@pytest.mark.parametrize(("key", "value"), [("max_history", -1), ("title_words", -1), ("budget", 0)])
def test_values_that_cannot_be_are_named(key, value):
    with pytest.raises(ValueError, match=f"{key} must .*{value}"):
        PromptConfig(**{key: value})


def test_the_keys_of_a_stage_are_taken_by_their_names():
    fields = [(field.name, field.type, field) for field in dataclasses.fields(PromptConfig)]
    stage = dataclasses.make_dataclass("Stage", [("epochs", int), *fields])
    assert PromptConfig.of(stage(3, knowledge=False, budget=77)) == PromptConfig(knowledge=False, budget=77)


def test_candidates_are_listed_in_the_order_asked_for_and_keep_their_ranks():
    prompt = render(slate(), PromptConfig(incoming_rank=True), order=[2, 0, 1])
    assert read_candidates(prompt, LEVELS, SIZE) == [(12, 1, 2), (10, 1, 2), (11, 1, 2)]
    lines = prompt.messages[1]["content"].split("\n")[-3:]
    assert [line.rpartition(" | ")[2] for line in lines] == ["rank 3", "rank 1", "rank 2"]
    assert "rank" in prompt.messages[0]["content"].split("purchase.")[1]


def test_ranks_are_not_told_unless_asked_for():
    assert "| rank" not in render(slate(), PromptConfig(), order=[2, 0, 1]).messages[1]["content"]
