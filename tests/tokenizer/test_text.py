"""Item texts."""

from __future__ import annotations

from gr2.catalog import Catalog
from gr2.tokenizer.text import item_text, item_texts


def test_all_fields_a_line_each_and_description_last() -> None:
    text = item_text("Rose Soap", "Acme", ["Body", "Soaps"], 4.5, "Smells of roses.")
    assert text.split("\n") == [
        "Rose Soap",
        "Brand: Acme",
        "Category: Body > Soaps",
        "Price: 4.50",
        "Smells of roses.",
    ]


def test_missing_and_blank_fields_are_left_out() -> None:
    assert item_text("Rose Soap", None, [], None, None) == "Rose Soap"
    assert item_text(None, "  ", ["", "Soaps"], None, "") == "Category: Soaps"
    assert item_text(None) == ""


def test_a_price_of_zero_is_a_price() -> None:
    assert item_text("Sample", price=0.0) == "Sample\nPrice: 0.00"


def test_markup_entities_and_white_space_are_removed() -> None:
    text = item_text("Soap &amp; Water\n 2 &lt; 3", description="<p>Mild<br/>and\t clean</p>")
    assert text == "Soap & Water 2 < 3\nMild and clean"


def test_texts_follow_the_catalogue() -> None:
    catalog = Catalog([7, 3], ["A", None], [None, "B"], [[], ["C"]], [None, None], [None, None])
    assert item_texts(catalog) == ["A", "Brand: B\nCategory: C"]
