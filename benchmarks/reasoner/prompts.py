"""Prompts of 1,000 Beauty requests read back, and 100,000 broken answers parsed.

`python -m benchmarks.reasoner.prompts`. Runs the stages `prepare` and `tokenize` of configs/beauty.toml first.
"""

from __future__ import annotations

import json
import random
import time
from collections import Counter
from collections.abc import Callable
from itertools import product

import numpy as np

from benchmarks.results import ROOT, Figure, Record, details, store
from benchmarks.spine.quality import gr2
from gr2.artifact import Artifact
from gr2.data.dataset import Dataset
from gr2.models.reasoner import Reasoner, SidSpec, from_scratch
from gr2.prompts.answer import REASONS, AnswerError, answer_text, parse_answer
from gr2.prompts.render import PromptConfig, Slate, read_candidates, render, slate_of
from gr2.prompts.semantic_id import sid_text

__all__ = ["main", "prompts"]

REQUESTS, CANDIDATES, ANSWERS, SEED = 1_000, 10, 100_000, 0
BUDGETS = (2048, 1024)
SLOWEST_MS = 250.0
Codes = list[tuple[int, ...]]
EXPLANATIONS = (
    "The history is hair care. Conditioners go with shampoos.",
    'Nail polish in "Tenacious Teal", then a 12" brush \\ file.',
    "Crème, für die Nacht: 夜用 🌙",
)
# What breaks parsers: structure, escapes, numbers, halves of surrogate pairs, what is no JSON but often taken for it.
PIECES = (
    '"', "\\", "\\u", "\\ud800", "\ud800", "\x00", "\n", "{", "}", "[", "]", ",", ":", "'", "\ufeff", "\u2028",
    "NaN", "-Infinity", "1e999", "null", "true", "```json\n", "</think>", "<|im_end|>", "<|sid_begin|>", "<|sid_end|>",
    "<s_a_1>", "<s_a_00001>", "<s_e_1>", '"explanation": "x", ', '"recommendations": [], ', '"why": 1, ', " " * 40,
)  # fmt: skip


def prompts() -> Record:
    """How many prompts read back, what the budget drops, and what the parser makes of broken answers."""
    for stage in ("prepare", "tokenize"):
        gr2(stage, "configs/beauty.toml")
    folder = ROOT / "runs" / "beauty"
    dataset, tokenize = Dataset.load(folder / "prepare"), Artifact.load(folder / "tokenize")
    sids = SidSpec.of(tokenize)
    texts = [title for title in dataset.catalog.title if title]
    reasoner = from_scratch("tiny", texts, sids, vocabulary=4096)
    slates = requests(dataset, tokenize.array("codes.npy"))
    figures, table = read_back(reasoner, slates)
    broken, fuzzed = parse_broken([[item.codes for item in slate.candidates] for slate in slates], sids.level_size)
    return Record(
        "reasoner.prompts",
        "Prompts and answers of the reasoner",
        "make show-reasoner",
        [*figures, *broken],
        [table, fuzzed],
        [f"a request is the history before a user's last event and {CANDIDATES} items, the last event's among them"],
    )


def requests(dataset: Dataset, codes: np.ndarray) -> list[Slate]:
    """The slates of users drawn by the seed: the target and items drawn beside it, in random order."""
    rng = np.random.default_rng(SEED)
    slates = []
    for user in rng.choice(dataset.users, REQUESTS, replace=False).tolist():
        *history, target = dataset.events(user).tolist()
        others = rng.choice(np.setdiff1d(np.arange(len(codes)), [target]), CANDIDATES - 1, replace=False).tolist()
        slates.append(slate_of(dataset.catalog, codes, history, rng.permutation([target, *others]).tolist()))
    return slates


def read_back(reasoner: Reasoner, slates: list[Slate]) -> tuple[list[Figure], dict[str, object]]:
    """Prompts of four forms within two budgets, read back, and counted in tokens."""
    same = inside = total = 0
    rows = []
    for budget, full, first in product(BUDGETS, (True, False), (False, True)):
        config = PromptConfig(knowledge=full, reasoning=full, candidates_first=first, budget=budget, max_history=50)
        lengths, kept, dropped = [], 0, 0
        for slate in slates:
            prompt = render(slate, config, lambda messages: len(reasoner.encode_chat(messages)))
            found = read_candidates(prompt, reasoner.sids.levels, reasoner.sids.level_size)
            same += found == [item.codes for item in slate.candidates]
            lengths.append(len(reasoner.encode_chat(prompt.messages)))
            kept, dropped = kept + prompt.kept, dropped + prompt.dropped
        total += len(slates)
        inside += sum(length <= budget for length in lengths)
        form = f"{'all rules' if full else 'ranking alone'}, {'candidates' if first else 'history'} first"
        events = f"{dropped / (kept + dropped):.2%}"
        rows.append([budget, form, f"{np.median(lengths):.0f}", max(lengths), events])
    figures = [
        Figure(f"prompts of {len(slates):,} Beauty requests that read back to the same candidates", *_all(same, total)),
        Figure("prompts within the budget", *_all(inside, total)),
    ]
    columns = ["budget", "form", "median tokens", "longest", "events dropped"]
    return figures, {"title": "Prompts, in tokens of a vocabulary of 4,096", "columns": columns, "rows": rows}


def parse_broken(slates: list[Codes], level_size: int) -> tuple[list[Figure], dict[str, object]]:
    """What the parser says of ANSWERS broken answers, drawn by the seed."""
    generator = random.Random(SEED)
    verdicts: Counter[str] = Counter()
    slowest, right = 0.0, 0
    for _ in range(ANSWERS):
        candidates = generator.choice(slates)
        text = broken_answer(generator, candidates)
        began = time.process_time()
        try:
            answer = parse_answer(text, candidates, level_size=level_size)
        except AnswerError as error:
            verdicts[error.reason] += 1
        except Exception as error:  # what must not happen, and is counted
            verdicts[f"raised {type(error).__name__}"] += 1
        else:
            verdicts["accepted"] += 1
            named = json.loads(text)["recommendations"]
            right += (
                named == [sid_text(candidates[place]) for place in answer.ranking] and len(set(named)) == CANDIDATES
            )
        slowest = max(slowest, 1e3 * (time.process_time() - began))
    foreign = sum(count for verdict, count in verdicts.items() if verdict.startswith("raised"))
    met = sum(verdicts[reason] > 0 for reason in REASONS)
    figures = [
        Figure.judge(f"exceptions of others in {ANSWERS:,} fuzzed answers", foreign, 0, at_most=True),
        Figure("accepted answers that rank each candidate once", *_all(right, verdicts["accepted"])),
        Figure("reasons for a refusal that occurred", *_all(met, len(REASONS))),
        Figure.judge("processor time of the slowest of them", slowest, SLOWEST_MS, at_most=True, unit=" ms"),
    ]
    rows = [[verdict, f"{count:,}"] for verdict, count in verdicts.most_common()]
    return figures, {"title": "What the parser says of broken answers", "columns": ["verdict", "answers"], "rows": rows}


def broken_answer(generator: random.Random, candidates: Codes) -> str:
    """A valid answer after one to four mutations."""
    order = generator.sample(candidates, len(candidates))
    text = answer_text(generator.choice(EXPLANATIONS), order)
    for _ in range(generator.randint(1, 4)):
        text = generator.choice(MUTATIONS)(generator, text)
    return text


def _cut(generator: random.Random, text: str) -> str:
    return text[: generator.randint(0, len(text))]


def _splice(generator: random.Random, text: str) -> str:
    start, end = sorted(generator.choices(range(len(text) + 1), k=2))
    return text[:start] + generator.choice([*PIECES, text[start:end] * 2, ""]) + text[end:]


def _insert(generator: random.Random, text: str) -> str:
    place = generator.randint(0, len(text))
    return text[:place] + generator.choice(PIECES) * generator.choice([1, 1, 1, 2, 50]) + text[place:]


def _bomb(generator: random.Random, text: str) -> str:
    """Deep nesting or a huge number, now and then."""
    if generator.random() > 0.05:
        return text
    many = generator.choice([100, 1_000, 5_000, 15_000, 200_000])
    bomb = generator.choice(["[", "{", '{"a":', "[" * 2 + "]", "9", "-", '"', "\\"])
    return generator.choice([text[: generator.randint(0, len(text))], ""]) + bomb * many


def _swap_ids(generator: random.Random, text: str) -> str:
    """One ID in place of another, twice or altered."""
    parts = text.split('", "')
    if len(parts) < 3:
        return text
    first, second = generator.randrange(1, len(parts)), generator.randrange(1, len(parts))
    parts[first] = generator.choice([parts[second], parts[first].replace("<s_a_", "<s_a_1"), "", "soap"])
    return '", "'.join(parts)


def _replace_value(generator: random.Random, text: str) -> str:
    """A value of another type, the whole of another kind, or an explanation of nothing."""
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        return text
    if not isinstance(values, dict):
        return text
    name = generator.choice(["explanation", "recommendations", "more"])
    value = generator.choice([None, 7, 1.5, [], {}, "", " ", [[1]], [7], "\ud83d", [*values.values()]])
    return json.dumps(generator.choice([values | {name: value}, [values], value, {name: value}]), ensure_ascii=False)


MUTATIONS: list[Callable[[random.Random, str], str]] = [_cut, _splice, _insert, _bomb, _swap_ids, _replace_value]


def _all(found: int, total: int) -> tuple[str, str, str]:
    """Value, bar and status of a count that must be the whole."""
    return f"{found:,} of {total:,}", "all", "ok" if found == total and total else "short"


def main() -> None:
    """Print the figures and their tables, and store them."""
    record = prompts()
    store(record)
    for figure in record.figures:
        print(f"{figure.what}: {figure.value} (bar {figure.bar}) {figure.status}")
    print("\n".join(details(record)))


if __name__ == "__main__":
    main()
