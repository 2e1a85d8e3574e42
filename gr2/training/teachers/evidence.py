"""The teacher for those without a language model: it ranks by evidence that it can name, and names it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gr2.data.candidates import PADDING, CandidateLists
from gr2.prompts.answer import answer_text
from gr2.training.teachers.claims import Claim, Statement, read_statements, write_statements
from gr2.training.teachers.ledger import Case, Ledger
from gr2.training.teachers.scores import KINDS, EvidenceScores
from gr2.training.teachers.teacher import Reply, TeacherRequest
from gr2.training.teachers.witness import Witness

__all__ = ["LEAST_SHARE", "EvidenceTeacher", "count_tokens"]

LEAST_SHARE = 0.05  # of a score, in nats, below which evidence has not moved an item
# By `count_tokens`; a byte-level BPE of 4,096 tokens takes up to a tenth more, and 40 to 130 are wanted.
SHORTEST, LONGEST = 40, 118
CITED = (3, 2, 1)  # pieces of evidence for the first, second and third item
TOKEN = re.compile(r"<[^>]+>|\w+|[^\w\s]")


def count_tokens(text: str) -> int:
    """About how many tokens a text has: one a semantic-ID token, word and mark."""
    return len(TOKEN.findall(text))


@dataclass(frozen=True)
class EvidenceTeacher:
    """Ranks R `lists` by their `evidence`.

    The target hidden, the first item is drawn from softmax(scores / temperature) and the others follow by score; shown,
    it comes first. Draws depend on `seed`, the list and the attempt only. `fold` (U,) are the users' folds: facts about
    a user's list are counted without those of its own fold. Without `reasoning` it gives the ranking alone.
    """

    ledger: Ledger
    lists: CandidateLists
    evidence: EvidenceScores
    fold: NDArray[np.int64]
    temperature: float
    seed: int
    reasoning: bool = True

    def answer(self, requests: Iterable[TeacherRequest]) -> Iterator[tuple[TeacherRequest, Reply]]:
        """Every request with its reply, in order."""
        for request in requests:
            order = self._order(request)
            explanation = self.explain(request.row, order, request.shown) if self.reasoning else None
            if self.reasoning and explanation is None:
                yield request, Reply(None, "no-evidence", "no fact of the data lifted the first item")
                continue
            items = self.lists.candidates[request.row][order].tolist()
            text = answer_text(explanation, [self.ledger.codes[item] for item in items])
            yield request, Reply(text, prompt_tokens=0, completion_tokens=count_tokens(text))

    def holds(self, row: int, explanation: str, shown: int) -> bool:
        """Whether every sentence of an explanation is a claim that the data holds."""
        case = self.case(row, shown)
        try:
            return all(self.ledger.holds(statement, case) for statement in read_statements(explanation))
        except ValueError:
            return False

    def _order(self, request: TeacherRequest) -> NDArray[np.int64]:
        """(K,) int64: the places of the list's candidates, best first; equal scores keep the incoming order."""
        count = int((self.lists.candidates[request.row] != PADDING).sum())
        scores = self.evidence.scores[request.row, :count].astype(np.float64)
        order = np.argsort(-scores, kind="stable")
        first = request.target
        if first is None:
            rng = np.random.default_rng((self.seed, request.row, request.attempt))
            first = int(np.argmax(scores / self.temperature + rng.gumbel(size=count)))
        return np.concatenate([[first], order[order != first]]).astype(np.int64)

    def explain(self, row: int, order: NDArray[np.int64], shown: int) -> str | None:
        """The three steps for a ranking of a list; None if nothing that moved the first item can be cited."""
        case = self.case(row, shown)
        witness = Witness(self.ledger, case, self.fold != self.fold[case.user])
        matches: list[Statement] = []
        for place, column in enumerate(order[: len(CITED)].tolist()):
            item = case.candidates[column]
            claims = self._claims(witness, row, column)[: CITED[place]]
            if not claims and not matches:
                return None
            if claims:
                step = "Then" if matches else "Match"
                matches.append(Statement(step, tuple(claims), self.ledger.codes[item]))
        opening = [Statement("Pattern", witness.pattern()), Statement("Goes with it", witness.types())]
        return _fitting([each for each in opening if each.claims], matches)

    def case(self, row: int, shown: int) -> Case:
        """The list as claims speak of it, with the newest `shown` items of the history."""
        user, position = int(self.lists.user[row]), int(self.lists.position[row])
        history = self.ledger.dataset.history(user, position)[position - shown :].tolist()
        candidates = self.lists.candidates[row]
        return Case(user, tuple(history), tuple(candidates[candidates != PADDING].tolist()))

    def _claims(self, witness: Witness, row: int, column: int) -> list[Claim]:
        """The facts of the kinds of evidence that lifted a candidate, the strongest first."""
        shares = self.evidence.shares[row, column]
        lifted = [kind for kind in np.argsort(-shares, kind="stable").tolist() if shares[kind] >= LEAST_SHARE]
        claims = (witness.claim(KINDS[kind], witness.case.candidates[column]) for kind in lifted)
        return [claim for claim in claims if claim is not None]


def _fitting(opening: list[Statement], matches: list[Statement]) -> str:
    """As much of the explanation as fits: the third item only where it would be too short, less where too long."""
    text = write_statements([*opening, *matches[:2]])
    if count_tokens(text) < SHORTEST:
        return write_statements([*opening, *matches])
    while count_tokens(text) > LONGEST and (len(matches) > 1 or len(matches[0].claims) > 1):
        if len(matches) > 1:
            matches = matches[:-1] if len(matches[-1].claims) == 1 else [*matches[:-1], _shorter(matches[-1])]
        else:
            matches = [_shorter(matches[0])]
        text = write_statements([*opening, *matches[:2]])
    return text


def _shorter(statement: Statement) -> Statement:
    return Statement(statement.step, statement.claims[:-1], statement.item)
