from __future__ import annotations

import pytest

from gr2.models.reasoner import Reasoner, SidSpec, from_scratch
from gr2.prompts.context import line_cost
from gr2.prompts.render import ItemView, PromptConfig, Slate
from gr2.training.compression.quality import KINDS, simple_contexts

ITEMS = [ItemView((number % 4, number // 4), f"item {number}", ("Bath",)) for number in range(12)]
SLATES = [Slate(tuple(ITEMS[:8]), tuple(ITEMS[8:])), Slate(tuple(ITEMS[2:4]), tuple(ITEMS[8:]))]
PLACES = [(3, 8), (5, 2)]


@pytest.fixture(scope="module")
def reasoner() -> Reasoner:
    return from_scratch("tiny", ["item Bath"], SidSpec(2, 4, "toy"), vocabulary=320, seed=0)


@pytest.mark.parametrize("ids_only", [False, True])
def test_contexts_made_without_a_model_keep_to_their_share(reasoner: Reasoner, ids_only: bool) -> None:
    def count(text: str) -> int:
        return len(reasoner.encode(text))

    found = dict(simple_contexts(reasoner, SLATES, PLACES, PromptConfig(), 0.5, ids_only=ids_only))
    assert list(found) == [kind for kind in KINDS if kind not in ("whole", "compressed")]
    for kind, contexts in found.items():
        assert list(contexts.found) == PLACES
        for context in contexts.found.values():
            assert context.after == sum(line_cost(line, count) for line in context.lines)
            assert context.after <= 0.5 * context.before
            assert bool(context.lines) == (kind != "empty")
    if ids_only:
        assert found["newest"].found == found["truncated"].found
