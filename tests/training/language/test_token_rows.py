import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gr2.training.language.token_rows import TokenRows


def rows_of(lengths):
    rows = [np.arange(length, dtype=np.int32) + 100 * number for number, length in enumerate(lengths, 1)]
    return rows, TokenRows.of(rows, [np.ones(len(row), dtype=np.bool_) for row in rows])


def test_a_batch_is_padded_at_its_end_and_padding_is_not_learnt():
    _, table = rows_of([3, 2])
    tokens, learnt = table.batch(np.array([1, 0]))
    assert tokens.tolist() == [[200, 201, 0], [100, 101, 102]]
    assert learnt.tolist() == [[False, True, False], [False, True, True]]
    assert table.targets.tolist() == [2, 1]


def test_rows_of_which_nothing_is_learnt_are_left_out():
    rows = [np.arange(3), np.arange(1), np.arange(4)]
    learnt = [np.array([True, False, False]), np.array([True]), np.array([False, False, True, False])]
    table = TokenRows.of(rows, learnt)
    assert len(table) == 1
    assert table.tokens.tolist() == [0, 1, 2, 3]


def test_joined_parts_keep_their_rows():
    first, second = rows_of([3, 2])[1], rows_of([4])[1]
    joined = TokenRows.join([first, TokenRows.of([], []), second])
    assert joined.lengths.tolist() == [3, 2, 4]
    assert joined.batch(np.array([2]))[0].tolist() == second.batch(np.array([0]))[0].tolist()


@given(st.lists(st.integers(2, 40), min_size=1, max_size=60), st.integers(1, 120), st.integers(0, 3))
def test_batches_hold_every_row_once_within_their_tokens(lengths, tokens, seed):
    _, table = rows_of(lengths)
    batches = table.batches(np.arange(len(table)), tokens, np.random.default_rng(seed))
    assert sorted(np.concatenate(batches).tolist()) == list(range(len(table)))
    for rows in batches:
        assert len(rows) == 1 or len(rows) * table.lengths[rows].max() <= tokens


def test_batches_of_similar_lengths_carry_little_padding():
    lengths = np.random.default_rng(0).integers(2, 60, 2000)
    _, table = rows_of(lengths)
    batches = table.batches(np.arange(len(table)), 600, np.random.default_rng(0))
    padded = sum(len(rows) * table.lengths[rows].max() for rows in batches)
    assert padded < 1.1 * lengths.sum()


def test_the_generator_decides_the_order():
    _, table = rows_of([3] * 50)
    first, second = (
        [rows.tolist() for rows in table.batches(np.arange(50), 9, np.random.default_rng(seed))] for seed in (0, 1)
    )
    assert first != second
    assert first == [rows.tolist() for rows in table.batches(np.arange(50), 9, np.random.default_rng(0))]


def test_no_rows_make_no_batch():
    assert TokenRows.of([], []).batches(np.zeros(0, np.int64), 10, np.random.default_rng(0)) == []


@pytest.mark.parametrize("count", [1, 3])
def test_a_row_longer_than_a_batch_comes_alone(count):
    _, table = rows_of([50] * count)
    assert [len(rows) for rows in table.batches(np.arange(count), 10, np.random.default_rng(0))] == [1] * count
