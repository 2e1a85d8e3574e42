"""What a judge is asked of a shortened history, and its verdict, strictly read."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gr2.errors import Gr2Error
from gr2.prompts.render import CANDIDATES, HISTORY, MARK, ItemView, item_line

__all__ = ["VERDICT_REASONS", "Verdict", "VerdictError", "parse_verdict", "verdict_messages"]

VERDICT_REASONS = ("too-long", "not-json", "not-an-object", "missing-key", "unknown-key", "wrong-type", "out-of-range")
KEYS = ("solvable", "preservation", "quality")
LONGEST = 2_000
SHORTENED, BOUGHT = "Shortened history:", "Bought next:"
RULES = (
    "A user's history was shortened for a ranker of candidates. Judge the shortened one.",
    "solvable: 1 if the whole history tells which candidate is bought next, else 0.",
    "preservation: from 0 to 1, how much of what the whole history tells of the user's taste is left.",
    "quality: from 0 to 1, how high a ranker that sees the shortened history alone would place the item bought next.",
    'Answer in JSON: {"solvable": 0 or 1, "preservation": number, "quality": number}',
)


@dataclass(frozen=True)
class Verdict:
    """Whether the case is `solvable` from the whole history, and two marks from 0 to 1 for a shortened one."""

    solvable: bool
    preservation: float
    quality: float


class VerdictError(Gr2Error):
    """A verdict that was refused. `reason` is one of VERDICT_REASONS."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(f"{reason}: {message}")
        self.reason = reason


def verdict_messages(
    history: Sequence[str], context: Sequence[str], candidates: Sequence[ItemView], target: int, *, title_words: int
) -> tuple[dict[str, str], ...]:
    """What a judge is asked about a `context` of a `history`, both lines; `target` is the place of the item bought."""
    listed = [item_line(item, title_words) for item in candidates]
    blocks = [[HISTORY, *history], [SHORTENED, *context], [CANDIDATES, *listed], [BOUGHT, listed[target]]]
    user = "\n\n".join("\n".join([head, *(MARK + line for line in lines)]) for head, *lines in blocks)
    return {"role": "system", "content": "\n".join(RULES)}, {"role": "user", "content": user}


def parse_verdict(text: str) -> Verdict:
    """The verdict in `text`, which must be that JSON object and nothing else. Raises VerdictError."""
    if len(text) > LONGEST:
        raise VerdictError("too-long", f"expected at most {LONGEST:,} characters, got {len(text):,}")
    try:
        values = json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise VerdictError("not-json", str(error) or "nested too deeply") from error
    if not isinstance(values, dict):
        raise VerdictError("not-an-object", f"expected a JSON object, got {type(values).__name__}")
    for name in KEYS:
        if name not in values:
            raise VerdictError("missing-key", f"no {name!r}")
    for name in values:
        if name not in KEYS:
            raise VerdictError("unknown-key", f"expected {', '.join(KEYS)}, got {name[:80]!r}")
    solvable, preservation, quality = (_mark(name, values[name]) for name in KEYS)
    if solvable not in (0.0, 1.0):
        raise VerdictError("out-of-range", f"'solvable' must be 0 or 1, got {solvable:g}")
    return Verdict(solvable == 1.0, preservation, quality)


def _mark(name: str, value: Any) -> float:
    # JSON's true and false are what some models write for 1 and 0.
    if not isinstance(value, int | float) or (isinstance(value, bool) and name != "solvable"):
        raise VerdictError("wrong-type", f"{name!r} must be a number, got {type(value).__name__}")
    if not 0 <= value <= 1:
        raise VerdictError("out-of-range", f"{name!r} must be from 0 to 1, got {value!s:.20}")
    return float(value)


def _refuse(name: str) -> float:
    raise ValueError(f"{name} is not JSON")
