"""What a re-ranking is paid, and that no order which ignores the history is paid for it."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from gr2.training.policy import rewards


def mean_reward(name: rewards.RewardName, share: NDArray[np.float64], ranking: Sequence[int]) -> float:
    """Expected reward of one order for all slates, where the target stands at place p in `share[p]` of them."""
    return float(
        sum(
            weight * rewards.REWARDS[name](ranking, rewards.one_positive(target, len(share)))
            for target, weight in enumerate(share)
        )
    )


def blind_orders(width: int) -> dict[str, list[int]]:
    """Orders that do not look at the history."""
    places = list(range(width))
    orders = {"identity": places, "reversal": places[::-1]}
    for place in range(width):
        orders[f"promote {place}"] = [place, *places[:place], *places[place + 1 :]]
    for place in range(width - 1):
        orders[f"swap {place}"] = [*places[:place], place + 1, place, *places[place + 2 :]]
    return orders


def shares(width: int, seed: int) -> NDArray[np.float64]:
    """Where a pre-ranker's target stands: never more often at a lower rank than at a higher one."""
    return np.sort(np.random.default_rng(seed).dirichlet(np.ones(width)))[::-1]


@given(width=st.integers(2, 12), seed=st.integers(0, 2**32))
def test_no_blind_order_is_paid_more_than_the_incoming_order(width: int, seed: int) -> None:
    for share in (shares(width, seed), np.full(width, 1 / width)):
        honest = mean_reward("default", share, range(width))
        assert honest == 0
        for name, order in blind_orders(width).items():
            assert mean_reward("default", share, order) <= honest + 1e-12, name


@given(name=st.sampled_from(["auc", "ndcg"]), width=st.integers(2, 12), seed=st.integers(0, 2**32))
def test_rewards_for_several_positives_pay_no_blind_order_more_than_the_incoming_order(
    name: rewards.RewardName, width: int, seed: int
) -> None:
    share = shares(width, seed)
    honest = mean_reward(name, share, range(width))
    for other, order in blind_orders(width).items():
        assert mean_reward(name, share, order) <= honest + 1e-12, other


@given(width=st.integers(2, 6), seed=st.integers(0, 2**32))
def test_a_random_order_is_paid_no_more_than_the_incoming_order(width: int, seed: int) -> None:
    orders = list(itertools.permutations(range(width)))
    mean = np.mean([mean_reward("default", shares(width, seed), order) for order in orders])
    assert mean <= 1e-12


@given(width=st.integers(2, 12), seed=st.integers(0, 2**32))
def test_balanced_weights_make_every_blind_order_earn_nothing(width: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    targets = np.concatenate([np.arange(width), rng.choice(width, 50, p=rng.dirichlet(np.ones(width)))])
    weights = rewards.balance_weights(targets, width)
    for name, order in blind_orders(width).items():
        total = sum(weights[target] * rewards.default(order, target) for target in targets.tolist())
        assert abs(total) < 1e-9 * len(targets), name


def test_balanced_weights_are_one_on_average_over_the_lists() -> None:
    targets = np.array([0, 0, 0, 2, 2, 4])
    weights = rewards.balance_weights(targets, 5)
    assert weights.tolist() == pytest.approx([6 / 9, 0, 1, 0, 2])
    assert weights[targets].mean() == pytest.approx(1.0)


def test_the_unconditional_reward_pays_for_copying() -> None:
    assert mean_reward("unconditional", shares(10, 0), range(10)) == pytest.approx(rewards.FORMAT_BONUS)


def test_the_conditional_reward_pays_a_gambler_more_than_the_incoming_order() -> None:
    share = np.full(10, 0.1)
    honest = mean_reward("conditional", share, range(10))
    assert mean_reward("conditional", share, blind_orders(10)["swap 8"]) > honest
    assert mean_reward("conditional", share, blind_orders(10)["reversal"]) > honest


def test_the_identity_gate_denies_a_copy_its_ndcg_and_one_swap_escapes_it() -> None:
    gains = [0, 0, 1, 0]
    assert rewards.ndcg([0, 1, 2, 3], gains) == 0.5
    assert rewards.identity_gate([0, 1, 2, 3], gains) == rewards.FORMAT_BONUS
    assert rewards.identity_gate([1, 0, 2, 3], gains) == pytest.approx(0.5 + rewards.FORMAT_BONUS)
    assert rewards.identity_gate([2, 0, 1, 3], gains) == pytest.approx(1 + rewards.FORMAT_BONUS)
    assert rewards.identity_gate(None, gains) == 0


@pytest.mark.parametrize("gains", [[2, 1, 0], [1, 1, 0], [2, 0, 0]])
def test_a_perfect_incoming_order_passes_the_identity_gate(gains: list[int]) -> None:
    assert rewards.identity_gate([0, 1, 2], gains) == pytest.approx(1 + rewards.FORMAT_BONUS)
    assert rewards.identity_gate([0, 1, 2], gains[::-1]) == rewards.FORMAT_BONUS


def test_the_identity_gate_pays_a_swap_of_the_last_two_more_than_the_incoming_order() -> None:
    share = shares(10, 0)
    swapped = mean_reward("identity_gate", share, blind_orders(10)["swap 8"])
    assert swapped > mean_reward("identity_gate", share, range(10)) + 0.1


@given(name=st.sampled_from(["auc", "ndcg"]), width=st.integers(2, 7), seed=st.integers(0, 2**32), data=st.data())
def test_slates_of_several_positives_pay_no_blind_order_more_than_the_incoming_order(
    name: rewards.RewardName, width: int, seed: int, data: st.DataObject
) -> None:
    """Slates whose positives are no better at a lower rank than at a higher one, on average over the slates."""
    rng = np.random.default_rng(seed)
    graded = [rng.integers(0, 3, width) for _ in range(4)]
    graded = [each for each in graded if each.any() and not each.all()] or [np.eye(width, dtype=np.int64)[0]]
    first, *others = graded
    slates = [np.sort(first)[::-1], *(np.roll(each, place) for each in others for place in range(width))]
    orders = [*blind_orders(width).values(), data.draw(st.permutations(range(width)))]
    paid = [np.mean([rewards.REWARDS[name](order, slate.tolist()) for slate in slates]) for order in orders]
    assert max(paid) <= paid[0] + 1e-12


def test_every_positive_counts_for_the_graded_rewards_and_the_best_for_the_others() -> None:
    grades = [0, 1, 0, 2, 2]
    assert rewards.best_of(grades) == 3
    lifted = [1, 0, 2, 3, 4]
    for name in rewards.REWARDS:
        paid, copied = (rewards.REWARDS[name](order, grades) for order in (lifted, range(5)))
        assert (paid > copied) == (name in rewards.GRADED), name
    assert rewards.REWARDS["default"]([3, 0, 1, 2, 4], grades) == 3 / 5
    assert rewards.REWARDS["auc"](lifted, grades) == pytest.approx(2 / 6)


def test_promotion_is_the_share_of_the_slate_that_the_target_rose() -> None:
    assert rewards.promotion([3, 0, 1, 2], 3) == 3 / 4
    assert rewards.promotion([1, 2, 3, 0], 0) == -3 / 4
    assert rewards.promotion([0, 1, 2, 3], 2) == 0


def test_the_conditional_bonus_needs_a_rise_or_a_first_that_stays() -> None:
    assert rewards.conditional([0, 1, 2], 0) == pytest.approx(0.2)
    assert rewards.conditional([0, 1, 2], 1) == 0
    assert rewards.conditional([1, 0, 2], 1) == pytest.approx(1 / 3 + 0.2)
    assert rewards.conditional([1, 0, 2], 0) == pytest.approx(-1 / 3)


@pytest.mark.parametrize("name", ["default", "conditional", "auc", "ndcg"])
def test_an_answer_that_does_not_parse_is_worth_less_than_any_that_does(name: rewards.RewardName) -> None:
    slates = [rewards.one_positive(target, 4) for target in range(4)]
    worst = min(rewards.REWARDS[name](order, slate) for order in itertools.permutations(range(4)) for slate in slates)
    assert rewards.REWARDS[name](None, slates[0]) == rewards.INVALID < worst


@given(st.permutations(range(6)), st.lists(st.integers(0, 2), min_size=6, max_size=6))
def test_auc_counts_pairs(ranking: list[int], gains: list[int]) -> None:
    pairs = [(a, b) for a in range(6) for b in range(6) if gains[a] > 0 == gains[b]]
    if not pairs:
        with pytest.raises(ValueError, match="no pair"):
            rewards.auc(ranking, gains)
        return
    right = sum(ranking.index(a) < ranking.index(b) for a, b in pairs)
    assert rewards.auc(ranking, gains) == pytest.approx(right / len(pairs))


@given(st.permutations(range(5)), st.lists(st.integers(0, 2), min_size=5, max_size=5).filter(any))
def test_ndcg_is_one_for_a_best_order_only(ranking: list[int], gains: list[int]) -> None:
    value = rewards.ndcg(ranking, gains)
    ordered = [gains[place] for place in ranking]
    assert (value == pytest.approx(1)) == (ordered == sorted(gains, reverse=True))
    assert 0 < value <= 1 + 1e-12
    assert rewards.ndcg_gain(range(5), gains) == 0


def test_ndcg_discounts_gains_of_two_to_the_grade_less_one_by_the_logarithm_of_the_rank() -> None:
    best = 3 + 1 / np.log2(3)
    assert rewards.ndcg([2, 1, 0], [1, 0, 2]) == pytest.approx((3 + 1 / np.log2(4)) / best)
    assert rewards.ndcg([1, 0, 2], [1, 0, 2]) == pytest.approx((1 / np.log2(3) + 3 / np.log2(4)) / best)
    assert rewards.ndcg_gain([2, 1, 0], [1, 0, 2]) == pytest.approx((3 + 0.5 - 1 - 3 / 2) / best)


def test_a_slate_without_a_positive_has_no_ndcg() -> None:
    with pytest.raises(ValueError, match="no ideal order"):
        rewards.ndcg([0, 1], [0, 0])


@pytest.mark.parametrize("targets", [[], [3], [-1]])
def test_balance_weights_refuse_places_outside_the_slate(targets: list[int]) -> None:
    with pytest.raises(ValueError, match="places 0 to 2"):
        rewards.balance_weights(np.array(targets, dtype=np.int64), 3)


@pytest.mark.parametrize(("length", "expected"), [(0, 0.0), (6, 0.0), (8, -0.5), (10, -1.0), (12, -1.0)])
def test_overlong_explanations_are_paid_less_the_longer_they_are(length: int, expected: float) -> None:
    assert rewards.overlong(length, 10, 4) == expected
    assert rewards.overlong(length, 10, 0) == 0.0


def test_named_rewards_pay_what_the_format_is_worth() -> None:
    for name in ("unconditional", "conditional", "identity_gate"):
        assert rewards.reward(name, 0.7)([1, 0], [0, 1]) - rewards.reward(name, 0.0)([1, 0], [0, 1]) == pytest.approx(
            0.7
        )
    assert rewards.reward("default", 0.7)([1, 0], [0, 1]) == rewards.promotion([1, 0], 1)


def test_of_one_positive_auc_is_a_shifted_promotion_and_ndcg_prefers_the_top() -> None:
    for target, order in itertools.product(range(4), itertools.permutations(range(4))):
        shifted = (rewards.promotion(order, target) * 4 + 3 - target) / 3
        assert rewards.REWARDS["auc"](order, rewards.one_positive(target, 4)) == pytest.approx(shifted)
    to_the_top = rewards.REWARDS["ndcg"]([1, 0, 2, 3], [0, 1, 0, 0])
    in_the_middle = rewards.REWARDS["ndcg"]([0, 2, 1, 3], [0, 0, 1, 0])
    assert to_the_top > in_the_middle > 0
    assert rewards.REWARDS["ndcg"]([0, 1, 2, 3], [0, 0, 1, 0]) == 0


def test_an_explanation_shorter_than_the_cache_is_paid_less_from_its_first_token_on() -> None:
    assert [rewards.overlong(length, 4, 40) for length in (0, 1, 4)] == [0.0, -0.25, -1.0]


def test_where_there_is_no_explanation_none_is_too_long() -> None:
    assert rewards.overlong(0, 0, 40) == 0.0
