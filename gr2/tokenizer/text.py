"""What an item says of itself, as one text for the embedding model."""

from __future__ import annotations

import html
import re

from gr2.catalog import Catalog

__all__ = ["item_text", "item_texts"]

TAG = re.compile(r"</?[a-zA-Z][^<>]*>")


def item_texts(catalog: Catalog) -> list[str]:
    """One text an item, in catalogue order; empty where nothing but the ID is known."""
    columns = (catalog.title, catalog.brand, catalog.categories, catalog.price, catalog.description)
    return [item_text(*fields) for fields in zip(*columns, strict=True)]


def item_text(
    title: str | None,
    brand: str | None = None,
    categories: list[str] | None = None,
    price: float | None = None,
    description: str | None = None,
) -> str:
    """The text of one item, a line a field; fields that are missing or blank are left out.

    The description comes last because the embedding model cuts long texts at the end.
    """
    path = " > ".join(filter(None, map(_plain, categories or [])))
    lines = [
        _plain(title),
        _labelled("Brand", _plain(brand)),
        _labelled("Category", path),
        _labelled("Price", "" if price is None else f"{price:.2f}"),
        _plain(description),
    ]
    return "\n".join(filter(None, lines))


def _labelled(name: str, value: str) -> str:
    return f"{name}: {value}" if value else ""


def _plain(value: str | None) -> str:
    """`value` without HTML entities, HTML tags and repeated white space, which catalogues often carry."""
    return " ".join(TAG.sub(" ", html.unescape(value or "")).split())
