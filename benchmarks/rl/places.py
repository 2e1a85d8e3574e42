"""Rewards that are gamed, by a policy of a few hundred numbers on Beauty's lists.

A reasoner of a million parameters cannot write a valid answer freely, so that it cannot be taught to game a format.
What can is a policy with a score for each slot of the answer and each place of the prompt, and a weight for what was
bought together. It samples, is rewarded and trained as the reasoner is (groups, advantages, clipping aside).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from scipy import sparse
from torch import Tensor

from benchmarks.reasoner.quality import BASE, METRICS, difference, means, shown
from benchmarks.results import FOLDER, Figure, Record
from benchmarks.rl.picture import hacking_picture
from benchmarks.rl.tables import first_to_last
from gr2.data.candidates import CandidateLists
from gr2.data.dataset import Dataset
from gr2.training.policy.monitors import Outcome, monitor
from gr2.training.policy.rewards import Reward, one_positive, reward
from gr2.training.policy.rollouts import Rollout, advantages, has_signal

__all__ = ["ARMS", "Arm", "places", "train_places"]

K, GROUPS, SAMPLES, STEPS, RATE = 10, 32, 16, 300, 0.05
# How much the start prefers the order that it is shown: about one answer in seven is valid, a noisy copy.
START = 4.0
PICTURE = "rl.places.png"


@dataclass(frozen=True)
class Arm:
    """A reward, and how answers are made: free ones may name a candidate twice, and are refused then."""

    title: str
    reward: Reward
    constrained: bool
    shuffled: bool


ARMS = (
    Arm("unconditional, free answers", reward("unconditional"), constrained=False, shuffled=False),
    Arm("conditional, free answers", reward("conditional"), constrained=False, shuffled=False),
    Arm("default, free answers", reward("default"), constrained=False, shuffled=False),
    Arm("conditional, constrained", reward("conditional"), constrained=True, shuffled=False),
    Arm("ours: default, constrained, shuffled with ranks", reward("default"), constrained=True, shuffled=True),
)


@dataclass(frozen=True)
class Lists:
    """Targets (R,) int64, places in the incoming order, and each candidate's evidence (R, K) float32."""

    target: NDArray[np.int64]
    evidence: NDArray[np.float32]


def places() -> Record:
    """What each reward makes of such a policy, over its training and on the test lists."""
    made = {arm.title: train_places(arm) for arm in ARMS}
    incoming = lists_of("test").target + 1
    rows, figures = [["incoming order", "", "", "", *means(incoming), "", ""]], []
    for name, (steps, ranks, _) in made.items():
        changes = difference(incoming, ranks)
        ends = [first_to_last(steps, column) for column in ("reward", "valid", "copies/near")]
        rows.append([name, *ends, *means(ranks), *(shown(changes[metric]) for metric in ("R@1", "N@5"))])
        figures.append(Figure(f"{name}: N@5 minus incoming order", shown(changes["N@5"]), "measured", "ok"))
    gamed, ours = (made[ARMS[number].title] for number in (0, -1))
    copies = {name: float(np.mean(steps["copies/near"].to_pylist()[-30:])) for name, (steps, *_) in made.items()}
    gain = difference(incoming, ours[1])["N@5"]
    figures += [
        Figure.judge("the hack: near copies in the end under the unconditional reward", copies[ARMS[0].title], 0.95),
        Figure.judge(
            "the hack prevented: near copies in the end under ours", copies[ARMS[-1].title], 0.2, at_most=True
        ),
        Figure("ours, minus incoming order: N@5", shown(gain), "interval above 0", "ok" if gain.low > 0 else "short"),
    ]
    (FOLDER / PICTURE).write_bytes(hacking_picture({name: steps for name, (steps, *_) in made.items()}))
    table = {
        "title": "a policy that scores places and co-purchases, trained by each reward on lists of ten: "
        f"{STEPS} steps of {GROUPS} lists, {SAMPLES} answers each; first to last tenth of the steps, then test lists",
        "columns": ["", "reward", "valid", "near copies", *METRICS, "R@1 to incoming", "N@5 to incoming"],
        "rows": rows,
    }
    notes = [
        f"{gamed[2]:.0%} of the test answers are valid under the unconditional reward, and none improves on a copy"
    ]
    picture = {"title": "Copies, quality and validity of the answers sampled in training", "file": PICTURE}
    title = "Rewards that are gamed, by a policy that can"
    return Record("rl.places", title, "make rl", figures, [table], notes, [picture])


def lists_of(split: str) -> Lists:
    """The lists of ten that hold their target; evidence is co-purchases with the history over popularity's root."""
    dataset = Dataset.load(BASE / "prepare")
    users = [dataset.events(user)[:-3] for user in range(dataset.users)]
    rows = np.repeat(np.arange(len(users)), [len(each) for each in users])
    items = np.concatenate(users)
    bought = sparse.csr_matrix((np.ones(len(items)), (rows, items)), (len(users), len(dataset.catalog.ids))).sign()
    together = (bought.T @ bought).tocsr()
    popular = np.sqrt(1.0 + together.diagonal())
    held = CandidateLists.load(BASE / "midtrain" / f"{split}.parquet").top(K).with_target()
    evidence = np.stack(
        [
            np.asarray(together[dataset.history(user, place)][:, candidates].sum(0)).ravel() / popular[candidates]
            for user, place, candidates in zip(held.user.tolist(), held.position.tolist(), held.candidates, strict=True)
        ]
    )
    evidence = np.log1p(evidence)
    return Lists(held.label(), ((evidence - evidence.mean()) / evidence.std()).astype(np.float32))


class Places(torch.nn.Module):
    """Scores (B, K slots, K candidates) by the place where a candidate is shown, its incoming rank and its evidence."""

    def __init__(self, arm: Arm) -> None:
        super().__init__()
        self.arm = arm
        self.shown = torch.nn.Parameter(START * torch.eye(K))
        self.rank = torch.nn.Parameter(torch.zeros(K))
        self.weight = torch.nn.Parameter(torch.zeros(K))

    def forward(self, places: Tensor, evidence: Tensor) -> Tensor:
        """`places` (B, K) int64 are where the candidates, in incoming order, are shown."""
        scores = self.shown.T[places].transpose(1, 2) + self.weight[:, None] * evidence[:, None]
        return scores + self.rank if self.arm.shuffled else scores


def answer(scores: Tensor, *, constrained: bool, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
    """Candidates (B, K) int64 slot by slot, the likeliest ones without a generator; and their log-probability (B,)."""
    taken = torch.zeros(len(scores), scores.shape[-1], dtype=torch.bool)
    chosen, total = [], torch.zeros(len(scores))
    for slot in range(scores.shape[1]):
        logits = scores[:, slot].masked_fill(taken, -torch.inf) if constrained else scores[:, slot]
        log_probs = logits.log_softmax(-1)
        likely = log_probs.detach()
        pick = likely.argmax(-1) if generator is None else torch.multinomial(likely.exp(), 1, generator=generator)[:, 0]
        total = total + log_probs.gather(-1, pick[:, None])[:, 0]
        taken = taken | torch.nn.functional.one_hot(pick, taken.shape[-1]).bool()
        chosen.append(pick)
    return torch.stack(chosen, 1), total


def train_places(arm: Arm, *, seed: int = 0, steps: int = STEPS) -> tuple[pa.Table, NDArray[np.int64], float]:
    """Figures of each step (see `monitor`), the target's ranks (R,) in the test lists, and the share that is valid.

    A refused answer leaves the incoming order.
    """
    lists, test = lists_of("train"), lists_of("test")
    rng, generator = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    policy = Places(arm)
    optimizer = torch.optim.Adam(policy.parameters(), lr=RATE)
    history = []
    for _ in range(steps):
        tasks = rng.choice(len(lists.target), GROUPS, replace=False)
        order = _orders(arm, rng)
        rows = np.repeat(np.arange(GROUPS), SAMPLES)
        scores = policy(torch.from_numpy(np.argsort(order, 1)), torch.from_numpy(lists.evidence[tasks]))[rows]
        chosen, log_probs = answer(scores, constrained=arm.constrained, generator=generator)
        outcomes = [
            _outcome(arm.reward, tuple(each), tuple(order[row].tolist()), int(lists.target[tasks[row]]))
            for row, each in zip(rows.tolist(), chosen.tolist(), strict=True)
        ]
        history.append(monitor(outcomes))
        groups = [
            [Rollout((), (0,), (None,), each.reward) for each in outcomes[first : first + SAMPLES]]
            for first in range(0, len(outcomes), SAMPLES)
        ]
        weights = np.concatenate([advantages(group) * has_signal(group) for group in groups])
        loss = -(log_probs * torch.from_numpy(weights)).mean()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    with torch.no_grad():
        same = torch.arange(K).expand(len(test.target), K)
        chosen, _ = answer(policy(same, torch.from_numpy(test.evidence)), constrained=arm.constrained, generator=None)
    valid = np.array([len(set(each)) == K for each in chosen.tolist()])
    found = (chosen.numpy() == test.target[:, None]).argmax(1)
    names = sorted({name for entry in history for name in entry})
    table = pa.table({name: pa.array([entry.get(name) for entry in history], pa.float64()) for name in names})
    return table, np.where(valid, found, test.target) + 1, float(valid.mean())


def _orders(arm: Arm, rng: np.random.Generator) -> NDArray[np.int64]:
    """(GROUPS, K) the candidates' places in the incoming order as the prompts list them."""
    return np.stack([rng.permutation(K) if arm.shuffled else np.arange(K) for _ in range(GROUPS)])


def _outcome(rewarded: Reward, chosen: tuple[int, ...], shown_as: tuple[int, ...], target: int) -> Outcome:
    ranking = chosen if len(set(chosen)) == len(chosen) else None
    grades = one_positive(target, len(chosen))
    return Outcome(ranking, shown_as, grades, rewarded(ranking, grades))
