"""`make show-server` runs the tests of the server, and those of nothing that is not there."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
# The kernel's needs a GPU or the interpreter, and generation is no part of the server.
OTHERS = {"tests/serving/models/test_batch_ranking.py", "tests/serving/test_generation.py"}


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> Any:
    """What is run: files and folders below the root."""
    monkeypatch.syspath_prepend(str(ROOT))
    tests = importlib.import_module("benchmarks.server.show").TESTS
    return [each for files in tests.values() for each in files]


def test_every_test_of_the_server_and_of_its_load_generator_is_shown(shown: list[str]) -> None:
    files = {str(file.relative_to(ROOT)) for name in shown for file in [ROOT / name, *(ROOT / name).glob("test_*.py")]}
    there = {str(each.relative_to(ROOT)) for part in ("serving", "load") for each in ROOT.glob(f"tests/{part}/**/*.py")}
    tests = {each for each in there if Path(each).name.startswith("test_")}
    assert tests - files - OTHERS == set()


def test_what_is_shown_is_there_and_runs_once(shown: list[str]) -> None:
    assert [each for each in shown if not (ROOT / each).exists()] == []
    assert len(set(shown)) == len(shown)
