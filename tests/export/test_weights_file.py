"""The weights: the core computes the student from them, whatever its sizes, with every generation of instructions."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from gr2.decoding import CandidateTrie, CoreStudent, simd_level, simd_levels, use_simd_level
from gr2.export.weights_file import write_weights
from gr2.models.memory import MEMORY
from gr2.models.student import Encoding, Student, StudentConfig, attention_mask

ITEMS, LONGEST = 50, 7
SIZES = [
    {"levels": 4, "level_size": 16, "dim": 64, "heads": 2, "layers": 1},
    {"levels": 3, "level_size": 10, "dim": 20, "heads": 2, "layers": 2},
    {"levels": 2, "level_size": 7, "dim": 6, "heads": 3, "layers": 3},
    {"levels": 1, "level_size": 40, "dim": 16, "heads": 1, "layers": 1},
]


@pytest.fixture(params=simd_levels())
def level(request: pytest.FixtureRequest) -> Iterator[str]:
    before = simd_level()
    use_simd_level(request.param)
    yield request.param
    use_simd_level(before)


def make_student(sizes: dict[str, int], spread: float = 0.3, encoding: Encoding = "item") -> Student:
    torch.manual_seed(0)
    own = {"items": ITEMS, "features": 4 + len(MEMORY), "max_history": LONGEST, "prior_hidden": 5}
    config = StudentConfig(**own, **sizes, encoding=encoding)
    student = Student(config).eval()
    for parameter in student.parameters():
        torch.nn.init.normal_(parameter, std=spread)
    student.weights.copy_(torch.tensor([1.7, 0.6]))
    return student


def by_torch(student: Student, past: np.ndarray, rows: np.ndarray, trie: CandidateTrie, own: tuple) -> tuple:
    """Logits and prior of a request whose items all have a row."""
    codes, own_rows, features, memory = own
    nodes = [torch.from_numpy(trie.nodes(depth))[None] for depth in range(1, trie.levels)]
    tree, tokens = torch.from_numpy(trie.mask())[None], student.config.tokens
    mask = attention_mask(torch.tensor([len(past)]), len(past), tree, tokens=tokens)
    history = torch.from_numpy(past.astype(np.int64))[None]
    logits = student(history, nodes, mask)[0]
    query = student.head.query(torch.from_numpy(rows)[None], history, torch.tensor([len(past)]))
    head = student.head(query, torch.from_numpy(own_rows)[None], torch.from_numpy(codes.astype(np.int64))[None])[0]
    prior = student.prior(torch.from_numpy(np.concatenate([features, memory], 1)))
    first, second = student.weights
    return logits.numpy(), (first * prior + second * head).numpy()


def by_core(core: CoreStudent, past: np.ndarray, rows: np.ndarray, trie: CandidateTrie, own: tuple) -> tuple:
    return core.score(core.encode(past, rows), trie, *own)


def draw(student: Student, events: int, count: int) -> tuple:
    config, rng = student.config, np.random.default_rng(events + 10 * count)
    past, codes = (
        rng.integers(0, config.level_size, (size, config.levels)).astype(np.uint16) for size in (events, count)
    )
    features, memory = (rng.normal(size=(count, width)).astype(np.float32) for width in (4, len(MEMORY)))
    trie = CandidateTrie(codes, np.ones(count, dtype=np.bool_), config.level_size)
    rows, own = rng.integers(0, ITEMS, events), rng.integers(0, ITEMS, count)
    return past, rows, trie, (codes, own, features, memory)


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("encoding", ["item", "code"])
@torch.no_grad()
def test_the_core_computes_the_student(sizes: dict[str, int], encoding: Encoding, level: str, tmp_path: Path) -> None:
    student = make_student(sizes, encoding=encoding)
    write_weights(tmp_path / "weights.bin", student)
    core = CoreStudent(tmp_path / "weights.bin", "fp32", encoding)
    for events, count in [(0, 1), (1, 2), (LONGEST, 1), (LONGEST, 17), (3, 120)]:
        request = draw(student, events, count)
        for found, expected in zip(by_core(core, *request), by_torch(student, *request), strict=True):
            assert found.shape == expected.shape
            np.testing.assert_allclose(found, expected, atol=2e-4, rtol=2e-5)


@torch.no_grad()
def test_rounded_weights_are_close_and_others(level: str, tmp_path: Path) -> None:
    student = make_student(SIZES[0], spread=0.1)
    write_weights(tmp_path / "weights.bin", student)
    exact, rounded = (CoreStudent(tmp_path / "weights.bin", arithmetic) for arithmetic in ("fp32", "int8"))
    request = draw(student, 5, 30)
    (logits, prior), (near, same) = by_core(exact, *request), by_core(rounded, *request)
    np.testing.assert_allclose(same, prior, rtol=1e-6)
    assert 0 < np.abs(near - logits).max() < 0.05 * np.abs(logits).max()


def test_an_item_without_a_row_is_known_by_its_codes(tmp_path: Path) -> None:
    student = make_student(SIZES[0])
    write_weights(tmp_path / "known.bin", student)
    past, rows, trie, (codes, own, *rest) = draw(student, 4, 6)
    none = [np.full_like(each, ITEMS) for each in (rows, own)]
    found = by_core(CoreStudent(tmp_path / "known.bin"), past, none[0], trie, (codes, none[1], *rest))
    torch.nn.init.zeros_(student.head.memory.weight)
    write_weights(tmp_path / "zero.bin", student)
    expected = by_core(CoreStudent(tmp_path / "zero.bin"), past, rows, trie, (codes, own, *rest))
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)


def test_equal_students_give_equal_bytes(tmp_path: Path) -> None:
    for name in ("first", "second"):
        write_weights(tmp_path / name, make_student(SIZES[1]))
    assert (tmp_path / "first").read_bytes() == (tmp_path / "second").read_bytes()


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.bin"
    write_weights(path, make_student(SIZES[1]))
    whole = path.read_bytes()
    for data, reason in [
        (whole[:40], "too short"),
        (whole[:-4], "too short"),
        (whole + bytes(64), "too long"),
        (b"GR2MEMOR" + whole[8:], "not a weights file"),
        (whole[:12] + bytes(4) + whole[16:], "out of range"),
    ]:
        path.write_bytes(data)
        with pytest.raises(ValueError, match=reason):
            CoreStudent(path)
    with pytest.raises(OSError, match="No such file"):
        CoreStudent(tmp_path / "none")


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    student = make_student(SIZES[0])
    write_weights(tmp_path / "weights.bin", student)
    core = CoreStudent(tmp_path / "weights.bin")
    past, rows, trie, own = draw(student, 4, 6)
    with pytest.raises(ValueError, match="below 16, got 16"):
        core.encode(np.full_like(past, 16), rows)
    with pytest.raises(ValueError, match="at most 7 items"):
        core.encode(np.zeros((8, 4), dtype=np.uint16), np.zeros(8, dtype=np.int64))
    other = make_student(SIZES[1])
    write_weights(tmp_path / "other.bin", other)
    theirs = CoreStudent(tmp_path / "other.bin").encode(*draw(other, 2, 2)[:2])
    with pytest.raises(ValueError, match="another student"):
        core.score(theirs, trie, *own)
    with pytest.raises(ValueError, match="'fp32' or 'int8'"):
        CoreStudent(tmp_path / "weights.bin", "fp16")
    with pytest.raises(ValueError, match="'item' or 'code'"):
        CoreStudent(tmp_path / "weights.bin", encoding="word")
