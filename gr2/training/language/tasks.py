"""What mid-training learns from: users' items in order, items in words, users in words, and general text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gr2.catalog import Catalog
from gr2.data.dataset import Dataset
from gr2.errors import DataError
from gr2.models.reasoner import Reasoner
from gr2.prompts.render import PromptConfig, Slate, clean, render
from gr2.prompts.semantic_id import sid_text
from gr2.training.language.token_rows import TokenRows

__all__ = [
    "TASKS",
    "caption_texts",
    "general_texts",
    "persona_texts",
    "sequential_rows",
    "task_texts",
    "text_rows",
    "tokenizer_texts",
    "words_of",
]

TASKS = ("sequential", "caption", "persona", "general")
# The prompts' fixed text counts as this many lines when a tokenizer is trained: every request pays for its tokens.
PROMPT_WEIGHT = 500
TITLE_WORDS, PERSONA_EVENTS, TASTES = 24, 10, 3


def sequential_rows(
    reasoner: Reasoner, dataset: Dataset, codes: NDArray[np.uint16], *, holdout: int, max_history: int
) -> TokenRows:
    """Every user's training events but the last `holdout`, as semantic IDs; the codes are learnt, not their markers.

    A user with more than `max_history` + 1 events has several rows, in which every event is learnt once.
    """
    items = reasoner.item_tokens(codes)
    width = items.shape[1]
    code = np.ones(width, dtype=np.bool_)
    code[[0, -1]] = False
    rows, learnt = [], []
    for user in range(dataset.users):
        end = dataset.train_length(user) - holdout
        while end > 0:
            first = max(0, end - max_history - 1)
            events = dataset.events(user)[first:end]
            rows.append(items[events].reshape(-1))
            mask = np.tile(code, len(events))
            # What a neighbouring row learns as its last is only context here.
            mask[:width] &= first == 0
            learnt.append(mask)
            end = first + 1 if first else 0
    return TokenRows.of(rows, learnt)


def task_texts(
    dataset: Dataset, codes: NDArray[np.uint16], corpus: Sequence[str], *, holdout: int
) -> dict[str, list[str]]:
    """The texts of every task but the sequential one."""
    return {
        "caption": list(caption_texts(dataset.catalog, codes)),
        "persona": list(persona_texts(dataset, codes, holdout=holdout)),
        "general": list(general_texts(map(Path, corpus))),
    }


def tokenizer_texts(catalog: Catalog, general: Iterable[str]) -> Iterator[str]:
    """What a tokenizer from scratch is trained on: the items' words, the prompts' fixed text, and general text."""
    yield from (words_of(catalog, item) for item in range(len(catalog)))
    empty = Slate((), ())
    for reasoning in (True, False):
        messages = render(empty, PromptConfig(reasoning=reasoning)).messages
        yield from ["\n".join(message["content"] for message in messages)] * PROMPT_WEIGHT
    yield from general


def words_of(catalog: Catalog, item: int) -> str:
    """What is known of an item, on one line: title, brand, category path, price; empty where nothing is."""
    brand, price = clean(catalog.brand[item]), catalog.price[item]
    parts = (
        clean(catalog.title[item], TITLE_WORDS),
        f"by {brand}" if brand else "",
        " > ".join(filter(None, map(clean, catalog.categories[item]))),
        "" if price is None else f"${price:.2f}",
    )
    return " | ".join(filter(None, parts))


def caption_texts(catalog: Catalog, codes: NDArray[np.uint16]) -> Iterator[str]:
    """Two lines for every item that has words: its semantic ID and the words, and the words and the ID."""
    for item, row in enumerate(codes.tolist()):
        if words := words_of(catalog, item):
            yield f"{sid_text(row)} {words}\n"
            yield f"{words} {sid_text(row)}\n"


def persona_texts(dataset: Dataset, codes: NDArray[np.uint16], *, holdout: int) -> Iterator[str]:
    """For every user, tastes in words and then the latest training events but `holdout`, each by ID and title.

    Tastes are the categories and brands of those events, so nothing that is held out shows in them.
    """
    catalog = dataset.catalog
    for user in range(dataset.users):
        events = dataset.events(user)[: max(0, dataset.train_length(user) - holdout)].tolist()
        if not events:
            continue
        leaves = _often(clean(catalog.categories[item][-1]) for item in events if catalog.categories[item])
        brands = _often(clean(catalog.brand[item]) for item in events)
        shown = [f"{sid_text(codes[item].tolist())} {clean(catalog.title[item], 12)}" for item in events]
        tastes = "".join(
            f"{name}: {', '.join(values)}\n" for name, values in (("Buys", leaves), ("Brands", brands)) if values
        )
        yield tastes + "".join(f"- {line.rstrip()}\n" for line in shown[-PERSONA_EVENTS:])


def general_texts(files: Iterable[Path]) -> Iterator[str]:
    """The lines of text files that are not blank. Raises DataError on a file that is not UTF-8 text."""
    for file in files:
        try:
            with file.open(encoding="utf-8") as lines:
                yield from (line for line in lines if line.strip())
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"not a text file that can be read: {error}", path=file) from error


def text_rows(reasoner: Reasoner, texts: Sequence[str], *, longest: int) -> TokenRows:
    """A row for each text, of which all tokens are learnt, cut into rows of at most `longest` tokens."""
    rows: list[NDArray[np.int32]] = []
    ids = reasoner.tokenizer(list(texts), add_special_tokens=False)["input_ids"] if texts else []
    for row in ids:
        tokens = np.array(row, dtype=np.int32)
        rows += [tokens[first : first + longest] for first in range(0, len(tokens), longest)]
    return TokenRows.of(rows, [np.ones(len(row), dtype=np.bool_) for row in rows])


def _often(names: Iterable[str]) -> list[str]:
    """The most frequent names, the first of equally frequent ones first."""
    return [name for name, _ in Counter(filter(None, names)).most_common(TASTES)]
