"""Pages to read: one file each, from a template of this package."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import resources
from typing import Any

from gr2.errors import MissingExtraError
from gr2.interrupts import interrupts_wait

__all__ = ["render_page"]

# No page shows them, and a terminal obeys them.
CONTROLS = {code: " " for code in (*range(32), *range(127, 160)) if chr(code) not in "\t\n"}


def render_page(
    package: str, template: str, filters: Mapping[str, Callable[[Any], str]], values: Mapping[str, Any], *, title: int
) -> bytes:
    """The template of that package with these values, UTF-8; all text is escaped, without control characters.

    Beside `filters` it has `count`, a number with commas, and `short`, a text cut to `title` characters. Raises
    MissingExtraError without jinja2.
    """
    try:
        with interrupts_wait():
            import jinja2
    except ImportError as error:
        raise MissingExtraError("the page of the report", "train", error) from error
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "count": "{:,}".format,
        "short": lambda text: text if len(text) <= title else text[: title - 1] + "…",
        **filters,
    }
    text = (resources.files(package) / template).read_text(encoding="utf-8")
    # A folder's name may hold bytes that are no text.
    return environment.from_string(text).render(values).translate(CONTROLS).encode(errors="replace")
