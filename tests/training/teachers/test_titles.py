"""Titles that a text cites are those of items that were shown, and of the items whose IDs they stand behind."""

from __future__ import annotations

import pytest

from gr2.catalog import Catalog
from gr2.prompts.semantic_id import sid_text
from gr2.training.teachers.titles import Titles

TITLES = (
    "OPI Nail Lacquer, Big Apple Red",
    "Crème de la Mer Soufflé",
    "Dove Nourishing Body Wash for Dry Skin",
    "Shampoo",
    None,
    "Dove Nourishing Body Wash",
)
IDS = [sid_text((item, 1, 2)) for item in range(len(TITLES))]


@pytest.fixture
def titles() -> Titles:
    nothing = [None] * len(TITLES)
    return Titles(
        Catalog(list(range(len(TITLES))), list(TITLES), [*nothing], [[] for _ in TITLES], [*nothing], [*nothing])
    )


def shown(*items: int) -> dict[str, int]:
    return {IDS[item]: item for item in items}


@pytest.mark.parametrize(
    "text",
    [
        "Match: OPI Nail Lacquer, Big Apple Red goes with it.",
        f"Match {IDS[0]}: opi nail lacquer - big apple red",
        "The soufflé of crème de la mer",  # in another order it is no title
        "A shampoo, a nail lacquer and a body wash",
        "",
    ],
)
def test_what_was_shown_may_be_cited(titles: Titles, text: str) -> None:
    assert titles.untrue(text, shown(0, 3, 4)) is None


def test_a_title_that_was_not_shown_is_found_in_any_spelling(titles: Titles) -> None:
    why = titles.untrue("They had “CRÈME de la mer: soufflé” before.", shown(0, 3, 4))
    assert why == "unknown-title: 'crème de la mer soufflé' is of no item in the history or among the candidates"


def test_part_of_a_shown_title_is_no_other_items_title(titles: Titles) -> None:
    assert titles.untrue("Dove Nourishing Body Wash, again", shown(2)) is None
    assert titles.untrue("Dove Nourishing Body Wash for Dry Skin", shown(5)) is not None


def test_a_title_behind_an_id_is_that_items(titles: Titles) -> None:
    assert titles.untrue(f"{IDS[2]} (Dove Nourishing Body Wash for Dry Skin)", shown(0, 2)) is None
    assert titles.untrue(f"{IDS[2]}: Dove Nourishing Body Wash", shown(2, 5)) is None
    why = titles.untrue(f'{IDS[0]} "Dove Nourishing Body Wash for Dry Skin"', shown(0, 2))
    assert why == f"wrong-title: 'dove nourishing body wash for dry skin' is not the title of {IDS[0]}"
    assert titles.untrue(f"{IDS[0]} and then Dove Nourishing Body Wash for Dry Skin", shown(0, 2)) is None
