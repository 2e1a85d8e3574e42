"""The picture of a load test where there is nothing to draw."""

from __future__ import annotations

from matplotlib.figure import Figure

from gr2.load.picture import NOTHING, _spread, load_picture


def test_a_picture_of_nothing_says_so() -> None:
    axes = Figure().subplots()
    _spread(axes, [])
    assert [each.get_text() for each in axes.texts] == [NOTHING]
    assert load_picture([]).startswith(b"\x89PNG")
