"""How many tokens a prompt will have, where there is no tokenizer yet."""

from __future__ import annotations

import re
from collections.abc import Sequence

__all__ = ["estimated_tokens"]

PIECES = re.compile(r"<[^<>\s]+>|[^\W\d_]+|\S|\n")
LETTERS = 3  # of a token of a word, at least
AROUND = 8  # tokens by which a chat template surrounds a message


def estimated_tokens(messages: Sequence[dict[str, str]]) -> int:
    """Rather more tokens than a reasoner's tokenizer will make of chat messages.

    One for each of a semantic ID, three letters of a word or one of another script's bytes, a digit, a mark, a line's
    end.
    """
    return sum(AROUND + sum(map(_tokens, PIECES.findall(message["content"]))) for message in messages)


def _tokens(piece: str) -> int:
    if piece.startswith("<") or len(piece) == 1:
        return len(piece.encode()) if len(piece) == 1 else 1
    return -(-len(piece) // LETTERS) if piece.isascii() else len(piece.encode())
