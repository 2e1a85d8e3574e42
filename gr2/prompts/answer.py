"""Answers: `{"explanation": "...", "recommendations": ["<ID>", ...]}`, written in one way and read strictly."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gr2.errors import Gr2Error
from gr2.prompts.semantic_id import parse_sid, sid_text

__all__ = [
    "ANSWER_BRIDGE",
    "ANSWER_CLOSING",
    "ANSWER_OPENING",
    "ANSWER_SEPARATOR",
    "RANKING_OPENING",
    "REASONS",
    "Answer",
    "AnswerError",
    "answer_text",
    "parse_answer",
]

# The text of an answer is OPENING explanation BRIDGE, or RANKING_OPENING, then IDs with SEPARATOR between, and CLOSING.
ANSWER_OPENING = '{"explanation": "'
ANSWER_BRIDGE = '", "recommendations": ["'
RANKING_OPENING = '{"recommendations": ["'
ANSWER_SEPARATOR = '", "'
ANSWER_CLOSING = '"]}'

REASONS = (
    "too-long",
    "not-unicode",
    "truncated",
    "not-json",
    "not-an-object",
    "duplicate-key",
    "missing-key",
    "unknown-key",
    "wrong-type",
    "empty-explanation",
    "not-an-id",
    "not-a-candidate",
    "duplicate",
    "incomplete",
)
# Of an explanation with everything around it; an ID has at most 100 characters.
LONGEST, LONGEST_ID = 32_768, 128
PIECES = re.compile(r'"(?:[^"\\]|\\.)*+"|["\[\]{}]', re.DOTALL)
DEPTH = {"{": 1, "[": 1, "}": -1, "]": -1}
SHOWN = 80


@dataclass(frozen=True)
class Answer:
    """An explanation, empty where none was asked for, and the candidates' positions, best first."""

    explanation: str
    ranking: tuple[int, ...]


class AnswerError(Gr2Error):
    """An answer that was refused. `reason` is one of REASONS."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(f"{reason}: {message}")
        self.reason = reason


def answer_text(explanation: str | None, order: Sequence[tuple[int, ...]]) -> str:
    """The answer that ranks the candidates of codes `order`, in the one form that a model is trained to write."""
    ranking = {"recommendations": [sid_text(codes) for codes in order]}
    return json.dumps(ranking if explanation is None else {"explanation": explanation, **ranking}, ensure_ascii=False)


def parse_answer(
    text: str, candidates: Sequence[tuple[int, ...]], *, level_size: int, reasoning: bool = True
) -> Answer:
    """The answer in `text` about candidates of these codes, each of which it must name once.

    With `reasoning` it must explain, without it it must not. Candidates of equal codes are taken in their order. Raises
    AnswerError, and nothing else, whatever the text; the time is linear in its length.
    """
    values = _load(text, LONGEST + LONGEST_ID * len(candidates))
    expected = ("explanation", "recommendations") if reasoning else ("recommendations",)
    for name in expected:
        if name not in values:
            raise AnswerError("missing-key", f"no {name!r}")
    for name in values:
        if name not in expected:
            raise AnswerError("unknown-key", f"expected {' and '.join(map(repr, expected))}, got {_shown(name)}")
    explanation, ids = values.get("explanation", ""), values["recommendations"]
    if not isinstance(explanation, str):
        raise AnswerError("wrong-type", f"'explanation' must be a string, got {type(explanation).__name__}")
    if not isinstance(ids, list):
        raise AnswerError("wrong-type", f"'recommendations' must be a list, got {type(ids).__name__}")
    if reasoning and not explanation.strip():
        raise AnswerError("empty-explanation", "'explanation' says nothing")
    return Answer(explanation, _ranking(ids, candidates, level_size))


def _ranking(ids: Sequence[Any], candidates: Sequence[tuple[int, ...]], level_size: int) -> tuple[int, ...]:
    left: dict[tuple[int, ...], list[int]] = {}
    for position, codes in reversed(list(enumerate(candidates))):
        left.setdefault(codes, []).append(position)
    ranking = []
    for number, text in enumerate(ids, 1):
        if not isinstance(text, str):
            raise AnswerError("wrong-type", f"recommendation {number} must be a string, got {type(text).__name__}")
        if not candidates:
            raise AnswerError("not-a-candidate", f"recommendation {number}: there are no candidates")
        try:
            codes = parse_sid(text, len(candidates[0]), level_size)
        except ValueError as error:
            raise AnswerError("not-an-id", f"recommendation {number}: {error}") from error
        if codes not in left:
            raise AnswerError("not-a-candidate", f"recommendation {number}: {text} is not among the candidates")
        if not left[codes]:
            raise AnswerError("duplicate", f"recommendation {number}: {text} was named before")
        ranking.append(left[codes].pop())
    if len(ranking) < len(candidates):
        raise AnswerError("incomplete", f"{len(ranking)} of {len(candidates)} candidates were named")
    return tuple(ranking)


def _load(text: str, limit: int) -> dict[str, Any]:
    """The JSON object in `text`."""
    if len(text) > limit:
        raise AnswerError("too-long", f"expected at most {limit:,} characters, got {len(text):,}")
    try:
        text.encode()
        # Numbers are refused wherever they stand, so that their value does not matter.
        values = json.loads(text, object_pairs_hook=_unique, parse_int=len, parse_constant=_refuse_constant)
        json.dumps(values, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise AnswerError("not-unicode", f"holds half of a surrogate pair: {error.reason}") from error
    except (ValueError, RecursionError) as error:
        reason = "truncated" if _is_open(text) else "not-json"
        raise AnswerError(reason, f"{error or 'nested too deeply'}: {_shown(text[-SHOWN:])} is how it ends") from error
    if not isinstance(values, dict):
        raise AnswerError("not-an-object", f"expected a JSON object, got {type(values).__name__}")
    return values


def _is_open(text: str) -> bool:
    """Whether `text` begins as an object and ends before its last bracket or inside a string."""
    depth = 0
    for found in PIECES.finditer(text):
        piece = found.group()
        if piece == '"':
            return text.lstrip().startswith("{")
        depth += DEPTH.get(piece, 0)
    return depth > 0 and text.lstrip().startswith("{")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, value in pairs:
        if name in values:
            raise AnswerError("duplicate-key", f"{_shown(name)} stands there more than once")
        values[name] = value
    return values


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


def _shown(text: str) -> str:
    return repr(text if len(text) <= SHOWN else f"{text[:SHOWN]}...")
