"""Every figure of reinforcement learning, one line each: `python -m benchmarks.rl.show`.

Trainings on Beauty are read from docs/results/; the rest runs now.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from benchmarks.results import Figure, Record
from benchmarks.show import show
from benchmarks.spine.show import judged_tests
from gr2.training.policy.rewards import REWARDS, one_positive

__all__ = ["main"]

STORED = {
    "rl.places": "make rl",
    "rl.hacking": "make rl",
    "rl.quality": "make rl",
    "rl.distillation": "make rl",
    "rl.bypass": "make rl",
    "rl.compressor": "make rl-compressor",
}
TESTS = {
    "rewards: no order that ignores the history is paid more than the incoming one (hypothesis)": [
        "tests/training/policy/test_rewards.py",
    ],
    "DAPO's gradient equals a brute-force policy gradient over all answers of a toy": [
        "tests/training/policy/test_dapo.py", "-k", "brute or gradient",
    ],
    "log-probabilities of constrained tokens are those that they were sampled with": ["tests/models/test_policy.py"],
    "DAPO's loss is clipped higher, a mean over tokens, of redrawn groups; OPD's divergence is weighed beside it": [
        "tests/training/policy/test_dapo.py", "tests/training/policy/test_rollouts.py",
        "-k", "loss or redrawn or redraws or updates or advantages",
    ],
    "lists of several positives are learnt from by AUC and graded NDCG, and judged by them": [
        "tests/training/test_rl.py", "tests/training/policy/test_list_rollouts.py", "-k", "several",
    ],
    "SIGKILL in rl, opd, bypass or compress, or an interrupt, then again: the same weights, figures and ranks": [
        "tests/training/test_rl.py", "tests/training/test_opd.py", "tests/training/test_bypass.py",
        "tests/training/test_compress.py", "-k", "kill or clock",
    ],
    "a policy that copies is ended; monitors": [
        "tests/training/policy/test_monitors.py", "tests/training/test_rl.py", "-k", "monitor or copies or figures",
    ],
    "on-policy distillation comes close to a teacher of another size": ["tests/training/test_opd.py"],
    "what the model reads does not depend on the target": [
        "tests/training/policy/test_list_rollouts.py", "tests/training/reasoner/test_reranking.py",
        "-k", "depend_on_the_target",
    ],
}  # fmt: skip
WIDTH = 10
# Where the target of Beauty's lists comes in is much like this.
SHARE = np.array([0.19, 0.14, 0.13, 0.11, 0.09, 0.08, 0.07, 0.07, 0.06, 0.06])


def blind_table() -> dict[str, Any]:
    """What each reward pays, on average, for orders that do not look at the history."""
    places = list(range(WIDTH))
    orders = {
        "the incoming order": places,
        "the last two swapped": [*places[:-2], places[-1], places[-2]],
        "the second sent to the end": [places[0], *places[2:], places[1]],
        "the first sent to the end": [*places[1:], places[0]],
        "reversed": places[::-1],
    }
    rows = []
    for name, reward in REWARDS.items():
        paid = [
            sum(share * reward(order, one_positive(target, WIDTH)) for target, share in enumerate(SHARE))
            for order in orders.values()
        ]
        best = max(range(len(paid)), key=paid.__getitem__)
        verdict = "the incoming order" if paid[best] <= paid[0] + 1e-12 else list(orders)[best]
        rows.append([name, *(f"{value:+.4f}" for value in paid), verdict])
    return {
        "title": "the mean reward of orders that ignore the history, where targets come in as on Beauty",
        "columns": ["reward", *orders, "pays most for"],
        "rows": rows,
    }


def copying() -> Figure:
    """The most that any order of a small slate earns above the incoming order, over every order."""
    width = 6
    share = SHARE[:width] / SHARE[:width].sum()
    default = REWARDS["default"]
    best = max(
        sum(part * default(order, one_positive(target, width)) for target, part in enumerate(share))
        for order in itertools.permutations(range(width))
    )
    what = f"default reward: the best of all {width}! orders that ignore the history, above the incoming order"
    return Figure.judge(what, float(best), 1e-12, at_most=True)


def checks() -> Record:
    """What runs now."""
    figures = [copying(), *(judged_tests(what, "all pass", *arguments) for what, arguments in TESTS.items())]
    return Record("rl.checks", "Checks of reinforcement learning", "make show-rl", figures, [blind_table()])


def main() -> None:
    """Print one line a figure, store the fresh ones, and exit with 1 if a figure is short."""
    show("rl", "reinforcement learning", stored=STORED, measures=[("checks of reinforcement learning", checks)])


if __name__ == "__main__":
    main()
