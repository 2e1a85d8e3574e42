"""Fixtures shared by all tests."""

from __future__ import annotations

import builtins
import io
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import settings

os.environ.setdefault("OMP_NUM_THREADS", "1")

# `pytest --hypothesis-profile=thorough`: tests that take the profile's number of examples when it is above their own.
settings.register_profile("thorough", max_examples=10_000, deadline=None)


class Killed(BaseException):
    """Stands for SIGKILL: nothing catches it."""


@pytest.fixture
def kill_at(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], object], int], bool]:
    """Calls a function and ends it at its n-th change to the file system; says whether it got there.

    No change is made after that, not even by a `finally`, as after a real kill.
    """

    def call(function: Callable[[], object], number: int) -> bool:
        changes = 0

        def counted(original: Callable[..., Any]) -> Callable[..., Any]:
            def change(*arguments: Any, **options: Any) -> Any:
                nonlocal changes
                mode = arguments[1] if len(arguments) > 1 else options.get("mode", "r")
                if original is not io.open or (isinstance(mode, str) and set(mode) & set("wax+")):
                    changes += 1
                    if changes >= number:
                        raise Killed
                return original(*arguments, **options)

            return change

        with monkeypatch.context() as patch:
            for name in ("fsync", "mkdir", "remove", "rename", "replace", "rmdir", "unlink"):
                patch.setattr(os, name, counted(getattr(os, name)))
            opened = counted(io.open)
            patch.setattr(io, "open", opened)
            patch.setattr(builtins, "open", opened)
            try:
                function()
            except Killed:
                return True
        return False

    return call


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder with the real data sets; tests that need it are skipped where it is absent."""
    folder = Path(os.environ.get("GR2_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
    if not (folder / "beauty" / "interactions.parquet").is_file():
        pytest.skip(f"real data not found: {folder} (set GR2_DATA to the folder that holds beauty/ and games18/)")
    return folder


@pytest.fixture(scope="session")
def benchmarks_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For PYTHONPATH: the benchmarks, which are not installed, without the sources, which would hide what is."""
    folder = tmp_path_factory.mktemp("path")
    (folder / "benchmarks").symlink_to(Path(__file__).parents[1] / "benchmarks")
    return folder


@pytest.fixture(scope="session")
def tiny_shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A configuration file for every stage over a tiny synthetic shop; each test sets its own `run.out`.

    Items have given vectors, so that no text encoder is loaded.
    """
    from gr2.catalog import Catalog
    from gr2.data.synthetic import write_synthetic

    folder = tmp_path_factory.mktemp("shop")
    items, interactions = write_synthetic(folder, users=150, items=60, seed=1)
    ids = Catalog.load(items).ids
    vectors = np.random.default_rng(0).normal(size=(len(ids), 8)).astype(np.float32)
    np.savez(folder / "vectors.npz", item_id=np.array(ids), vector=vectors)
    config = folder / "shop.toml"
    config.write_text(
        f"""
[prepare]
items = "{items}"
interactions = "{interactions}"
core = 2
[prerank]
dim = 16
layers = 1
epochs = 2
folds = 2
list_size = 20
batch = 32
[tokenize]
vectors = "{folder / "vectors.npz"}"
levels = 3
level_size = 8
[distill]
dim = 16
layers = 1
epochs = 2
batch = 64
checkpoint_seconds = 0.0
[export]
requests = 30
[evaluate]
resamples = 500
"""
    )
    return config


@pytest.fixture(scope="session")
def tiny_run(tiny_shop: Path) -> Path:
    """The folder of a finished run over the tiny shop."""
    from gr2.pipeline import execute, load_plan

    out = tiny_shop.parent / "run"
    execute(load_plan(tiny_shop, overrides=[f"run.out={out}"]))
    return out


@pytest.fixture(scope="session")
def in_threads() -> Callable[[int, Callable[[int], object]], None]:
    """Calls a function with 0, 1, ... in as many threads at once, and raises what one of them raised."""

    def run(count: int, work: Callable[[int], object]) -> None:
        with ThreadPoolExecutor(count) as pool:
            list(pool.map(work, range(count)))

    return run
