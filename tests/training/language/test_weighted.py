"""The weighted loss against sums by hand and against TRL's own, and a training that is killed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields, make_dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from gr2.errors import ArtifactError, ConfigError, Gr2Error
from gr2.training.language.weighted import PROMPT, RANKING, REASONING, Collator, Example, Recipe, weighted_trainer
from gr2.training.loop.resumable import checkpointing, epoch_means, tracker_callbacks

WORDS = 64
RECIPE = Recipe(
    reasoning_weight=0.3,
    ranking_weight=1.0,
    epochs=2,
    batch=8,
    accumulate=1,
    learning_rate=1e-2,
    weight_decay=0.0,
    warmup=0.1,
    clip=1.0,
    lora_rank=0,
    activation_checkpointing=False,
    checkpoint_seconds=1e9,
    tracker="none",
)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def tokenizer() -> PreTrainedTokenizerFast:
    words = {"<pad>": 0, "<eos>": 1, **{f"w{number}": number for number in range(2, WORDS)}}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="<pad>")), pad_token="<pad>", eos_token="<eos>"
    )


def model(seed: int = 0, layers: int = 1) -> Qwen3ForCausalLM:
    torch.manual_seed(seed)
    sizes = {"hidden_size": 16, "num_hidden_layers": layers, "num_attention_heads": 2, "num_key_value_heads": 2}
    tokens = {"bos_token_id": None, "eos_token_id": 1, "pad_token_id": 0}
    config = Qwen3Config(
        vocab_size=WORDS, head_dim=8, intermediate_size=32, max_position_embeddings=128, tie_word_embeddings=True,
        **sizes, **tokens,
    )  # fmt: skip
    return Qwen3ForCausalLM(config)


def examples(count: int = 24, seed: int = 0) -> list[Example]:
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        sizes = [rng.integers(4, 16), rng.integers(3, 8), rng.integers(2, 6)]
        parts = np.repeat([PROMPT, REASONING, RANKING], sizes).astype(np.int8)
        made.append(Example(rng.integers(2, WORDS, len(parts)), parts))
    return made


def loss_by_hand(net: Qwen3ForCausalLM, batch: Sequence[Example], weights: Sequence[float]) -> float:
    """One sequence at a time, all logits, one token at a time."""
    total = whole = 0.0
    for each in batch:
        with torch.no_grad():
            scores = net(input_ids=torch.from_numpy(each.ids)[None]).logits[0].log_softmax(-1)
        for place in range(1, len(each.ids)):
            weight = weights[each.parts[place]]
            total -= weight * float(scores[place - 1, each.ids[place]])
            whole += weight
    return total / whole


@pytest.mark.parametrize("weights", [(0.3, 1.0), (1.0, 1.0), (0.0, 1.0), (1.0, 0.0)])
def test_loss_is_the_weighted_mean_over_the_answers_tokens(tmp_path: Path, weights: tuple[float, float]) -> None:
    net, batch = model(), examples(5)
    recipe = replace(RECIPE, reasoning_weight=weights[0], ranking_weight=weights[1])
    trainer = weighted_trainer(net, tokenizer(), batch, recipe, seed=0, checkpoints=tmp_path)
    inputs = Collator(batch, 0)([{"rows": [0, 1]}, {"rows": [2, 3, 4]}])
    assert trainer.compute_loss(net, inputs).item() == pytest.approx(
        loss_by_hand(net, batch, (0.0, *weights)), rel=1e-5
    )


def test_with_equal_weights_it_is_the_loss_of_trl(tmp_path: Path) -> None:
    net, batch = model(), examples(6)
    recipe = replace(RECIPE, reasoning_weight=1.0, ranking_weight=1.0)
    ours = weighted_trainer(net, tokenizer(), batch, recipe, seed=0, checkpoints=tmp_path)
    rows = {
        "input_ids": [each.ids.tolist() for each in batch],
        "labels": [np.where(each.parts == PROMPT, -100, each.ids).tolist() for each in batch],
    }
    arguments = SFTConfig(
        output_dir=str(tmp_path),
        bf16=False,
        use_cpu=True,
        activation_checkpointing=False,
        report_to=[],
        max_length=None,
    )
    theirs = SFTTrainer(model(), arguments, train_dataset=Dataset.from_dict(rows), processing_class=tokenizer())
    inputs = theirs.data_collator([{name: column[row] for name, column in rows.items()} for row in range(len(batch))])
    expected = theirs.compute_loss(theirs.model, dict(inputs)).item()
    assert ours.compute_loss(net, Collator(batch, 0)([{"rows": list(range(6))}])).item() == pytest.approx(expected)


def weights_of(net: torch.nn.Module) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in net.parameters()]


def test_a_step_is_the_same_however_it_is_divided(tmp_path: Path) -> None:
    batch = examples(16)
    trained = []
    for number, (size, accumulation) in enumerate([(8, 1), (2, 4)]):
        net = model()
        recipe = replace(RECIPE, epochs=1, batch=size, accumulate=accumulation, warmup=0.0, clip=1e9)
        trainer = weighted_trainer(net, tokenizer(), batch, recipe, seed=0, checkpoints=tmp_path / str(number))
        # The same eight examples in each step, in one batch or in four.
        rows = [list(range(first, first + size)) for first in range(0, 16, size)]
        trainer.train_dataset = Dataset.from_dict({"rows": rows})
        trainer.fit("sft")
        trained.append(net)
    for one, other in zip(*map(weights_of, trained), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_training_lowers_both_losses_and_leaves_one_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    trainer = weighted_trainer(
        model(),
        tokenizer(),
        examples(),
        replace(RECIPE, epochs=8, checkpoint_seconds=0.0),
        seed=0,
        checkpoints=tmp_path,
    )
    trainer.fit("fine-tuning")
    first, *_, last = epoch_means(trainer.history, 8)
    assert last["reasoning"] < first["reasoning"]
    assert last["ranking"] < first["ranking"]
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-24"]
    assert not list(tmp_path.rglob("training_args.bin"))
    shown = capsys.readouterr()
    assert "fine-tuning: 24/24 steps" in shown.err
    assert "tokens/s" in shown.err
    assert "it/s" not in shown.out + shown.err


def test_a_training_that_dies_anywhere_ends_as_if_it_had_not(
    tmp_path: Path, kill_at: Callable[[Callable[[], object], int], bool]
) -> None:
    recipe = replace(RECIPE, epochs=1, checkpoint_seconds=0.0)

    def train(folder: Path) -> tuple[list[torch.Tensor], object]:
        net = model()
        trainer = weighted_trainer(net, tokenizer(), examples(), recipe, seed=3, checkpoints=folder)
        trainer.fit("sft")
        return weights_of(net), trainer.history

    calm, history = train(tmp_path / "calm")
    for number in (12, 25, 40):
        folder = tmp_path / str(number)
        assert kill_at(lambda folder=folder: train(folder), number)
        again, again_history = train(folder)
        assert again_history == history, number
        assert all(map(torch.equal, calm, again)), number


@pytest.mark.parametrize("name", ["history.json", "model.safetensors", "optimizer.pt", "trainer_state.json"])
def test_a_damaged_checkpoint_is_named_and_not_gone_on_from(tmp_path: Path, name: str) -> None:
    weighted_trainer(model(), tokenizer(), examples(), RECIPE, seed=0, checkpoints=tmp_path).fit("sft")
    (path,) = tmp_path.glob(f"checkpoint-*/{name}")
    for damage in (lambda: path.write_bytes(path.read_bytes()[:-1]), path.unlink):
        damage()
        with pytest.raises(ArtifactError, match=r"delete .* to start again"):
            weighted_trainer(model(), tokenizer(), examples(), RECIPE, seed=0, checkpoints=tmp_path).fit("sft")


def test_another_models_checkpoint_is_refused(tmp_path: Path) -> None:
    weighted_trainer(model(), tokenizer(), examples(), RECIPE, seed=0, checkpoints=tmp_path).fit("sft")
    with pytest.raises(ArtifactError, match="of another model"):
        weighted_trainer(model(layers=2), tokenizer(), examples(), RECIPE, seed=0, checkpoints=tmp_path).fit("sft")


def test_a_loss_that_is_not_finite_ends_the_training(tmp_path: Path) -> None:
    net = model()
    net.base_model.norm.weight.data.fill_(float("nan"))
    trainer = weighted_trainer(net, tokenizer(), examples(), RECIPE, seed=0, checkpoints=tmp_path)
    with pytest.raises(Gr2Error, match=r"loss of step 1 is nan, .*lower \[sft\] learning_rate"):
        trainer.fit("sft")


# peft reads a name of transformers that has a new one.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_adapters_train_and_nothing_else_does(tmp_path: Path) -> None:
    net = model()
    before = {name: parameter.clone() for name, parameter in net.named_parameters()}
    recipe = replace(RECIPE, lora_rank=2, epochs=1)
    trainer = weighted_trainer(net, tokenizer(), examples(), recipe, seed=0, checkpoints=tmp_path)
    trainer.fit("sft")
    adapted = dict(trainer.model.named_parameters())
    assert any("lora_B" in name and parameter.abs().sum() > 0 for name, parameter in adapted.items())
    for name, parameter in adapted.items():
        if "lora_" not in name:
            plain = name.removeprefix("base_model.model.").replace(".base_layer", "")
            assert torch.equal(parameter, before[plain]), name


def test_tensorboard_gets_both_losses(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    recipe = replace(RECIPE, epochs=4, tracker="tensorboard")
    weighted_trainer(model(), tokenizer(), examples(), recipe, seed=0, checkpoints=tmp_path).fit("sft")
    read = EventAccumulator(str(tmp_path / "logs"))
    read.Reload()
    assert {"train/loss", "train/reasoning", "train/ranking"} <= set(read.Tags()["scalars"])
    assert [event.step for event in read.Scalars("train/ranking")] == [10, 12]


def test_an_unknown_tracker_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="tracker 'foo' is not one that transformers knows: none, "):
        tracker_callbacks("foo", tmp_path)


def test_computing_activations_twice_has_the_name_that_the_library_gives_it() -> None:
    (name,) = checkpointing(SFTConfig, on=True)
    assert name in {field.name for field in fields(SFTConfig)}
    older = make_dataclass("Older", [("gradient_checkpointing", bool, False)])
    assert checkpointing(older, on=True) == {"gradient_checkpointing": True}
