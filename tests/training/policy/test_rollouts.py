from __future__ import annotations

import numpy as np
import pytest

from gr2.training.policy.rollouts import Rollout, advantages


def test_advantages_are_what_a_reward_is_above_its_groups_mean() -> None:
    group = [Rollout([1], [2], [None], reward) for reward in (0.0, 2.0, 7.0)]
    assert advantages(group, "none").tolist() == [-3.0, -1.0, 4.0]
    deviation = float(np.std([0.0, 2.0, 7.0], ddof=1))
    assert advantages(group).tolist() == pytest.approx([-3 / deviation, -1 / deviation, 4 / deviation], rel=1e-4)


def test_tokens_outside_of_their_set_are_refused() -> None:
    with pytest.raises(ValueError, match="token 1 is 7"):
        Rollout([1], [3, 7], [None, np.array([5, 6])], 0.0)
