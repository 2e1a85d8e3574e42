"""The sentences of the evidence teacher: every one is a claim about the data that can be read back and checked.

    Pattern: 3 of 5 purchases are Nail Polish; the last is ID. Goes with it: 10+ buyers of ID also took Top Coats.
    Match ID: bought with ID by 5+ others; of the brand of ID. Then ID: Nail Polish, as ID is.

The first two speak of the history, the others of one candidate each. "Others" are users other than the one in question.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from gr2.prompts.semantic_id import BEGIN, END, sid_text

__all__ = [
    "STEPS",
    "Claim",
    "Statement",
    "cited_ids",
    "floor_count",
    "plain_name",
    "read_statements",
    "stray_token",
    "write_statements",
]

STEPS = ("Pattern", "Goes with it", "Match", "Then")
SPOKEN_OF = ("Match", "Then")  # the steps that speak of a candidate
SEMANTIC_ID = re.escape(BEGIN) + r"(?:<s_[a-h]_\d+>)+" + re.escape(END)
TOKEN = re.compile(r"<\|[^<>|\s]*\|>|<s_[a-h]_\d+>|</?s>|\[/?INST\]")
TEMPLATES = {
    "category-share": "{count} of {total} purchases are {name}",
    "brand-share": "{count} of {total} are of one brand",
    "last": "the last is {other}",
    "type-together": "{count}+ buyers of {other} also took {name}",
    "no-type": "no type stands out",
    "together": "bought with {other} by {count}+ others",
    "category": "{name}, as {other} is",
    "brand": "of the brand of {other}",
    "price": "priced like {other}",
    "prefix": "{count} codes in common with {other}",
    "title": "says {name}, as {other} does",
    "popularity": "bought by {count}+ others",
    "listing": "listed at {count}",
}
FIELDS = {"count": r"(?P<count>\d+)", "total": r"(?P<total>\d+)", "name": r"(?P<name>[^.;:<>]+?)"}
NAME = re.compile(r"[^\w&'+/-]+")
STEPS_OF_COUNTS = (1, 2, 5)


@dataclass(frozen=True)
class Claim:
    """One fact. `other` is the semantic ID of the history item that it is about, by its codes."""

    kind: str
    other: tuple[int, ...] | None = None
    count: int = 0
    total: int = 0
    name: str = ""

    def text(self) -> str:
        """The claim in words."""
        other = "" if self.other is None else sid_text(self.other)
        return TEMPLATES[self.kind].format(other=other, count=self.count, total=self.total, name=self.name)


@dataclass(frozen=True)
class Statement:
    """A step with its claims; `item` is the semantic ID of the candidate that it speaks of, None for the history."""

    step: str
    claims: tuple[Claim, ...]
    item: tuple[int, ...] | None = None

    def text(self) -> str:
        """The statement as a sentence."""
        subject = self.step if self.item is None else f"{self.step} {sid_text(self.item)}"
        return f"{subject}: {'; '.join(claim.text() for claim in self.claims)}."


def plain_name(text: str) -> str:
    """A category as claims write it: words without punctuation that would end a claim, at most 40 characters."""
    return NAME.sub(" ", text).strip()[:40].strip()


def floor_count(count: int) -> int:
    """The largest of 1, 2, 5, 10, 20, 50, ... that is at most `count`, 0 for 0: small counts are no secret."""
    found, ten = 0, 1
    while ten <= count:
        found = max(step * ten for step in STEPS_OF_COUNTS if step * ten <= count)
        ten *= 10
    return found


def cited_ids(text: str) -> list[str]:
    """Whatever looks like a semantic ID in a text, whoever wrote it."""
    return re.findall(re.escape(BEGIN) + ".*?" + re.escape(END), text, re.DOTALL)


def stray_token(text: str) -> str | None:
    """What, outside of whole semantic IDs, a tokenizer would read as a token of one or of a chat template."""
    found = TOKEN.search(re.sub(SEMANTIC_ID, " ", text))
    return found.group() if found else None


def write_statements(statements: Iterable[Statement]) -> str:
    """The explanation."""
    return " ".join(statement.text() for statement in statements)


def read_statements(text: str) -> list[Statement]:
    """The statements of an explanation. Raises ValueError at anything that is none."""
    statements, rest = [], text.strip()
    while rest:
        sentence, full_stop, rest = rest.partition(".")
        if not full_stop:
            raise ValueError(f"a sentence without its end: {sentence!r}")
        statements.append(_statement(sentence.strip()))
        rest = rest.strip()
    return statements


def _statement(sentence: str) -> Statement:
    subject, colon, body = sentence.partition(": ")
    step = next((step for step in STEPS if subject == step or subject.startswith(f"{step} <")), None)
    if not colon or step is None:
        raise ValueError(f"not a step of {', '.join(STEPS)}: {sentence!r}")
    item = subject.removeprefix(step).strip()
    if bool(item) != (step in SPOKEN_OF) or (item and not re.fullmatch(SEMANTIC_ID, item)):
        raise ValueError(f"{step!r} speaks of {'one candidate' if step in SPOKEN_OF else 'the history'}: {sentence!r}")
    return Statement(step, tuple(_claim(part) for part in body.split("; ")), _codes(item) if item else None)


def _claim(text: str) -> Claim:
    for kind, pattern in PATTERNS:
        match = pattern.fullmatch(text)
        if match:
            found = match.groupdict()
            other = _codes(found["other"]) if "other" in found else None
            return Claim(
                kind, other, int(found.get("count", 0)), int(found.get("total", 0)), found.get("name", "").strip()
            )
    raise ValueError(f"not a claim: {text!r}")


def _codes(text: str) -> tuple[int, ...]:
    return tuple(int(code) for code in re.findall(r"_(\d+)>", text))


def _pattern(template: str) -> re.Pattern[str]:
    fields = FIELDS | {"other": f"(?P<other>{SEMANTIC_ID})"}
    parts: Sequence[str] = re.split(r"\{(\w+)\}", template)
    return re.compile("".join(fields[part] if place % 2 else re.escape(part) for place, part in enumerate(parts)))


PATTERNS = [(kind, _pattern(template)) for kind, template in TEMPLATES.items()]
