"""Artefacts that the training stages read, made by hand so that the right answer is known."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from gr2.artifact import Artifact, open_stage
from gr2.catalog import Catalog
from gr2.config import to_json
from gr2.data.candidates import CandidateLists
from gr2.data.dataset import Dataset
from gr2.decoding import write_codebook

ITEMS, USERS, GROUPS, SLATE = 60, 150, 6, 8


@dataclass(frozen=True)
class _Codes:
    level_size: int = 8


@pytest.fixture(scope="session")
def tiny_parents(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    """Artefacts of `prepare`, `prerank` and `tokenize`.

    Every user stays in one group of items, and a list is the target among items of other groups, in random order: what
    was bought together tells the target, the incoming order does not.
    """
    rng = np.random.default_rng(0)
    folder = tmp_path_factory.mktemp("tiny")
    dataset = _dataset(rng)
    codes = np.stack(np.unravel_index(rng.permutation(8**3)[:ITEMS], (8, 8, 8)), 1).astype(np.uint16)
    ends = dataset.lengths.tolist()
    places = {
        "train": [(user, place) for user, end in enumerate(ends) for place in range(1, end - 2)],
        "val": [(user, end - 2) for user, end in enumerate(ends)],
        "test": [(user, end - 1) for user, end in enumerate(ends)],
    }
    with open_stage(folder / "prepare", "prepare", _Codes(), {}, 0) as work:
        dataset.save(work.path)
    with open_stage(folder / "prerank", "prerank", _Codes(), {}, 0) as work:
        for split, pairs in places.items():
            _lists(dataset, pairs, rng).save(work.path / f"{split}.parquet")
    with open_stage(folder / "tokenize", "tokenize", _Codes(), {}, 0) as work:
        np.save(work.path / "codes.npy", codes, allow_pickle=False)
        write_codebook(str(work.path / "codebook.bin"), np.array(dataset.catalog.ids, dtype=np.int64), codes, 8)
    return {name: Artifact.load(folder / name, name) for name in ("prepare", "prerank", "tokenize")}


@pytest.fixture(scope="session")
def chat() -> Any:
    """The module `benchmarks/reasoner/chat_server.py`, which is not installed."""
    name = "gr2_chat_server"
    path = Path(__file__).resolve().parents[2] / "benchmarks" / "reasoner" / "chat_server.py"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def untrained(tiny_parents: dict[str, Artifact], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    """These artefacts, and that of a `midtrain` whose model knows nothing; its lists are the pre-ranker's."""
    from gr2.models.reasoner import SidSpec, from_scratch

    folder = tmp_path_factory.mktemp("untrained") / "midtrain"
    sids = SidSpec.of(tiny_parents["tokenize"])
    with open_stage(folder, "midtrain", _Codes(), {}, 0) as work:
        from_scratch("tiny", ["History, oldest first: Candidates: rank"], sids, vocabulary=320, seed=1).save(
            work.path / "model"
        )
        for split in ("train", "val", "test"):
            CandidateLists.load(tiny_parents["prerank"].file(f"{split}.parquet")).save(work.path / f"{split}.parquet")
    return {**tiny_parents, "midtrain": Artifact.load(folder, "midtrain")}


def _dataset(rng: np.random.Generator) -> Dataset:
    ids: list[int | str] = [1000 + 3 * item for item in range(ITEMS)]
    unknown = [None] * ITEMS
    catalog = Catalog(ids, list(unknown), list(unknown), [[] for _ in ids], list(unknown), list(unknown))
    events = [rng.permutation(ITEMS // GROUPS)[: rng.integers(4, 9)] * GROUPS + user % GROUPS for user in range(USERS)]
    offsets = np.concatenate([[0], np.cumsum([len(each) for each in events])]).astype(np.int64)
    items = np.concatenate(events).astype(np.int32)
    times = np.full(len(items), np.nan)
    return Dataset(catalog, list(range(USERS)), offsets, items, times, np.zeros(USERS, np.bool_))


def _lists(dataset: Dataset, pairs: list[tuple[int, int]], rng: np.random.Generator) -> CandidateLists:
    user, position = (np.array(column, dtype=np.int32) for column in zip(*pairs, strict=True))
    target = dataset.items[dataset.offsets[user] + position]
    rows = []
    for who, item in zip(user.tolist(), target.tolist(), strict=True):
        others = [other for other in rng.permutation(ITEMS).tolist() if other % GROUPS != who % GROUPS]
        rows.append(rng.permutation([item, *others[: SLATE - 1]]))
    scores = np.tile(-np.arange(SLATE, dtype=np.float32), (len(pairs), 1))
    return CandidateLists(user, position, target, np.array(rows, dtype=np.int32), scores)


@pytest.fixture
def kill_changes_nothing(tmp_path: Path) -> Callable[..., None]:
    """Runs a stage twice, once killed amid the steps and begun again: both end with the same weights, steps and tables.

    The stage is its module; the parents' and the tables' are names. `checkpoints` is a folder below the stage's.
    """
    from gr2.models.reasoner import Reasoner

    def check(
        stage: ModuleType, config: Any, parents: Mapping[str, Artifact], *tables: str, checkpoints: str = ""
    ) -> None:
        whole = stage.run(config, parents, tmp_path / "whole", 5)
        cut = tmp_path / "cut"
        _killed(stage, config, parents, cut, tmp_path / "cut.partial" / "checkpoints" / checkpoints)
        resumed = stage.run(config, parents, cut, 5)
        expected, found = (Reasoner.load(made.file("model")).model.state_dict() for made in (whole, resumed))
        assert all(value.equal(found[name]) for name, value in expected.items())
        steps = [pq.read_table(made.file("steps.parquet")) for made in (whole, resumed)]
        names = [name for name in steps[0].column_names if "time" not in name]
        assert steps[0].select(names).equals(steps[1].select(names))
        for name in tables:
            assert pq.read_table(whole.file(name)).equals(pq.read_table(resumed.file(name)))

    return check


def _killed(stage: ModuleType, config: Any, parents: Mapping[str, Artifact], out: Path, checkpoints: Path) -> None:
    kind = type(config).__name__
    paths = {name: str(artifact.path) for name, artifact in parents.items()}
    program = (
        "import json, pathlib, sys; from gr2.artifact import Artifact; from gr2.config import build\n"
        f"from {stage.__name__} import {kind}, run\n"
        "values, paths, out = map(json.loads, sys.argv[1:])\n"
        "parents = {name: Artifact.load(path, name) for name, path in paths.items()}\n"
        f"run(build({kind}, values, 'killed'), parents, pathlib.Path(out), 5)\n"
    )
    words = [json.dumps(value) for value in (to_json(config), paths, str(out))]
    process = subprocess.Popen([sys.executable, "-c", program, *words], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 240
    while not (checkpoints / "checkpoint-2").exists() and not (checkpoints / "checkpoint-3").exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not out.exists()


@pytest.fixture(scope="session")
def in_two_processes() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs `gr2` with these words in two processes of `accelerate launch`, on the CPU, and takes no failure."""
    launcher = ["-m", "accelerate.commands.launch", "--num_processes", "2", "--num_machines", "1"]
    launcher += ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}

    def run(*words: object, kind: Sequence[str] = ("--multi_gpu",)) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, *launcher, *kind, "-m", "gr2.cli", *map(str, words)]
        made = subprocess.run(command, check=False, capture_output=True, text=True, env=environment)
        assert made.returncode == 0, made.stderr[-3000:]
        return made

    return run


@pytest.fixture
def made_by_two(
    tmp_path: Path, in_two_processes: Callable[..., subprocess.CompletedProcess[str]]
) -> Callable[..., tuple[Artifact, str]]:
    """What two processes make of a stage, with these keys and over links to its parents, and what they say of it.

    The stage run again is up to date.
    """

    def make(stage: str, parents: Mapping[str, Artifact], keys: Mapping[str, object]) -> tuple[Artifact, str]:
        run, config = tmp_path / "run", tmp_path / "shop.toml"
        run.mkdir()
        for name, artifact in parents.items():
            (run / name).symlink_to(artifact.path)
        table = "\n".join(f"{name} = {json.dumps(value)}" for name, value in keys.items())
        config.write_text(f'[run]\nout = "{run}"\n[{stage}]\n{table}\n')
        said = in_two_processes(stage, config).stderr
        assert f"{stage}: up to date" in in_two_processes(stage, config).stderr
        artifact = Artifact.load(run / stage, verify=True)
        assert artifact.metrics["processes"] == 2
        return artifact, said

    return make
