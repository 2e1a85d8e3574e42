"""How a reasoner changes the order of candidate lists, and how it answers."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from gr2.data.candidates import PADDING, CandidateLists
from gr2.data.dataset import Dataset
from gr2.errors import DataError
from gr2.metrics import compare, compare_ranks, graded_values
from gr2.models.answering import Answering, answers_by_batch
from gr2.models.reasoner import Reasoner
from gr2.prompts.render import Prompt, PromptConfig, Slate, render, slate_of
from gr2.training.reasoner.answer_log import AnswerLog, Entry
from gr2.training.reasoner.contexts import Contexts, places_of

__all__ = ["evaluate_reasoner", "kendall_tau", "list_prompts", "list_slates"]


def list_slates(
    dataset: Dataset, codes: NDArray[np.uint16], lists: CandidateLists, contexts: Contexts | None = None
) -> list[Slate]:
    """The slate of each list, with its context where there are `contexts`; `codes` (N, L) are the catalogue's."""
    rows = zip(lists.user.tolist(), lists.position.tolist(), lists.candidates, strict=True)
    slates = [
        slate_of(
            dataset.catalog,
            codes,
            dataset.history(user, position).tolist(),
            candidates[candidates != PADDING].tolist(),
        )
        for user, position, candidates in rows
    ]
    return slates if contexts is None else contexts.slates(slates, places_of(lists))


def list_prompts(reasoner: Reasoner, slates: Sequence[Slate], config: PromptConfig) -> list[Prompt]:
    """The prompts of slates within the budget, as the reasoner counts tokens. Raises ConfigError."""
    return [render(slate, config, lambda messages: len(reasoner.encode_chat(messages))) for slate in slates]


def evaluate_reasoner(
    reasoner: Reasoner,
    dataset: Dataset,
    codes: NDArray[np.uint16],
    lists: CandidateLists,
    prompt: PromptConfig,
    *,
    slate: int = 10,
    limit: int = 0,
    constrained: bool = True,
    max_reasoning: int = 200,
    batch: int = 32,
    seed: int = 0,
    resamples: int = 10_000,
    checkpoint: Path | None = None,
    contexts: Contexts | None = None,
) -> tuple[dict[str, Any], pa.Table]:
    """Metrics of the incoming order and of the reasoner's over the top `slate` of lists that hold their target.

    Prompts show `contexts` in the place of histories where there are any. `limit` above 0 draws so many lists by
    `seed`. The table has a row a slate: user, position, incoming and reasoner (the target's ranks, from 1), refused
    (why, or null) and answer (text). A refused answer counts as the incoming order; `constrained` answers are never
    refused. Of graded lists, the ranks are those of the best positive, and `graded` has the metrics of all positives,
    with intervals over users. Answers, the likeliest tokens each, are kept in the file `checkpoint`, which belongs to
    the model: another call with equal arguments goes on where it ended. Raises DataError if no list holds its target.
    """
    held = lists.top(slate).with_target() if lists.width else lists
    if not len(held) or not lists.width:
        raise DataError(f"none of {len(lists)} lists has its target among its top {slate}: nothing to re-rank")
    chosen = held
    if 0 < limit < len(held):
        chosen = held.take(np.sort(np.random.default_rng(seed).permutation(len(held))[:limit]))
    slates = list_slates(dataset, codes, chosen, contexts)
    prompts = list_prompts(reasoner, slates, prompt)
    asking = Answering(
        constrained=constrained, reasoning=prompt.reasoning, max_reasoning=max_reasoning, batch=batch, seed=seed
    )
    entries = _answer(reasoner, prompts, slates, asking, checkpoint)
    incoming = chosen.label() + 1
    ranks = np.array(
        [1 + entry.ranking.index(label) for entry, label in zip(entries, chosen.label().tolist(), strict=True)],
        dtype=np.int64,
    )
    metrics: dict[str, Any] = {
        "lists": len(lists),
        "target_in_slate": len(held),
        "slate": slate,
        "all": compare_ranks(incoming, ranks, seed, name="reasoner", resamples=resamples),
        **_behaviour(entries),
        "history_kept_mean": float(np.mean([each.kept for each in prompts])),
        "history_dropped_mean": float(np.mean([each.dropped for each in prompts])),
    }
    if chosen.grades is not None:
        metrics["graded"] = _graded(chosen, [entry.ranking for entry in entries], seed, resamples)
    if contexts is not None:
        metrics["context"] = contexts.cost(places_of(chosen))
    columns: dict[str, Any] = {
        "user": chosen.user,
        "position": chosen.position,
        "incoming": incoming,
        "reasoner": ranks,
        "refused": pa.array([entry.refused for entry in entries], pa.string()),
        "answer": pa.array([entry.text for entry in entries], pa.string()),
    }
    # Which targets are tied is known of the last events only.
    if chosen.grades is None and (chosen.position == dataset.lengths[chosen.user] - 1).all():
        untied = ~dataset.tied[chosen.user]
        metrics["untied"] = compare_ranks(incoming[untied], ranks[untied], seed, name="reasoner", resamples=resamples)
        columns["untied"] = untied
    return metrics, pa.table(columns)


def kendall_tau(ranking: Sequence[int]) -> float:
    """Kendall's tau of a ranking to the incoming order: 1 if equal, -1 if reversed; 1 of fewer than two candidates."""
    order = np.asarray(ranking)
    pairs = len(order) * (len(order) - 1) / 2
    discordant = np.triu(order[:, None] > order[None, :]).sum()
    return 1.0 - 2.0 * float(discordant) / pairs if pairs else 1.0


def _graded(lists: CandidateLists, rankings: Sequence[Sequence[int]], seed: int, resamples: int) -> dict[str, Any]:
    """The metrics of graded lists in the incoming order and in `rankings`."""
    assert lists.grades is not None
    kept = lists.candidates != PADDING
    orders = np.tile(np.arange(lists.width), (len(lists), 1))
    for row, ranking in enumerate(rankings):
        orders[row, : len(ranking)] = ranking
    after = np.take_along_axis(lists.grades, orders, axis=1)
    return compare(
        graded_values(lists.grades, kept),
        graded_values(after, kept),
        seed,
        name="reasoner",
        resamples=resamples,
        users=lists.user,
    )


def _answer(
    reasoner: Reasoner, prompts: Sequence[Prompt], slates: Sequence[Slate], asking: Answering, checkpoint: Path | None
) -> list[Entry]:
    """What is kept of the answer to each prompt, in their order."""
    messages = [[*prompt.messages] for prompt in prompts]
    identity = hashlib.sha256(json.dumps([asdict(asking), messages]).encode()).hexdigest()
    log = AnswerLog(checkpoint, identity)
    for rows, found in answers_by_batch(reasoner, prompts, slates, asking, start=len(log.batches)):
        log.append([Entry.of(row, answered) for row, answered in zip(rows, found, strict=True)])
    return sorted((entry for batch in log.batches for entry in batch), key=lambda entry: entry.slate)


def _behaviour(entries: Sequence[Entry]) -> dict[str, Any]:
    """How the answers are: valid or why not, copies of the incoming order or how far from it, how long."""
    refusals = Counter(entry.refused for entry in entries if entry.refused is not None)
    # A refused answer ranks nothing: the order that it counts as is not its own.
    taus = [kendall_tau(entry.ranking) for entry in entries if entry.refused is None]
    return {
        "valid": 1.0 - refusals.total() / len(entries),
        "refusals": dict(sorted(refusals.items())),
        "copied": sum(tau == 1.0 for tau in taus) / len(entries),
        "kendall_tau": float(np.mean(taus)) if taus else None,
        "answer_tokens": float(np.mean([entry.tokens for entry in entries])),
    }
