"""Semantic IDs as text: `<|sid_begin|><s_a_12><s_b_7>...<|sid_end|>`, one token a code."""

from __future__ import annotations

import re
from collections.abc import Sequence

__all__ = ["BEGIN", "END", "LETTERS", "level_token", "level_tokens", "parse_sid", "sid_text"]

BEGIN, END = "<|sid_begin|>", "<|sid_end|>"
LETTERS = "abcdefgh"
# No number of more digits is a code: codes are uint16.
TOKEN = re.compile(r"<s_([a-h])_(0|[1-9][0-9]{0,4})>")
SHOWN = 80


def level_token(level: int, code: int) -> str:
    """The token of `code` at `level`, which counts from 0. Raises ValueError on a level that has no letter."""
    if not 0 <= level < len(LETTERS):
        raise ValueError(f"levels must be 0 to {len(LETTERS) - 1}, got {level}")
    return f"<s_{LETTERS[level]}_{code}>"


def level_tokens(levels: int, level_size: int) -> list[list[str]]:
    """The tokens of all codes, level by level."""
    return [[level_token(level, code) for code in range(level_size)] for level in range(levels)]


def sid_text(codes: Sequence[int]) -> str:
    """The text of an item's codes."""
    return BEGIN + "".join(level_token(level, code) for level, code in enumerate(codes)) + END


def parse_sid(text: str, levels: int, level_size: int) -> tuple[int, ...]:
    """The codes in a text that is one semantic ID and nothing else. Raises ValueError that says what came."""
    codes: list[int] = []
    place = len(BEGIN) if text.startswith(BEGIN) else -1
    while place >= 0 and (found := TOKEN.match(text, place)) and len(codes) < levels:
        letter, number = found.groups()
        if letter != LETTERS[len(codes)] or int(number) >= level_size:
            break
        codes.append(int(number))
        place = found.end()
    if place < 0 or len(codes) < levels or text[place:] != END:
        shown = text if len(text) <= SHOWN else f"{text[:SHOWN]}..."
        raise ValueError(f"expected a semantic ID of {levels} codes below {level_size}, got {shown!r}")
    return tuple(codes)
