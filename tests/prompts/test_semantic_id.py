import pytest
from hypothesis import given
from hypothesis import strategies as st

from gr2.prompts.semantic_id import LETTERS, level_token, level_tokens, parse_sid, sid_text


def test_an_id_is_written_with_a_letter_for_each_level():
    assert sid_text((12, 0, 255, 7)) == "<|sid_begin|><s_a_12><s_b_0><s_c_255><s_d_7><|sid_end|>"


def test_tokens_are_those_of_the_text():
    tokens = level_tokens(3, 5)
    assert [len(level) for level in tokens] == [5, 5, 5]
    assert "".join(tokens[level][code] for level, code in enumerate((4, 0, 2))) in sid_text((4, 0, 2))
    assert len({token for level in tokens for token in level}) == 15


@given(st.lists(st.integers(0, 65_535), min_size=1, max_size=len(LETTERS)).map(tuple))
def test_what_is_written_is_read(codes):
    assert parse_sid(sid_text(codes), len(codes), 65_536) == codes


@pytest.mark.parametrize(
    "text",
    [
        "",
        "<|sid_begin|>",
        "<|sid_begin|><s_a_1><s_b_2>",
        "<|sid_begin|><s_a_1><|sid_end|>",
        "<|sid_begin|><s_a_1><s_b_2><s_c_3><|sid_end|>",
        "<|sid_begin|><s_b_1><s_a_2><|sid_end|>",
        "<|sid_begin|><s_a_1><s_b_8><|sid_end|>",
        "<|sid_begin|><s_a_01><s_b_2><|sid_end|>",
        "<|sid_begin|><s_a_-1><s_b_2><|sid_end|>",
        "<|sid_begin|><s_a_١><s_b_2><|sid_end|>",
        "<|sid_begin|><s_a_1> <s_b_2><|sid_end|>",
        " <|sid_begin|><s_a_1><s_b_2><|sid_end|>",
        "<|sid_begin|><s_a_1><s_b_2><|sid_end|>\n",
        "<|sid_begin|><s_a_1><s_b_" + "9" * 10_000 + "><|sid_end|>",
    ],
)
def test_anything_else_is_refused_and_shown(text):
    with pytest.raises(ValueError, match="expected a semantic ID of 2 codes below 8, got") as raised:
        parse_sid(text, 2, 8)
    assert len(str(raised.value)) < 200


@pytest.mark.parametrize("level", [-1, 8])
def test_a_level_without_a_letter_is_named(level):
    with pytest.raises(ValueError, match=f"levels must be 0 to 7, got {level}"):
        level_token(level, 0)
