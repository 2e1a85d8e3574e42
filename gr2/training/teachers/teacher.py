"""What every teacher takes and gives: a request to rank a slate, and the reply, or why there is none."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

__all__ = ["Message", "Reply", "Teacher", "TeacherRequest"]

Message = dict[str, str]


@dataclass(frozen=True)
class TeacherRequest:
    """One attempt at one list.

    `row` is the list's place among the lists, `attempt` counts from 0; the prompt `messages` show the newest `shown`
    items of the history; `target` is the target's place in the slate where the teacher is shown it, else None.
    """

    row: int
    attempt: int
    messages: tuple[Message, ...]
    shown: int
    target: int | None = None


@dataclass(frozen=True)
class Reply:
    """`text` is the answer as the teacher gave it, None where there is none; `reason` says why it cannot be used.

    A `final` reply was paid for, or would come again: it is not asked for again. Tokens are None where not known;
    `cost` is in the unit of the configured prices; `retries` were needed.
    """

    text: str | None
    reason: str | None = None
    detail: str = ""
    final: bool = True
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cost: float = 0.0
    retries: int = 0


class Teacher(Protocol):
    """Whoever answers requests."""

    def answer(self, requests: Iterable[TeacherRequest]) -> Iterator[tuple[TeacherRequest, Reply]]:
        """Every request with its reply, as they come. Raises Gr2Error where going on is useless."""
