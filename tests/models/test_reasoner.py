import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from gr2.errors import ArtifactError, ConfigError
from gr2.models.reasoner import Reasoner, SidSpec, extend, from_scratch
from gr2.models.scratch import scratch_model, scratch_tokenizer
from gr2.prompts.semantic_id import sid_text

SIDS = SidSpec(levels=3, level_size=8, codebook="f00d")
TEXTS = ["Rose water soap, 200 ml", "Herbal shampoo for dry hair"]
CHAT = [{"role": "system", "content": "Rank."}, {"role": "user", "content": f"Soap {sid_text((1, 2, 3))}"}]


@pytest.fixture(scope="module")
def reasoner():
    return from_scratch("tiny", TEXTS, SIDS, vocabulary=400, seed=1)


def untied(tokenizer, rows):
    config = Qwen3Config(
        vocab_size=rows,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        tie_word_embeddings=False,
    )
    return Qwen3ForCausalLM(config)


def test_an_item_is_one_token_a_level_between_markers(reasoner):
    ids = reasoner.encode(sid_text((1, 2, 3)) + sid_text((7, 0, 4)))
    assert ids == reasoner.item_tokens(np.array([[1, 2, 3], [7, 0, 4]], dtype=np.uint16)).reshape(-1).tolist()
    assert ids[1:4] == [int(reasoner.vocabulary.tokens[level, code]) for level, code in enumerate((1, 2, 3))]


def test_ids_survive_decoding_without_special_tokens(reasoner):
    text = f"Soap {sid_text((1, 2, 3))}"
    assert reasoner.tokenizer.decode(reasoner.encode(text), skip_special_tokens=True) == text


def test_an_answer_goes_on_where_the_prompt_ends(reasoner):
    prompt = reasoner.encode_chat(CHAT)
    whole = reasoner.encode_chat(CHAT, answer='{"a": 1}')
    assert whole == [*prompt, *reasoner.encode('{"a": 1}'), reasoner.vocabulary.eos]
    text = reasoner.tokenizer.decode(whole)
    assert text.endswith('<|im_start|>assistant\n{"a": 1}<|im_end|>')


def test_what_is_saved_is_what_is_loaded(reasoner, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    reasoner.save(tmp_path)
    loaded = Reasoner.load(tmp_path, sids=SIDS)
    assert loaded.encode_chat(CHAT, answer="x") == reasoner.encode_chat(CHAT, answer="x")
    ids = torch.tensor([loaded.encode_chat(CHAT)])
    with torch.no_grad():
        assert torch.equal(loaded.model(ids).logits, reasoner.model.eval()(ids).logits)
    assert loaded.model.generation_config.eos_token_id == loaded.vocabulary.eos


@pytest.mark.parametrize("change", [{"codebook": "beef"}, {"levels": 2}, {"level_size": 16}])
def test_ids_of_another_meaning_are_refused(reasoner, tmp_path, change):
    reasoner.save(tmp_path)
    with pytest.raises(ArtifactError, match="semantic IDs are"):
        Reasoner.load(tmp_path, sids=replace(SIDS, **change))


def test_another_tokenizer_is_refused(reasoner, tmp_path):
    reasoner.save(tmp_path)
    from_scratch("tiny", ["other words altogether"] * 9, SIDS, vocabulary=400).tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ArtifactError, match="vocabulary is not the one"):
        Reasoner.load(tmp_path)


@pytest.mark.parametrize("text", ["", "{}", '{"levels": 3}'])
def test_a_damaged_record_is_refused(reasoner, tmp_path, text):
    reasoner.save(tmp_path)
    (tmp_path / "gr2_reasoner.json").write_text(text)
    with pytest.raises(ArtifactError, match="not the record of a reasoner"):
        Reasoner.load(tmp_path)


def test_a_record_that_promises_more_tokens_than_there_are_is_refused(reasoner, tmp_path):
    reasoner.save(tmp_path)
    path = tmp_path / "gr2_reasoner.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "level_size": 9}))
    with pytest.raises(ArtifactError, match="no token '<s_a_8>'"):
        Reasoner.load(tmp_path)


@pytest.mark.parametrize("spare", [0, 100])
@pytest.mark.parametrize("tied", [True, False])
def test_extending_adds_rows_near_the_mean_and_leaves_the_others(tied, spare):
    tokenizer = scratch_tokenizer(TEXTS * 5, 320)
    model = scratch_model("tiny", tokenizer, seed=0) if tied else untied(tokenizer, len(tokenizer) + spare)
    known = len(tokenizer)
    before = model.get_output_embeddings().weight[:known].detach().clone()
    extended = extend(model, tokenizer, SIDS, seed=3)
    after = model.get_output_embeddings().weight.detach()
    assert torch.equal(after[:known], before)
    fresh = after[extended.new_tokens]
    assert len(fresh) == 2 + 3 * 8
    assert len(torch.unique(fresh, dim=0)) == len(fresh)
    assert ((fresh - before.mean(0)).abs() < before.std(0)).all()
    assert (model.get_input_embeddings().weight is model.get_output_embeddings().weight) == tied


def test_an_extended_model_saves_and_loads(tmp_path):
    tokenizer = scratch_tokenizer(TEXTS * 5, 320)
    extended = extend(untied(tokenizer, len(tokenizer)), tokenizer, SIDS)
    extended.save(tmp_path)
    assert (Reasoner.load(tmp_path, sids=SIDS).vocabulary.tokens == extended.vocabulary.tokens).all()


def test_a_tokenizer_without_a_template_gets_chatml():
    tokenizer = scratch_tokenizer(TEXTS * 5, 320)
    tokenizer.chat_template = None
    extended = extend(scratch_model("tiny", tokenizer, seed=0), tokenizer, SIDS)
    assert extended.tokenizer.decode(extended.encode_chat(CHAT)).startswith("<|im_start|>system\nRank.<|im_end|>")
    assert extended.tokenizer.convert_ids_to_tokens(extended.vocabulary.eos) == "<|im_end|>"


def test_a_template_that_ends_turns_its_own_way_decides_the_end_of_an_answer():
    tokenizer = scratch_tokenizer(TEXTS * 5, 320)
    tokenizer.chat_template = "{% for message in messages %}<|endoftext|>{{ message['content'] }}{% endfor %}"
    reasoner = extend(scratch_model("tiny", tokenizer, seed=0), tokenizer, SIDS)
    assert reasoner.vocabulary.eos == tokenizer.eos_token_id


def test_a_vocabulary_too_small_for_ids_and_text_is_refused():
    with pytest.raises(ConfigError, match="vocabulary 200, less 26 tokens of semantic IDs"):
        from_scratch("tiny", TEXTS, SIDS, vocabulary=200)
