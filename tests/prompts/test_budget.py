import pytest

from gr2.models.scratch import scratch_tokenizer
from gr2.prompts.budget import estimated_tokens
from gr2.prompts.render import ItemView, PromptConfig, Slate, render
from gr2.prompts.semantic_id import BEGIN, END, level_tokens

TITLES = (
    "Dove Nourishing Body Wash, 18 oz (Pack of 2)",
    "KÉRASTASE Elixir Ultime 125ml/4.2fl.oz.",
    "資生堂 洗顔フォーム",
    None,
)


def slate(events):
    items = [ItemView((code % 8, 1, 2), TITLES[code % 4], ("Beauty", "Skin Care")) for code in range(events + 10)]
    return Slate(tuple(items[:events]), tuple(items[events:]))


@pytest.mark.parametrize("config", [PromptConfig(), PromptConfig(reasoning=False, incoming_rank=True, title_words=3)])
def test_no_fewer_tokens_are_estimated_than_a_small_vocabulary_makes(config):
    tokenizer = scratch_tokenizer(
        [*filter(None, TITLES), *(m["content"] for m in render(slate(3), config).messages)], 600
    )
    tokenizer.add_tokens([BEGIN, END, *(name for level in level_tokens(3, 8) for name in level)])
    for events in (0, 1, 12):
        messages = render(slate(events), config).messages
        counted = len(tokenizer.apply_chat_template(list(messages), add_generation_prompt=True)["input_ids"])
        assert counted <= estimated_tokens(messages) < 2.5 * counted


def test_history_goes_by_the_estimate():
    prompt = render(slate(12), PromptConfig(budget=600), estimated_tokens)
    assert estimated_tokens(prompt.messages) <= 600
    assert prompt.dropped > 0
