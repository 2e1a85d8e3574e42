"""A policy small enough to enumerate: one free token, then a ranking of three candidates of two codes each.

Not a test: test_dapo.py loads it.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gr2.decoding import CandidateTrie
from gr2.models.constrained import RankingProcessor
from gr2.models.reasoner import Reasoner, SidSpec, from_scratch
from gr2.training.policy.dapo import DapoTrainer
from gr2.training.policy.recipe import Recipe, arguments
from gr2.training.policy.rollouts import Group, Rollout

CODES = ((0, 0), (0, 1), (2, 1))
REWARD = {(0, 1, 2): 0.0, (0, 2, 1): 0.3, (1, 0, 2): -0.5, (1, 2, 0): 0.1, (2, 0, 1): 1.0, (2, 1, 0): 0.6}
SAMPLES = 6

Answer = tuple[tuple[int, ...], list[int], list[NDArray[np.int64] | None]]


@functools.cache
def start() -> tuple[Reasoner, dict[str, Tensor]]:
    reasoner = from_scratch("tiny", ("a b c d",), SidSpec(2, 3, "toy"), vocabulary=270, seed=3)
    # Rows of a new model are nearly alike; these differ enough for choices to have unequal probabilities.
    with torch.no_grad():
        reasoner.model.get_input_embeddings().weight.mul_(8.0)
    return reasoner, {name: value.clone() for name, value in reasoner.model.state_dict().items()}


def fresh() -> Reasoner:
    """A reasoner with the same weights at each call."""
    reasoner, weights = start()
    model = type(reasoner.model)(reasoner.model.config)
    model.load_state_dict(weights)
    return Reasoner.of(model.eval(), reasoner.tokenizer, reasoner.sids)


def rankings(reasoner: Reasoner, left: Sequence[int] = (0, 1, 2)) -> Iterator[Answer]:
    """Every ranking of the candidates `left`, its tokens, and the set that each token is chosen from."""
    vocabulary = reasoner.vocabulary
    if not left:
        yield (), [vocabulary.eos], [np.array([vocabulary.eos])]
        return
    for candidate in left:
        first, second = CODES[candidate]
        firsts = {CODES[other][0] for other in left}
        seconds = {CODES[other][1] for other in left if CODES[other][0] == first}
        tokens = [int(vocabulary.tokens[0, first]), int(vocabulary.tokens[1, second])]
        sets: list[NDArray[np.int64] | None] = [
            *(np.array([token]) for token in vocabulary.begin),
            vocabulary.tokens[0, sorted(firsts)],
            vocabulary.tokens[1, sorted(seconds)],
            *(np.array([token]) for token in vocabulary.end),
        ]
        for order, more, others in rankings(reasoner, [other for other in left if other != candidate]):
            yield (candidate, *order), [*vocabulary.begin, *tokens, *vocabulary.end, *more], sets + others


def every_answer(reasoner: Reasoner) -> list[Answer]:
    """All answers, those of one ranking after those of another."""
    tokens = range(len(reasoner.model.get_input_embeddings().weight))
    return [(order, [free, *rest], [None, *sets]) for order, rest, sets in rankings(reasoner) for free in tokens]


def prompt_of(reasoner: Reasoner, task: int) -> list[int]:
    return reasoner.encode(f"list {task}:")


def exact_log_probs(reasoner: Reasoner, task: int, found: Sequence[Answer], *, temperature: float = 1.0) -> Tensor:
    """(N,) log-probabilities of all answers, from the definition."""
    prompt = prompt_of(reasoner, task)
    each = len(found) // 6
    ids = torch.tensor([[*prompt, *tokens] for _, tokens, _ in found])
    totals = []
    for first in range(0, len(found), each):
        rows = ids[first : first + each]
        logits = reasoner.model(rows).logits[:, len(prompt) - 1 : -1] / temperature
        total = logits.new_zeros(each)
        for place, allowed in enumerate(found[first][2]):
            among = logits[:, place] if allowed is None else logits[:, place, torch.from_numpy(allowed)]
            chosen = logits[:, place].gather(1, rows[:, len(prompt) + place, None])[:, 0]
            total = total + chosen - among.logsumexp(1)
        totals.append(total)
    return torch.cat(totals)


def draw(reasoner: Reasoner, tasks: Sequence[int], seed: int, *, flat: int = 0) -> list[Group]:
    """Groups that the model samples; tasks below `flat` reward every answer alike."""
    model, vocabulary = reasoner.model, reasoner.vocabulary
    trie = CandidateTrie(np.array(CODES, dtype=np.uint16), np.ones(len(CODES), dtype=np.bool_), 3)
    prompts = torch.tensor([prompt_of(reasoner, task) for task in tasks for _ in range(SAMPLES)])
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(seed)
        free = model(prompts).logits[:, -1].softmax(-1).multinomial(1)
        ids = torch.cat([prompts, free], 1)
        processor = RankingProcessor([trie] * len(tasks), vocabulary)
        found = model.generate(
            ids, attention_mask=torch.ones_like(ids), logits_processor=[processor], do_sample=True, top_k=0,
            max_new_tokens=vocabulary.length(len(CODES)), eos_token_id=vocabulary.eos, pad_token_id=0,
        )  # fmt: skip
    groups: list[list[Rollout]] = []
    orders = processor.rankings(found)
    for row, (order, sets) in enumerate(zip(orders, processor.allowed, strict=True)):
        if row % SAMPLES == 0:
            groups.append([])
        task = tasks[row // SAMPLES]
        length = len(sets) + 1
        reward = 0.5 if task < flat else REWARD[tuple(order.tolist())]
        tokens = found[row, prompts.shape[1] : prompts.shape[1] + length].tolist()
        groups[-1].append(Rollout(prompt_of(reasoner, task), tokens, [None, *sets], reward, tuple(order.tolist())))
    return list(groups)


def recipe(**changes: Any) -> Recipe:
    values: dict[str, Any] = {
        "steps": 4, "groups": 2, "samples": SAMPLES, "updates": 1, "batch": SAMPLES, "redraws": 2,
        "learning_rate": 3e-3, "weight_decay": 0.0, "warmup": 0.0, "clip": 1.0, "clip_low": 0.2, "clip_high": 0.28,
        "temperature": 1.0, "scale": "group", "checkpoint_seconds": 0.0, "minutes": 0.0, "tracker": "none",
    }  # fmt: skip
    return Recipe(**(values | changes))


def trainer_of(
    reasoner: Reasoner, folder: Path, chosen: Recipe, *, tasks: int = 4, flat: int = 0, **options: Any
) -> DapoTrainer:
    return DapoTrainer(
        reasoner.model,
        reasoner.tokenizer,
        arguments(chosen, folder, seed=1, cpu=True),
        chosen,
        stage="rl",
        tasks=tasks,
        draw=options.pop("draw", functools.partial(draw, reasoner, flat=flat)),
        watch=options.pop("watch", lambda outcomes, history: {}),
        **options,
    )
