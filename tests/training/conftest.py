"""Artefacts that the training stages read, made by hand so that the right answer is known."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gr2.artifact import Artifact, open_stage
from gr2.catalog import Catalog
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
    """The module `benchmarks/chat_server.py`, which is not installed."""
    name = "gr2_chat_server"
    path = Path(__file__).resolve().parents[2] / "benchmarks" / "chat_server.py"
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
def kill_in_training(tmp_path: Path) -> Callable[..., Path]:
    """Begins a stage of the test file's `TINY` in a process of its own, kills it amid the steps, and says where.

    `changes` are made to `TINY`, after those that give it six steps and three lists to rank.
    """

    def kill(
        cases: str, stage: str, parents: Mapping[str, Artifact], *, checkpoints: str = "", **changes: object
    ) -> Path:
        script, cut = tmp_path / "work.py", tmp_path / "cut"
        paths = {name: str(artifact.path) for name, artifact in parents.items()}
        script.write_text(
            "import importlib.util, pathlib, sys\n"
            f"spec = importlib.util.spec_from_file_location('cases', {cases!r})\n"
            "cases = importlib.util.module_from_spec(spec); sys.modules['cases'] = cases\n"
            "spec.loader.exec_module(cases)\n"
            f"parents = {{name: cases.Artifact.load(path, name) for name, path in {paths!r}.items()}}\n"
            f"config = cases.replace(cases.TINY, **{ {'steps': 6, 'test_lists': 3} | changes!r})\n"
            f"cases.{stage}.run(config, parents, pathlib.Path({str(cut)!r}), 5)\n"
        )
        process = subprocess.Popen([sys.executable, str(script)], stderr=subprocess.DEVNULL)
        found = tmp_path / "cut.partial" / "checkpoints" / checkpoints
        deadline = time.monotonic() + 240
        while not (found / "checkpoint-2").exists() and not (found / "checkpoint-3").exists():
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        assert not cut.exists()
        return cut

    return kill
