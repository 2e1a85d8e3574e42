"""The lines of a `make show-NAME`: stored figures first, then what runs now, one line each, with their tables."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping

from benchmarks.results import Figure, Record, changed_since, details, load, store

__all__ = ["show"]


def show(
    name: str,
    title: str,
    *,
    stored: Mapping[str, str],
    measures: Iterable[tuple[str, Callable[[], Record]]],
    source: str = "",
) -> None:
    """Print the figures and tables of the `stored` records (record to make target) and of the `measures`, and exit.

    A measure is what it makes and how; its record is stored under its own name. One whose libraries are missing is
    not measured. Stored figures are said to be of an older `source`, a path, if that has changed since their commit.
    The exit code is 1 if a figure is short.
    """
    number, short = 0, False

    def line(figure: Figure, origin: str) -> None:
        nonlocal number, short
        number += 1
        short |= figure.status == "short"
        text = f'SHOW {name}.{number} {figure.what} value="{figure.value}" bar="{figure.bar}" {figure.status}{origin}'
        print(text, flush=True)

    for record_name, target in stored.items():
        record = load(record_name)
        if record is None:
            line(Figure(f"{title}: {record_name}", f"run {target}", "measured", "not-measured"), "")
            continue
        older = f" of an older {source}" if source and changed_since(record.commit, source) else ""
        for figure in record.figures:
            line(figure, f" stored commit={record.commit} date={record.date}{older}")
        print("\n".join(details(record)), flush=True)
    for what, measure in measures:
        try:
            record = measure()
        except ImportError as error:
            line(Figure(what, f"{error}; pip install '.[bench]'", "measured", "not-measured"), "")
            continue
        store(record)
        for figure in record.figures:
            line(figure, "")
        print("\n".join(details(record)), flush=True)
    sys.exit(short)
