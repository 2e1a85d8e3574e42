import pytest
from transformers import BloomConfig, BloomForCausalLM

from gr2.errors import ConfigError
from gr2.models.scratch import scratch_model, scratch_tokenizer
from gr2.training.loop.capacity import context_length, refuse_long_prompts


@pytest.fixture(scope="module")
def model():
    return scratch_model("tiny", scratch_tokenizer(["some words"], 300), context=600, seed=0)


def test_a_prompt_and_its_answer_must_fit(model):
    refuse_long_prompts(model, budget=500, answer=100)
    with pytest.raises(
        ConfigError, match=r"up to 501 tokens .* 100 make 601, more than the 600 .*budget to at most 500"
    ):
        refuse_long_prompts(model, budget=501, answer=100)
    with pytest.raises(ConfigError, match="lower max_reasoning or list_size"):
        refuse_long_prompts(model, budget=1, answer=600)


def test_a_model_without_positions_reads_any_length():
    model = BloomForCausalLM(BloomConfig(vocab_size=64, hidden_size=32, n_layer=1, n_head=2))
    assert context_length(model) is None
    refuse_long_prompts(model, budget=10**6, answer=1)
