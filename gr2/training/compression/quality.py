"""How well a reasoner ranks from shortened histories, beside whole ones and ones shortened without a model."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any, Literal, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from gr2.artifact import Artifact, Workspace
from gr2.data.candidates import CandidateLists
from gr2.data.dataset import Dataset
from gr2.metrics import metric_values, paired_bootstrap, ranking_metrics
from gr2.models.reasoner import Reasoner
from gr2.prompts.context import Passage, covering, line_cost, newest, relevant, truncated
from gr2.prompts.render import PromptConfig, Slate
from gr2.training.compression.ranking import LikelihoodRanker
from gr2.training.policy.rewards import rank_of
from gr2.training.reasoner.contexts import Context, Contexts, places_of
from gr2.training.reasoner.reranking import evaluate_reasoner, list_slates
from gr2.training.reasoner.split_ranks import RANKS, Evaluated

__all__ = ["KINDS", "ContextEvaluated", "rank_contexts", "simple_contexts"]

# What a reasoner ranks from: the whole history, nothing, the newest lines as far as they fit, selections without a
# model (the newest IDs, one of each category first, those most like the candidates), and the compressor's contexts.
KINDS = ("whole", "empty", "truncated", "newest", "covering", "relevant", "compressed")
Shorten = Callable[[Slate, Passage, int], tuple[str, ...]]


class ContextEvaluated(Evaluated, Protocol):
    """What is evaluated, and how, from contexts."""

    @property
    def share(self) -> float: ...  # noqa: D102
    @property
    def ranking(self) -> Literal["answer", "likelihood"]: ...  # noqa: D102


def rank_contexts(
    config: ContextEvaluated,
    reasoner: Reasoner,
    dataset: Dataset,
    codes: NDArray[np.uint16],
    lists: Artifact,
    compressed: Contexts,
    work: Workspace,
) -> None:
    """Write `ranks.parquet` and `ranks-val.parquet`, the target's rank from each of KINDS, and their metrics.

    Metrics of a kind are those of its ranks, its cost in tokens, and the interval of its difference from the whole
    history and from truncation. Splits of which no list is asked for have none.
    """
    for split, count in (("val", config.validation_lists), ("test", config.test_lists)):
        held = CandidateLists.load(lists.file(f"{split}.parquet")).top(config.list_size).with_target()
        held = held.take(held.position > 0)
        if not count or not len(held):
            continue
        if 0 < count < len(held):
            generator = np.random.default_rng(work.seed & 0xFFFF_FFFF)
            held = held.take(np.sort(generator.permutation(len(held))[:count]))
        began = time.monotonic()
        metrics, table = _ranked(config, reasoner, dataset, codes, held, compressed, work, split)
        pq.write_table(table, work.path / RANKS[split])
        work.metrics[split] = metrics | {"answer_seconds": time.monotonic() - began}


def simple_contexts(
    reasoner: Reasoner,
    slates: list[Slate],
    places: list[tuple[int, int]],
    prompt: PromptConfig,
    share: float,
    *,
    ids_only: bool = False,
) -> Iterator[tuple[str, Contexts]]:
    """The contexts of each of KINDS that needs no model, of slates by their places."""

    def count(text: str) -> int:
        return len(reasoner.encode(text))

    passages = [Passage.of(slate.history, prompt, count, ids_only=ids_only) for slate in slates]
    for kind, shorten in _shortenings(count).items():
        found = {}
        for place, slate, passage in zip(places, slates, passages, strict=True):
            lines = shorten(slate, passage, passage.budget(share))
            found[place] = Context(lines, passage.tokens, sum(line_cost(line, count) for line in lines))
        yield kind, Contexts(found)


def _shortenings(count: Callable[[str], int]) -> dict[str, Shorten]:
    return {
        "empty": lambda _, __, ___: (),
        "truncated": lambda _, passage, budget: truncated(passage, budget, count),
        "newest": lambda _, passage, budget: passage.lines(newest(passage, budget)),
        "covering": lambda _, passage, budget: passage.lines(covering(passage, budget)),
        "relevant": lambda slate, passage, budget: passage.lines(relevant(passage, slate.candidates, budget)),
    }


def _ranked(
    config: ContextEvaluated,
    reasoner: Reasoner,
    dataset: Dataset,
    codes: NDArray[np.uint16],
    lists: CandidateLists,
    compressed: Contexts,
    work: Workspace,
    split: str,
) -> tuple[dict[str, Any], pa.Table]:
    prompt, places = PromptConfig.of(config), places_of(lists)
    slates = list_slates(dataset, codes, lists)
    ids_only = config.ranking == "likelihood"
    simple = dict(simple_contexts(reasoner, slates, places, prompt, config.share, ids_only=ids_only))
    kinds: dict[str, Contexts | None] = {"whole": None, **simple, "compressed": compressed}
    ranks: dict[str, NDArray[np.int64]] = {"incoming": lists.label() + 1}
    for kind in KINDS:
        contexts = kinds[kind]
        if ids_only:
            shown = slates if contexts is None else contexts.slates(slates, places)
            ranked = zip(LikelihoodRanker(reasoner, prompt).rank(shown), lists.label().tolist(), strict=True)
            ranks[kind] = np.array([rank_of(ranking, target) for ranking, target in ranked], dtype=np.int64)
            continue
        _, table = evaluate_reasoner(
            reasoner,
            dataset,
            codes,
            lists,
            prompt,
            slate=config.list_size,
            max_reasoning=config.max_reasoning,
            batch=config.answer_batch,
            seed=work.seed & 0xFFFF_FFFF,
            checkpoint=work.checkpoints / f"{split}-{kind}-answers.jsonl",
            contexts=contexts,
        )
        ranks[kind] = table["reasoner"].to_numpy()
    values = {name: metric_values(found) for name, found in ranks.items()}
    metrics: dict[str, Any] = {"lists": len(lists), "incoming": ranking_metrics(ranks["incoming"])}
    for kind in KINDS:
        contexts = kinds[kind]
        metrics[kind] = {"ranking": ranking_metrics(ranks[kind])}
        metrics[kind] |= {} if contexts is None else contexts.cost(places)
        for other in ("whole", "truncated"):
            found = paired_bootstrap(values[other], values[kind], work.seed & 0xFFFF_FFFF)
            metrics[kind][f"minus_{other}"] = {name: asdict(each) for name, each in found.items()}
    columns = {"user": lists.user, "position": lists.position, **ranks}
    return metrics, pa.table(columns)
