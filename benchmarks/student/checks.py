"""The served student beside the reasoner, and on shuffled requests: `python -m benchmarks.student.checks`.

Needs Beauty's bundle (`make beauty`) and its reasoner (`make reasoner`). Both rank the mid-trained model's test lists,
in one thread, request by request in turns.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from benchmarks.results import ROOT, Figure, Record, store
from gr2.artifact import Artifact
from gr2.data.candidates import PADDING, CandidateLists
from gr2.data.dataset import Dataset
from gr2.evaluate import engine_ranks
from gr2.metrics import metric_values
from gr2.models.answer_grammar import AnswerGrammar
from gr2.models.answering import answers
from gr2.models.reasoner import Reasoner
from gr2.prompts.render import PromptConfig
from gr2.serving.engine import Engine
from gr2.training.reasoner.reranking import list_prompts, list_slates
from gr2.training.student.lessons import Lessons

__all__ = ["checks", "main", "ready"]

BUNDLE, LISTS = ROOT / "runs" / "beauty" / "export", ROOT / "runs" / "beauty-reasoner"
TAUGHT = ROOT / "runs" / "reasoner-sft" / "rejection-kp" / "sft"
SLATE, SAMPLE, TIMED, REQUESTS = 10, 400, 20, 10_000
QUALITY, TIME = 0.97, 0.01
NEEDED = {BUNDLE: "make beauty", LISTS / "midtrain": "make reasoner"}


@dataclass(frozen=True)
class Data:
    """The data set, its codes, and the test lists of ten that hold their targets."""

    dataset: Dataset
    codes: NDArray[np.uint16]
    lists: CandidateLists


def load() -> Data:
    """The mid-trained model's lists."""
    tokenize = Artifact.load(LISTS / "tokenize", "tokenize")
    lists = CandidateLists.load(LISTS / "midtrain" / "test.parquet").top(SLATE).with_target()
    return Data(Dataset.load(LISTS / "prepare"), tokenize.array("codes.npy"), lists)


def n5(ranks: NDArray[np.int64]) -> float:
    """The mean N@5 of targets' ranks."""
    return float(metric_values(ranks)["N@5"].mean())


def quality(data: Data, engine: Engine, reasoner: Reasoner) -> tuple[Figure, dict[str, Any]]:
    """N@5 of both on a sample of lists; the reasoner's is the better of its answers and of its likelihoods."""
    rows = np.sort(np.random.default_rng(1).permutation(len(data.lists))[:SAMPLE])
    data = replace(data, lists=data.lists.take(rows))
    scores = Lessons(reasoner, 50).scores(data.dataset, data.codes, data.lists)
    places = np.argsort(np.argsort(-scores, axis=1, kind="stable"), axis=1)
    found = {
        "incoming": data.lists.label() + 1,
        "reasoner, by likelihood": 1 + places[np.arange(len(places)), data.lists.label()],
        "student": engine_ranks(engine, data.dataset, data.lists, use_scores=True),
    }
    if TAUGHT.is_dir():
        table = pq.read_table(TAUGHT / "ranks.parquet")
        found["reasoner, its answers with explanations"] = table["reasoner"].to_numpy()[rows]
    rows = [[who, f"{n5(ranks):.4f}"] for who, ranks in found.items()]
    best = max(n5(ranks) for who, ranks in found.items() if who.startswith("reasoner"))
    figure = Figure.judge("student's N@5 over the reasoner's", n5(found["student"]) / best, QUALITY)
    title = f"{len(data.lists)} of the mid-trained model's test lists; the student was made for the pre-ranker's"
    return figure, {"title": title, "columns": ["", "N@5"], "rows": rows}


def times(data: Data, engine: Engine, reasoner: Reasoner) -> tuple[Figure, dict[str, Any]]:
    """Medians of a request's time, student and reasoner in turns, one thread each."""
    rows = np.random.default_rng(0).permutation(len(data.lists))[:TIMED]
    lists = data.lists.take(rows)
    slates = list_slates(data.dataset, data.codes, lists)
    prompts = list_prompts(reasoner, slates, PromptConfig(max_history=8, title_words=4))
    grammar = AnswerGrammar(reasoner)
    spent: dict[str, list[float]] = {"student": [], "reasoner, an answer": [], "reasoner, likelihoods": []}
    for row in range(len(rows)):
        one = lists.take(np.array([row]))
        asked: dict[str, Callable[[], object]] = {
            "student": request(data, engine, one),
            "reasoner, an answer": partial(answers, reasoner, [prompts[row]], [slates[row]], grammar=grammar),
            "reasoner, likelihoods": partial(Lessons(reasoner, 50).scores, data.dataset, data.codes, one),
        }
        for who, ask in asked.items():
            began = time.perf_counter()
            ask()
            spent[who].append(time.perf_counter() - began)
    middle = {who: float(np.median(each)) for who, each in spent.items()}
    share = middle["student"] / middle["reasoner, an answer"]
    table = [[who, f"{1e3 * value:.2f}", f"{value / middle['student']:.0f}"] for who, value in middle.items()]
    figure = Figure.judge("student's time a request over the reasoner's, one thread", share, TIME, at_most=True)
    title = f"median of {TIMED} requests in turns, explanations included"
    return figure, {"title": title, "columns": ["", "ms", "times the student's"], "rows": table}


def request(data: Data, engine: Engine, lists: CandidateLists) -> Callable[[], object]:
    """The call that ranks one list."""
    ids, candidates = data.dataset.catalog.ids, lists.candidates[0][lists.candidates[0] != PADDING]
    past = [ids[item] for item in data.dataset.history(int(lists.user[0]), int(lists.position[0]))[-50:]]
    asked, scores = [ids[item] for item in candidates], lists.scores[0, : len(candidates)]
    return lambda: engine.rerank(past, asked, scores=scores)


def shuffled(data: Data, engine: Engine) -> Figure:
    """Requests without scores or features: each in a random order and in another must get one ranking."""
    rng = np.random.default_rng(0)
    made = CandidateLists.load(LISTS / "midtrain" / "test.parquet").top(SLATE)
    rows = rng.permutation(len(made))[:REQUESTS]
    ids, different = data.dataset.catalog.ids, 0
    for row in rows.tolist():
        candidates = [ids[item] for item in made.candidates[row] if item != PADDING]
        past = [ids[item] for item in data.dataset.history(int(made.user[row]), int(made.position[row]))[-50:]]
        rankings = [
            [item.item_id for item in engine.rerank(past, [candidates[place] for place in order]).items]
            for order in (rng.permutation(len(candidates)), rng.permutation(len(candidates)))
        ]
        different += rankings[0] != rankings[1]
    value = f"{different} of {len(rows):,} requests ranked otherwise"
    return Figure("shuffled input without scores or features", value, "0", "short" if different else "ok")


def ready() -> bool:
    """Whether there are a bundle and a reasoner."""
    return all(folder.is_dir() for folder in NEEDED)


def checks() -> Record:
    """Everything, as one record. Raises FileNotFoundError without a bundle or a reasoner."""
    torch.set_num_threads(1)
    for folder, made_by in NEEDED.items():
        if not folder.is_dir():
            raise FileNotFoundError(f"{folder.relative_to(ROOT)} is not there: {made_by}")
    data, engine = load(), Engine(BUNDLE)
    reasoner = Reasoner.load(_folder() / "model")
    parts = [quality(data, engine, reasoner), times(data, engine, reasoner)]
    figures = [*(figure for figure, _ in parts), shuffled(data, engine)]
    notes = [f"the reasoner is {_folder().relative_to(ROOT)}", f"bundle {engine.version}"]
    return Record(
        "student.checks",
        "The served student beside the reasoner, and on shuffled requests",
        "make student-checks",
        figures,
        [table for _, table in parts],
        notes,
    )


def _folder() -> Path:
    """The reasoner that has learned to answer, else the mid-trained one."""
    return TAUGHT if TAUGHT.is_dir() else LISTS / "midtrain"


def main() -> None:
    """Measure and store the record."""
    print(store(checks()).relative_to(ROOT))


if __name__ == "__main__":
    main()
