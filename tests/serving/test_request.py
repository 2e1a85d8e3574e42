"""The request rules: each broken rule names the field and says what came and what was expected."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gr2.bundle import Bundle
from gr2.errors import RequestError
from gr2.serving.request import RequestRules, float_array, split_ids

MakeBundle = Callable[..., Path]


@pytest.fixture(scope="module")
def rules(make_bundle: MakeBundle) -> RequestRules:
    return RequestRules(Bundle.load(make_bundle(width=2)).manifest)


@pytest.fixture(scope="module")
def string_rules(make_bundle: MakeBundle) -> RequestRules:
    return RequestRules(Bundle.load(make_bundle("string")).manifest)


def floats(*values: float) -> Any:
    return np.array(values, dtype=np.float32)


def check(rules: RequestRules, candidates: Any = (1, 2, 3), history: Any = (), **rest: Any) -> Any:
    return rules.check(split_ids("history", history), split_ids("candidates", candidates), **rest)


def refusal(rules: RequestRules, *arguments: Any, **keywords: Any) -> str:
    with pytest.raises(RequestError) as caught:
        check(rules, *arguments, **keywords)
    return str(caught.value)


def test_valid_request_becomes_a_slate(rules: RequestRules) -> None:
    slate = check(rules, [5, 6, 7], [9, 9], scores=floats(3, 2, 1), features=floats(1, 2, 3, 4, 5, 6), top_n=2)
    assert slate.candidates == [5, 6, 7]
    assert slate.keys.dtype == slate.history.dtype == np.int64
    assert slate.features.tolist() == [[1, 2], [3, 4], [5, 6]]
    assert slate.top_n == 2


def test_candidates_are_required(rules: RequestRules) -> None:
    assert refusal(rules, []) == "candidates: at least one is needed, got none"


def test_1024_candidates_pass_and_1025_do_not(rules: RequestRules) -> None:
    assert len(check(rules, range(1024)).candidates) == 1024
    assert refusal(rules, range(1025)) == "candidates: at most 1024 items, got 1025"


def test_long_history_is_refused(rules: RequestRules) -> None:
    assert len(check(rules, [1], range(1024)).history) == 1024
    assert refusal(rules, [1], range(1025)) == "history: at most 1024 items, got 1025"


def test_duplicates_are_named_with_their_positions(rules: RequestRules, string_rules: RequestRules) -> None:
    message = refusal(rules, [4, 7, 4, 8, 7, 4])
    assert message == "candidates: must be distinct; 4 at positions 0, 2, 5; 7 at positions 1, 4"
    assert refusal(string_rules, ["a", "a"]) == "candidates: must be distinct; 'a' at positions 0, 1"


def test_message_about_many_duplicates_stays_short(string_rules: RequestRules) -> None:
    ids = [str(number) * 300 for number in range(100)]
    message = refusal(string_rules, ids * 3)
    assert len(message) < 300
    assert message.endswith(" and 97 more")


def test_history_may_repeat_items(rules: RequestRules) -> None:
    assert check(rules, [1], [3, 3, 3]).history.tolist() == [3, 3, 3]


@pytest.mark.parametrize("field", ["history", "candidates"])
def test_ints_and_strings_cannot_be_mixed(rules: RequestRules, field: str) -> None:
    message = refusal(rules, **{"candidates": [1], field: [1, "a", "b"]})
    assert message == f"{field}: fill ints or strings, not both; got 1 ints, 2 strings"


@pytest.mark.parametrize("field", ["history", "candidates"])
def test_wrong_kind_of_id_is_named(rules: RequestRules, string_rules: RequestRules, field: str) -> None:
    message = refusal(rules, **{"candidates": [1], field: ["a"]})
    assert message == f"{field}: this catalogue's item IDs are int64, got strings"
    message = refusal(string_rules, **{"candidates": ["a"], field: [1]})
    assert message == f"{field}: this catalogue's item IDs are strings, got ints"


@pytest.mark.parametrize("item", [1.5, None, True, b"a", (1,)])
def test_other_types_are_no_ids(rules: RequestRules, item: Any) -> None:
    assert "item IDs must be all int or all str" in refusal(rules, [1, item])


@pytest.mark.parametrize("field", ["history", "candidates"])
@pytest.mark.parametrize("values", ["abc", b"abc", None, 5, {1, 2}, {1: 2}, np.int64(3), np.ones((2, 2), int)])
def test_what_is_no_list_is_refused_whole(field: str, values: Any) -> None:
    with pytest.raises(RequestError, match=f"{field}: must be a list of item IDs, got"):
        split_ids(field, values)


@pytest.mark.parametrize("item", [2**63, -(2**63) - 1])
def test_id_beyond_int64_is_refused(rules: RequestRules, item: int) -> None:
    assert refusal(rules, [item]) == "candidates: item IDs must fit into int64"
    assert refusal(rules, [1], [item]) == "history: item IDs must fit into int64"


def test_numpy_ids_are_taken(rules: RequestRules, string_rules: RequestRules) -> None:
    assert check(rules, np.array([1, 2], dtype=np.uint16)).candidates == [1, 2]
    assert check(rules, [np.int64(1), 2]).candidates == [1, 2]
    assert check(string_rules, np.array(["a", "b"])).candidates == ["a", "b"]


@pytest.mark.parametrize("count", [1, 2, 4])
def test_scores_are_none_or_one_a_candidate(rules: RequestRules, count: int) -> None:
    assert refusal(rules, scores=floats(*range(count))) == f"scores: none or one a candidate (3), got {count}"


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_scores_must_be_finite(rules: RequestRules, bad: float) -> None:
    assert refusal(rules, scores=floats(1, bad, 0)) == f"scores: must be finite float32; number 1 is {bad}"


def test_empty_scores_and_features_count_as_absent(rules: RequestRules) -> None:
    slate = check(rules, scores=floats(), features=floats())
    assert slate.scores is None
    assert slate.features is None


def test_wrong_feature_width_says_what_came(rules: RequestRules, string_rules: RequestRules) -> None:
    message = refusal(rules, features=floats(*range(9)))
    assert message == (
        "features: this bundle's feature width is 2: expected 6 values (2 a candidate), got 9 values (3 a candidate)"
    )
    message = refusal(rules, features=floats(*range(9)).reshape(3, 3))
    assert message.endswith("expected 6 values (2 a candidate), got shape (3, 3)")
    assert refusal(rules, features=floats(*range(6)).reshape(2, 3)).endswith("got shape (2, 3)")
    assert refusal(rules, features=floats(1, 2)).endswith("got 2 values")
    message = refusal(string_rules, ["a"], features=floats(1))
    assert message == "features: this bundle's feature width is 0: expected none, got 1 values (1 a candidate)"


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_features_must_be_finite(rules: RequestRules, bad: float) -> None:
    message = refusal(rules, features=floats(0, 0, 0, bad, 0, 0))
    assert message == f"features: must be finite float32; column 1 of candidate 1 is {bad}"


def test_number_beyond_float32_is_not_finite(rules: RequestRules) -> None:
    assert "must be finite float32" in refusal(rules, scores=float_array("scores", [1.0, 1e300, 2.0]))


@pytest.mark.parametrize("values", ["abc", ["x"], ["1", "2"], [b"1"], [1, "2"], [1j], [[1], [2, 3]], [None, object()]])
def test_values_that_are_no_numbers_are_refused(values: Any) -> None:
    with pytest.raises(RequestError, match="scores: must be numbers"):
        float_array("scores", values)


def test_numbers_of_any_kind_are_taken() -> None:
    assert float_array("scores", [True, 2, 3.5, np.float64(1)]).tolist() == [1, 2, 3.5, 1]
    assert float_array("scores", [10**30, 0.5]).tolist() == floats(1e30, 0.5).tolist()
    assert float_array("scores", []).tolist() == []


def test_request_id_is_limited_in_bytes(rules: RequestRules) -> None:
    check(rules, request_id="x" * 128)
    assert refusal(rules, request_id="x" * 129) == "request_id: at most 128 bytes, got 129"
    assert refusal(rules, request_id="é" * 65) == "request_id: at most 128 bytes, got 130"


@pytest.mark.parametrize(("top_n", "listed"), [(0, 3), (1, 1), (3, 3), (4, 3), (2**32 - 1, 3)])
def test_top_n_above_the_slate_lists_all(rules: RequestRules, top_n: int, listed: int) -> None:
    assert check(rules, top_n=top_n).top_n == listed


def test_negative_top_n_is_refused(rules: RequestRules) -> None:
    assert refusal(rules, top_n=-1) == "top_n: must not be negative, got -1"
