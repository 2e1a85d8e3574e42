"""The stage `sft` on a tiny shop: what it writes, that it resumes after a kill, and what it refuses."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from gr2.artifact import Artifact, open_stage
from gr2.data.candidates import CandidateLists
from gr2.errors import ArtifactError, ConfigError, DataError
from gr2.models.reasoner import Reasoner, SidSpec, from_scratch
from gr2.training.sft import SftConfig, inputs, run
from gr2.training.tracing.table import Trace, save_traces

TINY = SftConfig(
    epochs=2, batch=8, limit=32, max_history=4, validation_lists=6, test_lists=12, max_reasoning=16, dropout=0.1
)
PROGRAM = """
import json, sys
from pathlib import Path
from gr2.artifact import Artifact
from gr2.training.sft import SftConfig, run
folders, out, config = json.loads(sys.argv[1])
run(SftConfig(**config), {name: Artifact.load(path) for name, path in folders.items()}, Path(out), 0)
"""


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def parents(tiny_parents: dict[str, Artifact], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    """The artefacts that the stage reads: a model that knows nothing, and traces that put the target first."""
    folder = tmp_path_factory.mktemp("reasoner")
    texts = ["The pattern in the history is one group; the candidates that match come first."] * 4
    reasoner = from_scratch("tiny", texts, SidSpec.of(tiny_parents["tokenize"]), vocabulary=512)
    with open_stage(folder / "midtrain", "midtrain", TINY, {}, 0) as work:
        reasoner.save(work.path / "model")
        for split in ("train", "val", "test"):
            lists = CandidateLists.load(tiny_parents["prerank"].file(f"{split}.parquet"))
            lists.save(work.path / f"{split}.parquet")
    with open_stage(folder / "traces", "traces", TINY, {}, 0) as work:
        save_traces(work.path / "traces.parquet", traces(tiny_parents["prerank"]))
    made = {name: Artifact.load(folder / name, name) for name in ("midtrain", "traces")}
    return {**tiny_parents, **made}


def traces(prerank: Artifact, explanation: str = "The pattern matches one group.") -> list[Trace]:
    lists = CandidateLists.load(prerank.file("train.parquet"))
    rows = zip(lists.user, lists.position, lists.target, lists.candidates, lists.label(), strict=True)
    return [
        Trace(
            *(int(user), int(position), int(target), tuple(candidates.tolist()), explanation),
            ranking=(int(label), *(place for place in range(len(candidates)) if place != label)),
            sampling="rejection",
            attempts=1,
        )
        for user, position, target, candidates, label in rows
    ]


def with_traces(parents: dict[str, Artifact], folder: Path, made: list[Trace]) -> dict[str, Artifact]:
    with open_stage(folder, "traces", TINY, {}, 0) as work:
        save_traces(work.path / "traces.parquet", made)
    return {**parents, "traces": Artifact.load(folder, "traces")}


def test_stage_writes_a_reasoner_and_compares_it_with_the_incoming_order(
    parents: dict[str, Artifact], tmp_path: Path
) -> None:
    artifact = run(TINY, parents, tmp_path / "sft", 0)
    metrics = artifact.metrics
    assert metrics["traces"] == 32
    first, last = metrics["losses"]
    assert last["ranking"] < first["ranking"]
    assert last["reasoning"] < first["reasoning"]
    for split, count in (("val", 6), ("test", 12)):
        assert metrics[split]["all"]["slates"] == count
        assert {"incoming", "reasoner", "difference"} <= set(metrics[split]["all"])
    answers = pq.read_table(artifact.file("ranks.parquet"))
    assert {"user", "incoming", "reasoner", "answer"} <= set(answers.column_names)
    reasoner = Reasoner.load(artifact.file("model"), sids=SidSpec.of(parents["tokenize"]))
    before = Reasoner.load(parents["midtrain"].file("model"))
    pairs = zip(reasoner.model.parameters(), before.model.parameters(), strict=True)
    assert not any(torch.equal(one, other) for one, other in pairs)
    with pytest.raises(ArtifactError, match="semantic IDs"):
        Reasoner.load(artifact.file("model"), sids=SidSpec(3, 8, "another"))


def test_the_same_seed_gives_the_same_artefact_even_after_a_kill(parents: dict[str, Artifact], tmp_path: Path) -> None:
    config = replace(TINY, checkpoint_seconds=0.0, validation_lists=0, test_lists=4)
    calm = run(config, parents, tmp_path / "calm", 0)
    out = tmp_path / "sft"
    folders = {name: str(artifact.path) for name, artifact in parents.items()}
    arguments = [sys.executable, "-c", PROGRAM, json.dumps([folders, str(out), asdict(config)])]
    steps = out.with_name("sft.partial") / "checkpoints"
    with subprocess.Popen(arguments, env=os.environ | {"OMP_NUM_THREADS": "1"}, stderr=subprocess.PIPE) as process:
        deadline = time.monotonic() + 300
        while not list(steps.glob("checkpoint-*")) and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        _, said = process.communicate()
    assert process.returncode == -signal.SIGKILL, said.decode()
    written = [int(path.name.rpartition("-")[2]) for path in steps.glob("checkpoint-*")]
    assert 0 < max(written) < calm.metrics["steps"], "killed too early or too late to say anything"
    again = run(config, parents, out, 0)
    assert again.digest == calm.digest
    assert again.metrics["losses"] == calm.metrics["losses"]
    assert again.metrics["test"]["all"] == calm.metrics["test"]["all"]


def test_without_reasoning_the_answer_is_the_ranking(parents: dict[str, Artifact], tmp_path: Path) -> None:
    config = replace(TINY, reasoning=False, epochs=1, validation_lists=0, test_lists=4)
    artifact = run(config, with_traces(parents, tmp_path / "traces", traces(parents["prerank"], "")), tmp_path / "a", 0)
    assert artifact.metrics["reasoning_tokens"] == 0
    assert "val" not in artifact.metrics
    assert artifact.metrics["test"]["all"]["slates"] == 4


# peft reads a name of transformers that has a new one.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_adapters_leave_a_plain_model(parents: dict[str, Artifact], tmp_path: Path) -> None:
    config = replace(TINY, lora_rank=2, epochs=1, validation_lists=0, test_lists=0)
    artifact = run(config, parents, tmp_path / "sft", 0)
    names = dict(Reasoner.load(artifact.file("model")).model.named_parameters())
    assert set(names) == set(dict(Reasoner.load(parents["midtrain"].file("model")).model.named_parameters()))


def test_tensorboards_files_are_kept(parents: dict[str, Artifact], tmp_path: Path) -> None:
    config = replace(TINY, tracker="tensorboard", epochs=1, validation_lists=0, test_lists=0)
    artifact = run(config, parents, tmp_path / "sft", 0)
    assert [name for name in artifact.files if name.startswith("logs/events.out.tfevents")]


@pytest.mark.parametrize(
    ("explanation", "message"), [(None, "the teacher got no list right"), ("", "the traces have no explanations")]
)
def test_traces_that_teach_nothing_are_refused(
    parents: dict[str, Artifact], tmp_path: Path, explanation: str | None, message: str
) -> None:
    made = [] if explanation is None else traces(parents["prerank"], explanation)
    with pytest.raises(DataError, match=message):
        run(TINY, with_traces(parents, tmp_path / "traces", made), tmp_path / "sft", 0)


def test_prerankers_lists_are_read_where_they_are_asked_for() -> None:
    assert "prerank" not in inputs(TINY)
    assert "prerank" in inputs(replace(TINY, lists="prerank"))


@pytest.mark.parametrize(
    "bad",
    [
        {"epochs": 0}, {"reasoning_weight": -1.0}, {"learning_rate": 0.0}, {"warmup": 1.0}, {"test_lists": -2},
        {"list_size": 1}, {"budget": 0}, {"ranking_weight": 0.0, "reasoning": False},
    ],
)  # fmt: skip
def test_impossible_settings_are_refused(bad: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(bad))):
        SftConfig(**bad)  # type: ignore[arg-type]


def test_numbers_of_the_traces_are_drawn_with_the_seed(parents: dict[str, Artifact], tmp_path: Path) -> None:
    config = replace(TINY, limit=8, epochs=1, validation_lists=0, test_lists=0)
    one, other = (run(config, parents, tmp_path / str(seed), seed) for seed in (0, 1))
    assert one.metrics["traces"] == other.metrics["traces"] == 8
    assert one.metrics["prompt_tokens"] != other.metrics["prompt_tokens"]
    assert np.isfinite(one.metrics["losses"][0]["ranking"])


def test_lists_that_were_not_made_are_missed_before_the_training(parents: dict[str, Artifact], tmp_path: Path) -> None:
    with open_stage(tmp_path / "midtrain", "midtrain", TINY, {}, 0) as work:
        CandidateLists.load(parents["midtrain"].file("train.parquet")).save(work.path / "train.parquet")
    without = parents | {"midtrain": Artifact.load(tmp_path / "midtrain", "midtrain")}
    with pytest.raises(ConfigError, match=r"\[sft\] validation_lists is 6, but .* has no val.parquet; set .* to 0"):
        run(TINY, without, tmp_path / "sft", 0)


def test_prompts_that_the_model_cannot_read_are_refused(parents: dict[str, Artifact], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"prompts of up to 4,096 tokens .* more than the 4,096 that the model can"):
        run(replace(TINY, budget=4096), parents, tmp_path / "sft", 0)


def test_two_processes_make_one_artefact(
    parents: dict[str, Artifact], made_by_two: Callable[..., tuple[Artifact, str]]
) -> None:
    keys = {"epochs": 1, "batch": 8, "limit": 20, "max_history": 4, "validation_lists": 0, "test_lists": 3}
    keys |= {"max_reasoning": 8, "threads": 1, "tracker": "tensorboard"}
    artifact, said = made_by_two("sft", parents, keys)
    # Three batches, of which each process takes two: the first fills up the last step.
    assert artifact.metrics["steps"] == 2
    assert said.count("sft: 2/2 steps") == 1
    assert len([name for name in artifact.files if name.startswith("logs/")]) == 1
    assert len(pq.read_table(artifact.file("ranks.parquet"))) == 3
