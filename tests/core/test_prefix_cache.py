"""The prefix cache against a model in ten lines; values are freed when they leave it."""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gr2.decoding import PrefixCache

OVERHEAD = 192


class Model:
    """What the cache must do: an ordered dictionary, the oldest use first."""

    def __init__(self, capacity: int) -> None:
        self.capacity, self.entries = capacity, OrderedDict[bytes, tuple[int, int]]()
        self.hits = self.misses = self.evicted = 0

    def find(self, key: bytes) -> int | None:
        if key not in self.entries:
            self.misses += 1
            return None
        self.hits += 1
        self.entries.move_to_end(key)
        return self.entries[key][0]

    def insert(self, key: bytes, value: int, size: int) -> None:
        size += len(key) + OVERHEAD
        if size > self.capacity:
            return
        self.entries.pop(key, None)
        while self.bytes + size > self.capacity:
            self.entries.popitem(last=False)
            self.evicted += 1
        self.entries[key] = (value, size)

    @property
    def bytes(self) -> int:
        return sum(size for _, size in self.entries.values())


@settings(max_examples=200, deadline=None)
@given(
    capacity=st.integers(0, 2000),
    steps=st.lists(st.tuples(st.sampled_from("fi"), st.binary(max_size=2), st.integers(0, 400)), max_size=60),
)
def test_cache_equals_the_model(capacity: int, steps: list[tuple[str, bytes, int]]) -> None:
    cache, model = PrefixCache(capacity), Model(capacity)
    for number, (kind, key, size) in enumerate(steps):
        if kind == "f":
            assert cache.find(key) == model.find(key)
        else:
            cache.insert(key, number, size)
            model.insert(key, number, size)
        counts = cache.counts()
        assert counts == {
            "hits": model.hits,
            "misses": model.misses,
            "evicted": model.evicted,
            "entries": len(model.entries),
            "bytes": model.bytes,
        }
        assert counts["bytes"] <= capacity


class Value:
    """Something that can be referred to weakly."""


def test_values_are_freed_when_they_leave() -> None:
    cache = PrefixCache(2 * (OVERHEAD + 101))
    values = [Value() for _ in range(4)]
    alive = [weakref.ref(value) for value in values]
    for number in range(4):
        cache.insert(bytes([number]), values.pop(0), 100)
    assert [each() is None for each in alive] == [True, True, False, False]
    kept = cache.find(b"\x03")
    cache.clear()
    assert alive[2]() is None
    assert alive[3]() is kept
    del kept
    assert alive[3]() is None


def test_a_value_whose_end_uses_the_cache_does_not_block() -> None:
    class Asking:
        def __del__(self) -> None:
            cache.find(b"a")

    cache = PrefixCache(OVERHEAD + 11)
    cache.insert(b"a", Asking(), 10)
    worker = threading.Thread(target=cache.insert, args=(b"b", 1, 10), daemon=True)
    worker.start()
    worker.join(20)
    assert not worker.is_alive()
    assert cache.find(b"b") == 1


def test_threads_never_get_another_keys_value(in_threads: Callable[..., None]) -> None:
    cache, wrong = PrefixCache(20 * (OVERHEAD + 24)), []

    def work(seed: int) -> None:
        for step in range(4000):
            number = (step * 7919 + seed) % 50
            key = number.to_bytes(8, "little")
            found = cache.find(key)
            if found is None:
                cache.insert(key, number, 16)
            elif found != number:
                wrong.append((number, found))

    in_threads(4, work)
    counts = cache.counts()
    assert not wrong
    assert counts["hits"] + counts["misses"] == 16_000
    assert counts["entries"] <= 20


def test_impossible_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="capacity must not be negative, got -1"):
        PrefixCache(-1)
    with pytest.raises(ValueError, match="size must not be negative, got -1"):
        PrefixCache(10).insert(b"", None, -1)
