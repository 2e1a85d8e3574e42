import json

import pytest
import torch

from gr2.errors import ArtifactError
from gr2.models.pretrained import load_pretrained
from gr2.models.scratch import scratch_model, scratch_tokenizer


@pytest.fixture
def folder(tmp_path):
    tokenizer = scratch_tokenizer(["a soap that smells of roses"], 300)
    tokenizer.save_pretrained(tmp_path)
    scratch_model("tiny", tokenizer, seed=3).save_pretrained(tmp_path, max_shard_size="20KB")
    return tmp_path


def test_a_sharded_folder_is_loaded_by_path_without_the_network(folder, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert len(list(folder.glob("model-*.safetensors"))) > 1
    model, tokenizer = load_pretrained(folder)
    expected = scratch_model("tiny", tokenizer, seed=3).state_dict()
    assert expected.keys() == model.state_dict().keys()
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())
    assert not model.training


def test_a_name_of_the_hub_is_no_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ArtifactError, match=r"no config\.json"):
        load_pretrained(tmp_path / "Qwen" / "Qwen3-0.6B")


def test_weights_that_are_pickled_are_refused(folder):
    weights = load_pretrained(folder)[0].state_dict()
    for shard in folder.glob("model*"):
        shard.unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    with pytest.raises(ArtifactError, match="safetensors"):
        load_pretrained(folder)


def test_a_model_that_brings_its_own_code_is_refused(folder):
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model"}
    config["model_type"] = "own"
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "code.py").write_text("raise SystemExit('ran')")
    with pytest.raises(ArtifactError, match="trust_remote_code"):
        load_pretrained(folder)


def test_a_shard_that_is_missing_is_named(folder):
    sorted(folder.glob("model-*.safetensors"))[0].unlink()
    with pytest.raises(ArtifactError, match="model-00001"):
        load_pretrained(folder)
