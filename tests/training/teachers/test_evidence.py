"""The evidence teacher: what it ranks by, what it says, and that it says nothing else."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from gr2.artifact import Artifact
from gr2.data.candidates import CandidateLists
from gr2.data.dataset import Dataset
from gr2.metrics import rank_of_target
from gr2.models.evidence import CrossFit, evidence_folds
from gr2.prompts.answer import Answer, parse_answer
from gr2.training.teachers.claims import read_statements
from gr2.training.teachers.evidence import LEAST_SHARE, EvidenceTeacher, count_tokens
from gr2.training.teachers.ledger import Ledger
from gr2.training.teachers.scores import KINDS, score_new_lists, score_training_lists
from gr2.training.teachers.teacher import Reply, TeacherRequest

FIT = CrossFit(neighbours=16, longest=20, folds=3, seed=0)


@pytest.fixture(scope="module")
def teacher(tiny_run: Path) -> EvidenceTeacher:
    dataset = Dataset.load(tiny_run / "prepare")
    codes = Artifact.load(tiny_run / "tokenize").array("codes.npy")
    lists = CandidateLists.load(tiny_run / "prerank" / "train.parquet").top(10).with_target()
    evidence = score_training_lists(dataset, codes, lists, FIT)
    fold = evidence_folds(dataset.users, 3, 0)
    return EvidenceTeacher(Ledger(dataset, codes, shown=12), lists, evidence, fold, 1.0, 0)


def ask(teacher: EvidenceTeacher, rows: range, *, attempt: int = 0, targeted: bool = False) -> dict[int, Reply]:
    label, position = teacher.lists.label(), teacher.lists.position
    requests = [
        TeacherRequest(row, attempt, (), min(int(position[row]), 8), int(label[row]) if targeted else None)
        for row in rows
    ]
    return {request.row: reply for request, reply in teacher.answer(requests)}


def read(teacher: EvidenceTeacher, row: int, reply: Reply) -> Answer:
    items = teacher.case(row, 1).candidates
    return parse_answer(reply.text or "", [teacher.ledger.codes[item] for item in items], level_size=8)


@pytest.mark.parametrize("targeted", [False, True])
def test_no_trace_cites_what_the_data_does_not_hold(teacher: EvidenceTeacher, targeted: bool) -> None:
    replies = ask(teacher, range(len(teacher.lists)), targeted=targeted)
    told = {row: reply for row, reply in replies.items() if reply.text is not None}
    assert len(told) > 0.5 * len(replies)
    for row, reply in told.items():
        shown = min(int(teacher.lists.position[row]), 8)
        assert teacher.holds(row, read(teacher, row, reply).explanation, shown)


def test_a_trace_cites_only_what_lifted_the_item(teacher: EvidenceTeacher) -> None:
    column_of = {codes: item for item, codes in enumerate(teacher.ledger.codes)}
    cited = 0
    for row, reply in ask(teacher, range(len(teacher.lists))).items():
        if reply.text is None:
            assert reply.reason == "no-evidence"
            continue
        case = teacher.case(row, 1)
        for statement in read_statements(read(teacher, row, reply).explanation):
            if statement.item is not None:
                column = case.candidates.index(column_of[statement.item])
                for claim in statement.claims:
                    assert teacher.evidence.shares[row, column, KINDS.index(claim.kind)] >= LEAST_SHARE
                    cited += 1
    assert cited > 100


def test_explanations_have_the_three_steps_and_a_bounded_length(teacher: EvidenceTeacher) -> None:
    for row, reply in ask(teacher, range(len(teacher.lists))).items():
        if reply.text is not None:
            explanation = read(teacher, row, reply).explanation
            steps = [statement.step for statement in read_statements(explanation)]
            assert steps[0] == "Pattern"
            assert steps[1:3] == ["Goes with it", "Match"]
            assert count_tokens(explanation) <= 118


def test_shown_the_target_comes_first_and_hidden_it_depends_on_the_draw(teacher: EvidenceTeacher) -> None:
    rows = range(100)
    label = teacher.lists.label()
    for row, reply in ask(teacher, rows, targeted=True).items():
        if reply.text is not None:
            assert read(teacher, row, reply).ranking[0] == label[row]
    first, second = ({row: reply.text for row, reply in ask(teacher, rows, attempt=n).items()} for n in (0, 1))
    assert first != second
    assert first == {row: reply.text for row, reply in ask(teacher, rows).items()}
    alone = {row: ask(teacher, range(row, row + 1))[row].text for row in rows}
    assert alone == first


def test_the_first_item_is_drawn_from_the_softmax_of_the_scores(teacher: EvidenceTeacher) -> None:
    scores = teacher.evidence.scores[0, : len(teacher.case(0, 1).candidates)].astype(float)
    share = np.exp(scores - scores.max()) / np.exp(scores - scores.max()).sum()
    plain = replace(teacher, reasoning=False)
    drawn = np.zeros(len(share))
    for attempt in range(2000):
        text = ask(plain, range(1), attempt=attempt)[0].text or ""
        items = [teacher.ledger.codes[item] for item in teacher.case(0, 1).candidates]
        drawn[parse_answer(text, items, level_size=8, reasoning=False).ranking[0]] += 1
    np.testing.assert_allclose(drawn / 2000, share, atol=0.05)


def test_shares_sum_to_the_scores(teacher: EvidenceTeacher) -> None:
    valid = teacher.lists.candidates >= 0
    np.testing.assert_allclose(
        teacher.evidence.shares.sum(-1)[valid], teacher.evidence.scores[valid], rtol=1e-4, atol=1e-4
    )
    assert (teacher.evidence.scores[~valid] == -np.inf).all()


def test_it_ranks_better_than_the_incoming_order_by_co_purchases(tiny_parents: dict[str, Artifact]) -> None:
    dataset = Dataset.load(tiny_parents["prepare"].path)
    codes = tiny_parents["tokenize"].array("codes.npy")
    train, test = (CandidateLists.load(tiny_parents["prerank"].file(f"{split}.parquet")) for split in ("train", "test"))
    for lists, found in (
        (train, score_training_lists(dataset, codes, train, FIT)),
        (test, score_new_lists(dataset, codes, train, test, FIT)),
    ):
        ranks = rank_of_target(found.scores, lists.label())
        assert (ranks == 1).mean() > 0.9 > 0.3 > (lists.label() == 0).mean()


def test_where_nothing_can_be_learnt_the_answer_is_not_known(tiny_parents: dict[str, Artifact]) -> None:
    """Everyone buys at random. Counts that held a user's own events would know each target, since others lack them."""
    dataset = Dataset.load(tiny_parents["prepare"].path)
    codes = tiny_parents["tokenize"].array("codes.npy")
    rng = np.random.default_rng(0)
    items = np.concatenate([rng.permutation(60)[:length] for length in dataset.lengths.tolist()]).astype(np.int32)
    random = replace(dataset, items=items)
    user = np.repeat(np.arange(dataset.users), dataset.lengths - 3).astype(np.int32)
    position = np.concatenate([np.arange(1, length - 2) for length in dataset.lengths.tolist()]).astype(np.int32)
    target = items[dataset.offsets[user] + position]
    others = [[item for item in rng.permutation(60) if item not in random.events(one)][:7] for one in user.tolist()]
    slates = np.array([rng.permutation([item, *rest]) for item, rest in zip(target, others, strict=True)], np.int32)
    scores = np.tile(np.arange(8, 0, -1).astype(np.float32), (len(user), 1))
    lists = CandidateLists(user, position, target, slates, scores)
    found = score_training_lists(random, codes, lists, FIT)
    assert (rank_of_target(found.scores, lists.label()) == 1).mean() < 0.2


def test_a_false_explanation_is_not_held(teacher: EvidenceTeacher) -> None:
    row, reply = next((row, reply) for row, reply in ask(teacher, range(50)).items() if reply.text is not None)
    shown = min(int(teacher.lists.position[row]), 8)
    explanation = read(teacher, row, reply).explanation
    assert teacher.holds(row, explanation, shown)
    assert not teacher.holds(row, explanation + " It is the best.", shown)
    assert not teacher.holds(
        row, explanation.replace("Match", "Then").replace("purchases are", "purchases were"), shown
    )
    assert not teacher.holds(row + 1, explanation, shown)
