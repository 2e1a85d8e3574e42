"""The student: one pass over the trie gives what separate passes give, and nothing leaks through the mask."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from gr2.models.slate import build_tries
from gr2.models.student import Student, StudentConfig, attention_mask

LEVELS, SIZE = 4, 6


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def make_student(**options: object) -> Student:
    torch.manual_seed(0)
    settings = {
        "items": 9,
        "features": 3,
        "levels": LEVELS,
        "level_size": SIZE,
        "dim": 16,
        "max_history": 8,
        "dropout": 0.3,
        **options,
    }
    student = Student(StudentConfig(**settings)).eval()  # type: ignore[arg-type]
    for parameter in student.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return student


def tree_scores(student: Student, history: NDArray[np.int64], candidates: NDArray[np.int64]) -> torch.Tensor:
    """(K,) log p(path) of the candidates (K, L) in one pass, without padding."""
    tries = build_tries(candidates[None], SIZE)
    lengths = torch.tensor([len(history)])
    mask = attention_mask(lengths, len(history), torch.from_numpy(tries.mask), tokens=student.config.tokens)
    with torch.no_grad():
        logits = student(torch.from_numpy(history[None]), [torch.from_numpy(x) for x in tries.nodes], mask)
    logp = logits[0].log_softmax(-1)
    return torch.stack(
        [
            sum((logp[tries.path[0, k, d], candidates[k, d]] for d in range(LEVELS)), torch.zeros(()))
            for k in range(len(candidates))
        ]
    )


def teacher_forced(student: Student, history: NDArray[np.int64], codes: NDArray[np.int64]) -> float:
    """log p(path) of one candidate from a plain causal pass over begin token, history, root and its own prefix."""
    length = 1 + len(history) * student.config.tokens + LEVELS
    causal = torch.full((1, length, length), -torch.inf).triu(1)
    prefix = [torch.tensor([[int(code)]]) for code in codes[:-1]]
    with torch.no_grad():
        logits = student(torch.from_numpy(history[None]), prefix, causal)[0]
    return float(sum(logits[depth].log_softmax(-1)[codes[depth]] for depth in range(LEVELS)))


@pytest.mark.parametrize("length", [0, 1, 8])
@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("encoding", ["item", "code"])
def test_one_tree_pass_equals_separate_teacher_forced_passes(length: int, layers: int, encoding: str) -> None:
    rng = np.random.default_rng(length)
    student = make_student(layers=layers, encoding=encoding)
    history, candidates = rng.integers(0, SIZE, (length, LEVELS)), rng.integers(0, SIZE, (9, LEVELS))
    expected = [teacher_forced(student, history, codes) for codes in candidates]
    np.testing.assert_allclose(tree_scores(student, history, candidates), expected, atol=1e-5)


def test_candidate_order_and_company_do_not_change_scores() -> None:
    rng = np.random.default_rng(3)
    student = make_student()
    history, candidates = rng.integers(0, SIZE, (5, LEVELS)), rng.integers(0, SIZE, (12, LEVELS))
    scores = tree_scores(student, history, candidates)
    order = rng.permutation(12)
    np.testing.assert_allclose(tree_scores(student, history, candidates[order]), scores[order], atol=1e-5)
    np.testing.assert_allclose(tree_scores(student, history, candidates[:4]), scores[:4], atol=1e-5)


def test_history_is_causal() -> None:
    rng = np.random.default_rng(4)
    student = make_student()
    history = torch.from_numpy(rng.integers(0, SIZE, (1, 6, LEVELS)))
    changed = history.clone()
    changed[0, -1] = (changed[0, -1] + 1) % SIZE
    nodes = [torch.zeros(1, 0, dtype=torch.int64)] * (LEVELS - 1)
    mask = attention_mask(torch.tensor([6]), 6, torch.zeros(1, 1, 1))
    with torch.no_grad():
        first = student.blocks[0](student.embed(history, nodes), mask[:, None])
        second = student.blocks[0](student.embed(changed, nodes), mask[:, None])
    np.testing.assert_array_equal(first[0, :6], second[0, :6])
    assert not np.allclose(first[0, 6:], second[0, 6:])


def test_a_code_sees_the_codes_before_it() -> None:
    rng = np.random.default_rng(4)
    student = make_student(encoding="code")
    history = torch.from_numpy(rng.integers(0, SIZE, (1, 6, LEVELS)))
    changed = history.clone()
    changed[0, 2, 1] = (changed[0, 2, 1] + 1) % SIZE
    nodes = [torch.zeros(1, 0, dtype=torch.int64)] * (LEVELS - 1)
    mask = attention_mask(torch.tensor([6]), 6, torch.zeros(1, 1, 1), tokens=LEVELS)
    with torch.no_grad():
        first, second = (student.blocks[0](student.embed(each, nodes), mask[:, None]) for each in (history, changed))
    place = 1 + 2 * LEVELS + 1
    assert first.shape[1] == 1 + 6 * LEVELS + 1
    np.testing.assert_array_equal(first[0, :place], second[0, :place])
    assert (first[0, place:] != second[0, place:]).any(-1).all()


def test_both_encodings_have_the_same_weights() -> None:
    first, second = (make_student(encoding=encoding).state_dict() for encoding in ("item", "code"))
    assert {name: value.shape for name, value in first.items()} == {name: value.shape for name, value in second.items()}


@pytest.mark.parametrize("encoding", ["item", "code"])
def test_padding_of_nodes_and_history_changes_no_path(encoding: str) -> None:
    rng = np.random.default_rng(5)
    student = make_student(encoding=encoding)
    short, long = rng.integers(0, SIZE, (2, LEVELS)), rng.integers(0, SIZE, (7, LEVELS))
    few, many = np.repeat(rng.integers(0, SIZE, (1, LEVELS)), 6, 0), rng.integers(0, SIZE, (6, LEVELS))
    padded = np.zeros((2, 7, LEVELS), dtype=np.int64)
    padded[0, 5:], padded[1] = short, long
    tries = build_tries(np.stack([few, many]), SIZE)
    nodes = [torch.from_numpy(x) for x in tries.nodes]
    mask = attention_mask(torch.tensor([2, 7]), 7, torch.from_numpy(tries.mask), tokens=student.config.tokens)
    with torch.no_grad():
        logp = student(torch.from_numpy(padded), nodes, mask).log_softmax(-1)
    score = sum(logp[0, tries.path[0, 0, d], few[0, d]] for d in range(LEVELS))
    np.testing.assert_allclose(score, tree_scores(student, short, few[:1])[0], atol=1e-5)


def test_head_pools_only_the_history_and_weighs_recency() -> None:
    rng = np.random.default_rng(8)
    head = make_student().head
    items, codes = torch.from_numpy(rng.integers(0, 9, (1, 5))), torch.from_numpy(rng.integers(0, SIZE, (1, 5, LEVELS)))
    with torch.no_grad():
        short = head.query(items[:, 3:], codes[:, 3:], torch.tensor([2]))
        padded = head.query(items, codes, torch.tensor([2]))
        whole = head.query(items, codes, torch.tensor([5]))
        swapped = head.query(items.flip(1), codes.flip(1), torch.tensor([5]))
    np.testing.assert_allclose(padded, short, atol=1e-6)
    assert not torch.allclose(whole, short)
    assert not torch.allclose(whole, swapped)


def test_untrained_student_keeps_the_order_of_the_scores() -> None:
    torch.manual_seed(1)
    student = Student(StudentConfig(items=9, features=3, level_size=SIZE, dim=16)).eval()
    rng = np.random.default_rng(6)
    history, candidates = rng.integers(0, SIZE, (3, LEVELS)), rng.integers(0, SIZE, (10, LEVELS))
    rank = np.arange(10, dtype=np.float32)
    features = np.stack([np.ones(10), 1 / (1 + rank), np.log2(1 + rank)], 1).astype(np.float32)
    with torch.no_grad():
        prior = student.prior(torch.from_numpy(features))
    total = tree_scores(student, history, candidates) + prior
    assert torch.argsort(-total, stable=True).tolist() == list(range(10))


def test_prior_without_scores_is_the_same_for_all() -> None:
    student = make_student()
    with torch.no_grad():
        prior = student.prior(torch.zeros(5, 3))
    np.testing.assert_allclose(prior, prior[:1].expand(5), rtol=1e-6)


@pytest.mark.parametrize(
    "bad",
    [
        {"dim": 15},
        {"levels": 0},
        {"dropout": 1.0},
        {"items": 0},
        {"layers": 0},
        {"max_history": 4097},
        {"max_history": 1025, "encoding": "code"},
    ],
)
def test_impossible_sizes_are_refused(bad: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(bad))):
        StudentConfig(**{"items": 1, "features": 3, **bad})  # type: ignore[arg-type]
