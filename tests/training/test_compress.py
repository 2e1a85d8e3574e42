from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from gr2.artifact import Artifact
from gr2.config import build
from gr2.errors import ConfigError, DataError
from gr2.models.reasoner import Reasoner
from gr2.training import compress, rl
from gr2.training.compress import CompressConfig
from gr2.training.compression.quality import KINDS
from gr2.training.reasoner.contexts import Contexts
from gr2.training.rl import RlConfig

TINY = CompressConfig(
    start="midtrain", reasoner="midtrain", knowledge=False, max_history=6, title_words=1, steps=3, groups=2, samples=4,
    batch=8, answer_batch=8, redraws=1, learning_rate=1e-2, precision="float32", test_lists=6, limit=40, share=0.5,
    checkpoint_seconds=0.0, threads=1, list_size=5,
)  # fmt: skip


def weights(artifact: Artifact) -> dict[str, torch.Tensor]:
    return Reasoner.load(artifact.file("model")).model.state_dict()


@pytest.fixture(scope="module")
def made(untrained: dict[str, Artifact], tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return compress.run(TINY, untrained, tmp_path_factory.mktemp("made") / "compress", 3)


def test_the_artefact_holds_a_compressor_its_contexts_and_what_they_are_worth(
    made: Artifact, untrained: dict[str, Artifact]
) -> None:
    steps = pq.read_table(made.file("steps.parquet"))
    assert steps["step"].to_pylist() == [1, 2, 3]
    for name in ("reward", "share", "events", "copies/newest", "judged/quality", "rollouts/drawn", "entropy", "loss"):
        assert np.isfinite(np.array(steps[name].to_pylist())).all(), name
    assert max(steps["share"].to_pylist()) <= 0.6
    assert made.metrics["warm"]["steps"] == 3
    ranks = pq.read_table(made.file("ranks.parquet"))
    assert set(ranks.column_names) == {"user", "position", "incoming", *KINDS}
    assert len(ranks) == 6
    assert made.metrics["test"]["whole"]["minus_whole"]["R@1"] == {"mean": 0.0, "low": 0.0, "high": 0.0}
    assert made.metrics["test"]["empty"]["share"] == 0.0
    before, after = weights(untrained["midtrain"]), weights(made)
    assert any(not torch.equal(value, after[name]) for name, value in before.items())


def test_contexts_are_lines_of_their_histories_within_the_budget(made: Artifact) -> None:
    contexts = Contexts.load(made.file("contexts.parquet"))
    for (_, position), context in contexts.found.items():
        assert 1 <= len(context.lines) <= position
        longest = max(context.before // min(position, TINY.max_history), int(TINY.share * context.before))
        assert context.after <= longest


def test_a_stage_reads_the_contexts_in_the_place_of_histories(
    made: Artifact, untrained: dict[str, Artifact], tmp_path: Path
) -> None:
    keys = ("knowledge", "max_history", "title_words", "groups", "samples", "batch", "answer_batch", "list_size")
    shared = {name: getattr(TINY, name) for name in keys}
    config = RlConfig(
        **shared, start="midtrain", reasoning=False, steps=1, redraws=0, precision="float32", validation_lists=0,
        test_lists=3, threads=1, compressor="compress",
    )  # fmt: skip
    assert "compress" in rl.inputs(config)
    one = rl.run(config, {**untrained, "compress": made}, tmp_path / "one", 0)
    assert one.parents["compress"] == made.digest
    assert one.metrics["test"]["context"]["share"] < 1
    assert one.metrics["test"]["history_kept_mean"] < 4
    elsewhere = replace(config, compressor=str(made.path))
    assert set(rl.sources(elsewhere)) == {"compressor:artifact.json", "compressor:contexts.parquet"}
    other = rl.run(elsewhere, untrained, tmp_path / "other", 0)
    assert all(torch.equal(value, weights(other)[name]) for name, value in weights(one).items())
    with pytest.raises(DataError, match="has made no context"):
        rl.run(replace(config, list_size=8), {**untrained, "compress": made}, tmp_path / "wider", 0)
    with pytest.raises(ConfigError, match="holds no artefact of compress"):
        rl.sources(replace(config, compressor=str(tmp_path)))


def test_kill_in_the_middle_changes_nothing(
    untrained: dict[str, Artifact], kill_changes_nothing: Callable[..., None]
) -> None:
    kill_changes_nothing(
        compress,
        replace(TINY, steps=6, test_lists=3),
        untrained,
        "contexts.parquet",
        "ranks.parquet",
        checkpoints="policy",
    )


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_text_of_its_own_is_learnt_from_by_adapters_too(untrained: dict[str, Artifact], tmp_path: Path) -> None:
    config = replace(TINY, form="free", warm="newest", warm_epochs=2, steps=1, test_lists=3, kl=0.1, lora_rank=2)
    made = compress.run(config, untrained, tmp_path / "free", 3)
    (step,) = pq.read_table(made.file("steps.parquet")).to_pylist()
    assert 0 <= step["valid"] <= 1
    # What a model that knows nothing writes is refused, and the newest events stand in for it.
    assert made.metrics["contexts"]["refused"] > 0
    assert all(context.lines for context in Contexts.load(made.file("contexts.parquet")).found.values())


def test_contexts_judged_by_likelihood_hold_no_text(untrained: dict[str, Artifact], tmp_path: Path) -> None:
    made = compress.run(replace(TINY, ranking="likelihood", steps=1), untrained, tmp_path / "likely", 3)
    ranks = pq.read_table(made.file("ranks.parquet"))
    assert ranks["newest"].to_pylist() == ranks["truncated"].to_pylist()
    lines = [line for context in Contexts.load(made.file("contexts.parquet")).found.values() for line in context.lines]
    assert lines
    assert all(re.fullmatch(r"<\|sid_begin\|>(<s_[a-c]_\d>){3}<\|sid_end\|>", line) for line in lines)


def test_a_language_model_may_judge(untrained: dict[str, Artifact], chat: Any, tmp_path: Path) -> None:
    def respond(call: Any) -> Any:
        kept = call.messages[-1]["content"].partition("Shortened history:\n")[2].partition("\n\n")[0].count("- ")
        return chat.completion(json.dumps({"solvable": 1, "preservation": 1, "quality": min(1.0, kept / 4)}))

    with chat.serving(respond) as server:
        config = replace(
            TINY, judge="endpoint", base_url=server.url, model="judge", api_key_env="", steps=2, test_lists=0, alpha=0.0
        )
        made = compress.run(config, untrained, tmp_path / "asked", 3)
        steps = pq.read_table(made.file("steps.parquet"))
        # The server's marks, r = .2 p + .8 q, are what was learnt from.
        for reward, quality in zip(*(steps[name].to_pylist() for name in ("reward", "judged/quality")), strict=True):
            assert reward == pytest.approx(0.2 + 0.8 * quality)
        asked = [call.messages[-1]["content"] for call in server.calls]
        assert len(set(asked)) == len(asked)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"share": 1.0}, "share must be in"),
        ({"max_history": 0}, "nothing to shorten"),
        ({"alpha": 1.5}, "alpha must be in"),
        ({"warm_epochs": 0}, "warm_epochs must be at least 1"),
        ({"judge": "endpoint"}, "needs base_url"),
        ({"judge": "local"}, "needs model"),
        ({"compressor": "compress"}, "leave it out here"),
        ({"timeout": 0.0}, "timeout must be above 0"),
        ({"samples": 1}, "samples must be at least 2"),
    ],
)
def test_values_that_cannot_be_are_refused(change: dict[str, object], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        build(CompressConfig, change, "compress")


def test_histories_that_the_model_cannot_read_are_refused(untrained: dict[str, Artifact], tmp_path: Path) -> None:
    shutil.copytree(untrained["midtrain"].path, tmp_path / "midtrain")
    settings = tmp_path / "midtrain" / "model" / "config.json"
    text = settings.read_text()
    assert '"max_position_embeddings": 4096' in text
    settings.write_text(text.replace('"max_position_embeddings": 4096', '"max_position_embeddings": 64  '))
    short = untrained | {"midtrain": Artifact.load(tmp_path / "midtrain", "midtrain")}
    with pytest.raises(ConfigError, match=r"take up to \d+ tokens, more than the 64 that the model can read"):
        compress.run(TINY, short, tmp_path / "compress", 0)


def test_two_processes_make_one_artefact(
    untrained: dict[str, Artifact], made_by_two: Callable[..., tuple[Artifact, str]]
) -> None:
    names = ("start", "reasoner", "max_history", "title_words", "list_size", "limit", "share")
    keys = {name: getattr(TINY, name) for name in names}
    keys |= {"steps": 2, "groups": 2, "samples": 4, "batch": 4, "test_lists": 3, "threads": 1}
    artifact, _ = made_by_two("compress", untrained, keys)
    assert artifact.metrics["steps"] == 2
    assert len(pq.read_table(artifact.file("ranks.parquet"))) == 3
