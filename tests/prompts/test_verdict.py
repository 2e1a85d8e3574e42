from __future__ import annotations

import json

import pytest

from gr2.prompts.render import ItemView
from gr2.prompts.semantic_id import sid_text
from gr2.prompts.verdict import VERDICT_REASONS, Verdict, VerdictError, parse_verdict, verdict_messages


def test_a_verdict_is_read() -> None:
    assert parse_verdict('{"solvable": 1, "preservation": 0.5, "quality": 1}') == Verdict(True, 0.5, 1.0)
    assert parse_verdict(' {"quality": 0, "solvable": false, "preservation": 1e-1}\n') == Verdict(False, 0.1, 0.0)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("x" * 3000, "too-long"),
        ("solvable: 1", "not-json"),
        ('{"solvable": 1, "preservation": NaN, "quality": 1}', "not-json"),
        ("[" * 1900, "not-json"),
        ("[1, 0.5, 1]", "not-an-object"),
        ('{"solvable": 1, "quality": 1}', "missing-key"),
        ('{"solvable": 1, "preservation": 1, "quality": 1, "why": 0}', "unknown-key"),
        ('{"solvable": 1, "preservation": "1", "quality": 1}', "wrong-type"),
        ('{"solvable": 1, "preservation": true, "quality": 1}', "wrong-type"),
        ('{"solvable": 1, "preservation": null, "quality": 1}', "wrong-type"),
        ('{"solvable": 0.5, "preservation": 1, "quality": 1}', "out-of-range"),
        ('{"solvable": 1, "preservation": 1.01, "quality": 1}', "out-of-range"),
        ('{"solvable": 1, "preservation": 1, "quality": -1e999}', "out-of-range"),
        ('{"solvable": 1, "preservation": 1, "quality": ' + "9" * 1500 + "}", "out-of-range"),
    ],
)
def test_what_is_no_verdict_is_refused_with_its_reason(text: str, reason: str) -> None:
    with pytest.raises(VerdictError) as caught:
        parse_verdict(text)
    assert caught.value.reason == reason
    assert reason in VERDICT_REASONS


def test_a_judge_sees_both_histories_the_candidates_and_what_was_bought() -> None:
    items = [ItemView((number, 0), f"item {number}", ()) for number in range(3)]
    system, user = verdict_messages(["a", "b"], ["b"], items, 2, title_words=0)
    assert json.dumps("solvable")[1:-1] in system["content"]
    blocks = [block.split("\n") for block in user["content"].split("\n\n")]
    assert blocks[0][1:] == ["- a", "- b"]
    assert blocks[1][1:] == ["- b"]
    assert len(blocks[2]) == 4
    assert blocks[3][1:] == [f"- {sid_text((2, 0))} item 2"]
