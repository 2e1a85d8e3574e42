import json

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gr2.prompts.answer import (
    ANSWER_BRIDGE,
    ANSWER_CLOSING,
    ANSWER_OPENING,
    ANSWER_SEPARATOR,
    RANKING_OPENING,
    REASONS,
    Answer,
    AnswerError,
    answer_text,
    parse_answer,
)
from gr2.prompts.semantic_id import sid_text

SIZE = 16
CANDIDATES = [(1, 2), (1, 3), (4, 2)]
IDS = [sid_text(codes) for codes in CANDIDATES]
VALID = answer_text('Uses "oil" at night.', CANDIDATES)
EXPLANATIONS = st.text(st.characters(codec="utf-8")).filter(str.strip)


def reason(text, candidates=CANDIDATES, **options):
    """Why an answer was refused, or None."""
    try:
        parse_answer(text, candidates, level_size=SIZE, **options)
    except AnswerError as error:
        refused = error
    else:
        return None
    assert refused.reason in REASONS
    assert str(refused).encode()
    assert len(str(refused)) < 1_000
    return refused.reason


def ranked(*ids, **more):
    return json.dumps({"explanation": "x", "recommendations": ids, **more})


@given(EXPLANATIONS | st.none(), st.permutations(range(3)))
def test_what_is_written_is_read(explanation, order):
    text = answer_text(explanation, [CANDIDATES[place] for place in order])
    found = parse_answer(text, CANDIDATES, level_size=SIZE, reasoning=explanation is not None)
    assert found == Answer(explanation or "", tuple(order))


def test_the_text_is_made_of_the_constants():
    ids = ANSWER_SEPARATOR.join(IDS)
    assert answer_text("x", CANDIDATES) == f"{ANSWER_OPENING}x{ANSWER_BRIDGE}{ids}{ANSWER_CLOSING}"
    assert answer_text(None, CANDIDATES) == f"{RANKING_OPENING}{ids}{ANSWER_CLOSING}"


def test_candidates_of_equal_codes_are_taken_in_their_order():
    twins = [(1, 2), (3, 3), (1, 2)]
    text = answer_text("x", [(1, 2), (1, 2), (3, 3)])
    assert parse_answer(text, twins, level_size=SIZE).ranking == (0, 2, 1)
    assert reason(answer_text("x", [(1, 2)] * 3), twins) == "duplicate"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "not-json"),
        ("I cannot help with that.", "not-json"),
        (f"```json\n{VALID}\n```", "not-json"),
        (VALID + "}", "not-json"),
        (VALID + VALID, "not-json"),
        (VALID.replace('"', "'"), "not-json"),
        (VALID.replace("oil", "oil\n"), "not-json"),
        ('{"explanation": NaN, "recommendations": []}', "not-json"),
        ("[" * 16_000 + "]" * 16_000, "not-json"),
        ("[" * 30_000, "not-json"),
        ('{"a":' * 5_000, "truncated"),
        ('{"a":' * 5_000 + "1" + "}" * 5_000, "not-json"),
        *[(VALID[:cut], "truncated") for cut in range(1, len(VALID))],
        ("x" * 40_000, "too-long"),
        ("1" * 30_000, "not-an-object"),
        ("1e999", "not-an-object"),
        ("[]", "not-an-object"),
        ('"x"', "not-an-object"),
        ("null", "not-an-object"),
        ('{"recommendations": [], "recommendations": []}', "duplicate-key"),
        ("{}", "missing-key"),
        ('{"explanation": "x"}', "missing-key"),
        (answer_text(None, CANDIDATES), "missing-key"),
        (ranked(*IDS, why="x"), "unknown-key"),
        (ranked(*IDS, explanation=["x"]), "wrong-type"),
        (ranked(*IDS, explanation=None), "wrong-type"),
        (ranked(*IDS, recommendations=IDS[0]), "wrong-type"),
        (ranked(*IDS[:2], 3), "wrong-type"),
        (ranked(*IDS[:2], 10**400), "wrong-type"),
        (ranked(*IDS, explanation=" \n"), "empty-explanation"),
        (ranked(*IDS[:2], "an oil"), "not-an-id"),
        (ranked(*IDS[:2], sid_text((1, 2, 3))), "not-an-id"),
        (ranked(*IDS[:2], sid_text((4, SIZE))), "not-an-id"),
        (ranked(*IDS[:2], sid_text((9, 9))), "not-a-candidate"),
        (ranked(*IDS, sid_text((9, 9))), "not-a-candidate"),
        (ranked(*IDS[:2], IDS[0]), "duplicate"),
        (ranked(*IDS, IDS[0]), "duplicate"),
        (ranked(*IDS[:2]), "incomplete"),
        (ranked(), "incomplete"),
        (ranked(*IDS, explanation="\ud800"), "not-unicode"),
        (VALID.replace("oil", "\udfff"), "not-unicode"),
    ],
)
def test_a_refusal_says_why(text, expected):
    assert reason(text) == expected


def test_an_explanation_that_was_not_asked_for_is_refused():
    assert reason(VALID, reasoning=False) == "unknown-key"
    assert reason(answer_text(None, CANDIDATES), reasoning=False) is None


def test_without_candidates_nothing_may_be_named():
    assert reason(answer_text("x", []), []) is None
    assert reason(answer_text("x", CANDIDATES), []) == "not-a-candidate"


def test_a_longer_slate_may_have_a_longer_answer():
    candidates = [(first, second) for first in range(SIZE) for second in range(SIZE)] * 4
    text = answer_text("x", candidates)
    assert len(text) > 40_000
    assert reason(text, candidates) is None


def test_the_message_says_what_came():
    with pytest.raises(AnswerError, match=r"not-a-candidate: recommendation 1: .*<s_a_9>.* is not among the candid"):
        parse_answer(ranked(sid_text((9, 9))), CANDIDATES, level_size=SIZE)


@st.composite
def broken_answers(draw):
    """A valid answer with some of its pieces replaced, repeated or cut out."""
    text = VALID
    pieces = ['"', "\\", "{", "}", "[", "]", ",", "NaN", "-Infinity", "9" * 5_000, "\x00", "\ud800", "\\ud800", *IDS]
    for _ in range(draw(st.integers(1, 4))):
        start, end = sorted(draw(st.tuples(*[st.integers(0, len(text))] * 2)))
        middle = draw(st.sampled_from([*pieces, text[start:end] * 2]) | st.text(max_size=5))
        text = text[:start] + middle * draw(st.integers(0, 3)) + text[end:]
    return text


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text() | st.sampled_from(IDS),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["explanation", "recommendations", "x"]), inner),
).map(json.dumps)


@settings(max_examples=500, deadline=None)
@given(broken_answers() | JSON | st.text())
@example('{"explanation": "' + "\\" * 30_001)
@example("{" * 32_000)
@example('[{"":' * 6_000)
def test_whatever_comes_is_an_answer_or_a_refusal(text):
    if reason(text) is None:
        found = parse_answer(text, CANDIDATES, level_size=SIZE)
        assert sorted(found.ranking) == [0, 1, 2]
        assert [IDS[place] for place in found.ranking] == json.loads(text)["recommendations"]
