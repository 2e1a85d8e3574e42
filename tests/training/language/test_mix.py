import numpy as np
import pytest

from gr2.training.language.mix import Mix
from gr2.training.language.token_rows import TokenRows


def task(count):
    return TokenRows.of([np.arange(3)] * count, [np.ones(3, np.bool_)] * count)


@pytest.mark.parametrize(("share", "expected"), [(0.25, 10), (1.0, 40), (2.5, 100)])
def test_an_epoch_draws_the_share_of_a_task(share, expected):
    mix = Mix.of({"a": task(10), "b": task(40)}, {"a": 1.0, "b": share})
    drawn = mix.draw(np.random.default_rng(0))
    assert sorted(drawn[drawn < 10].tolist()) == list(range(10))
    _, counts = np.unique(drawn[drawn >= 10], return_counts=True)
    assert counts.sum() == expected
    assert counts.max() - counts.min() <= 1


def test_a_share_of_nothing_leaves_the_task_out():
    mix = Mix.of({"a": task(10), "b": task(40)}, {"a": 0.0, "b": 1.0})
    assert len(mix.rows) == 40
    assert sorted(mix.draw(np.random.default_rng(0)).tolist()) == list(range(40))


def test_epochs_draw_different_parts():
    mix = Mix.of({"a": task(40)}, {"a": 0.5})
    first, second = (set(mix.draw(np.random.default_rng([0, epoch])).tolist()) for epoch in (0, 1))
    assert first != second


def test_no_task_draws_nothing():
    assert len(Mix.of({"a": task(4)}, {"a": 0.0}).draw(np.random.default_rng(0))) == 0
