import pytest

from gr2.models.reasoner import SidSpec, from_scratch
from gr2.prompts.answer import answer_text
from gr2.prompts.render import ItemView, PromptConfig, Slate, render

TEXTS = [
    answer_text('They bought oil, then "soap".', [(1, 2)]),
    answer_text("Back\\slash (and more)", [(1, 2)]),
    answer_text(None, [(1, 2)]),
]


def slate_of_sizes(events, candidates, first=0):
    """A slate whose items all differ."""

    def item(number):
        return ItemView((number % 8, number // 8 % 8, 3), f"Item {number}", ("Hair", "Oil"))

    items = [item(5 * number + first) for number in range(events + candidates)]
    return Slate(tuple(items[:events]), tuple(items[events:]))


@pytest.fixture(scope="session")
def tiny_reasoner():
    """An untrained reasoner of three levels of eight codes whose tokens cross the borders of an explanation."""
    reasoner = from_scratch("tiny", TEXTS * 9, SidSpec(3, 8, "f00d"), vocabulary=420, seed=1)
    # Rows of larger numbers: a fresh model is too even for its choices to mean anything.
    reasoner.model.get_input_embeddings().weight.data.mul_(20.0)
    reasoner.model.eval()
    return reasoner


@pytest.fixture(scope="session")
def asked():
    """Prompts and slates of several sizes."""
    slates = [slate_of_sizes(3, 5), slate_of_sizes(0, 2, 7), slate_of_sizes(6, 4, 11), slate_of_sizes(1, 1, 3)]
    return [render(slate, PromptConfig(max_history=4)) for slate in slates], slates
