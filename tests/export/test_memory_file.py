"""The memory's file: what the core looks up in it is what training computed, and nothing else passes for one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gr2.decoding import ItemMemory as MappedMemory
from gr2.export.memory_file import write_memory
from gr2.models.evidence import CoPurchase
from gr2.models.memory import MEMORY, ItemMemory, memory_columns
from gr2.models.pairs import Neighbours


def neighbours(rng: np.random.Generator, items: int, width: int) -> Neighbours:
    near = np.stack([rng.permutation(max(items, width))[:width] for _ in range(items)]).astype(np.int32)
    near[(near >= items) | (rng.random(near.shape) < 0.3)] = -1
    return Neighbours(near, rng.integers(0, 9, near.shape).astype(np.float32))


def make_memory(items: int, seed: int, width: int = 4) -> tuple[ItemMemory, np.ndarray]:
    rng = np.random.default_rng(seed)
    together = neighbours(rng, items, width)
    copurchase = CoPurchase(together.items, together.weights, rng.integers(0, 50, items).astype(np.float32))
    vectors = [rng.normal(size=(items, size)).astype(np.float32) for size in (5, 37)]
    memory = ItemMemory(copurchase, neighbours(rng, items, 3), neighbours(rng, items, 2), *vectors)
    codes = np.array(list(np.ndindex(4, 4, 4)), dtype=np.uint16)
    return memory, rng.permutation(codes)[:items]


@settings(max_examples=60, deadline=None)
@given(items=st.integers(1, 40), length=st.integers(0, 9), count=st.integers(0, 12), seed=st.integers(0, 99))
def test_columns_are_those_of_training(
    tmp_path_factory: pytest.TempPathFactory, items: int, length: int, count: int, seed: int
) -> None:
    memory, codes = make_memory(items, seed)
    path = tmp_path_factory.mktemp("memory") / "memory.bin"
    write_memory(path, memory, codes)
    mapped, rng = MappedMemory(path), np.random.default_rng(seed)
    past, own = rng.integers(0, items, length), rng.integers(0, items, count)
    found = mapped.columns(past, codes[past], own, codes[own])
    expected = memory_columns(memory, codes, past[None], np.array([length]), own[None])[0]
    assert found.shape == (count, len(MEMORY))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(mapped.find(codes), np.arange(items))


def test_items_that_are_not_known_have_what_their_codes_say(tmp_path: Path) -> None:
    memory, codes = make_memory(30, 0)
    write_memory(tmp_path / "memory.bin", memory, codes[:29])
    with pytest.raises(ValueError, match=r"memory\.bin: "):
        MappedMemory(tmp_path / "memory.bin")
    write_memory(tmp_path / "memory.bin", memory, codes)
    mapped = MappedMemory(tmp_path / "memory.bin")
    held = {tuple(path) for path in codes.tolist()}
    other = np.array([path for path in np.ndindex(4, 4, 4) if path not in held], dtype=np.uint16)
    assert mapped.find(other).tolist() == [30] * len(other)
    past, rows = np.array([3, 30]), np.array([30])
    columns = mapped.columns(past, np.stack([codes[3], other[0]]), rows, other[:1])[0]
    names = dict(zip(MEMORY, columns.tolist(), strict=True))
    assert names["prefix_last"] == 1
    assert {name for name, value in names.items() if value} == {"prefix_mean", "prefix_max", "prefix_last"}


def test_damaged_files_and_wrong_rows_are_refused(tmp_path: Path) -> None:
    memory, codes = make_memory(20, 1)
    path = tmp_path / "memory.bin"
    write_memory(path, memory, codes)
    data = path.read_bytes()
    mapped = MappedMemory(path)
    with pytest.raises(ValueError, match="own must be 0 to 20, got 21"):
        mapped.columns(np.zeros(0, np.int64), codes[:0], np.array([21]), codes[:1])
    with pytest.raises(ValueError, match="codes must have 3 levels"):
        mapped.find(codes[:, :2].copy())
    for bad in (b"", data[:40], data[:-1], data + b"\0", b"GR2CODES" + data[8:], data[:8] + b"\2" + data[9:]):
        path.with_name("bad.bin").write_bytes(bad)
        with pytest.raises(ValueError, match=r"bad\.bin: not a"):
            MappedMemory(path.with_name("bad.bin"))
    with pytest.raises(FileNotFoundError):
        MappedMemory(tmp_path / "absent")


def test_equal_memories_give_equal_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_memory(tmp_path / name, *make_memory(20, 2))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
